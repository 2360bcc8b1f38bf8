//! Moving the WAL into the database, off the recorder's path.
//!
//! A thread of its own writes and syncs the database while the recorder goes on; only what came
//! meanwhile is left, and once that is little, the recorder moves it itself between two commits.
//! Then the WAL begins anew. So it stays bounded under any load, and no commit waits for a long
//! checkpoint as long as the disk can follow. They take turns ([`Stage`]): once the thread has done
//! what it can, it waits for the recorder, so that a disk which is slower than the recorder slows
//! the recorder down. What waits for those who read is the recorder's as well: whoever else waited
//! would need the writer's lock for it, which the recorder has nearly all the time.
//!
//! A sync of the database that fails is the end of that. SQLite counts what a checkpoint has moved
//! beside commits as moved, and leaves its sync to the next one; and after a sync that failed a
//! kernel counts such pages as written, or drops them and reads what was there before. So a later
//! sync that goes well would let the WAL begin anew without them, and what is read meanwhile may be
//! of before. The recorder closes every connection then and opens the record anew: that takes the
//! WAL from its beginning, where all of it still is.

mod turns;

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;

pub(super) use turns::Before;
use turns::{Erased, Finish, LITTLE, Stage, State, WORTH};

use super::open;
use crate::StoreError;

/// How long the recorder waits for those who read, so that a large WAL can begin anew.
const RESTART_WAIT: Duration = Duration::from_secs(1);
/// How long it waits for them to have the WAL forget what was erased.
const FORGET_WAIT: Duration = Duration::from_millis(50);
/// What one attempt waits, about.
const ATTEMPT: Duration = Duration::from_millis(10);
/// Rounds after which the recorder takes over whatever is left, if it does not before: it must then
/// be slowed down, since the disk cannot follow.
const ROUNDS: u32 = 8;

thread_local! {
    /// Frames in the WAL after the last commit of this thread's connection.
    static FRAMES: Cell<u32> = const { Cell::new(0) };
}

fn count(_: &Wal, frames: std::ffi::c_int) -> rusqlite::Result<()> {
    FRAMES.set(u32::try_from(frames).unwrap_or(0));
    Ok(())
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// The recorder's end.
#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread. `recorder` is the recorder's connection, to count its frames; this must
    /// be called on the thread that commits with it. `wake` is called when the recorder is to
    /// [`attend`](Self::attend) even if it commits nothing, and once a sync has failed. After one
    /// that has failed before, the disk is given time.
    ///
    /// # Errors
    /// [`StoreError::Database`]: no connection, or no thread.
    pub(super) fn start(
        path: &Path,
        recorder: &Connection,
        before: Before,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, StoreError> {
        let conn = open::checkpointer(path)?;
        recorder.wal_hook(Some(count));
        let state = Mutex::new(State::new(before, Instant::now()));
        let shared = Arc::new(Shared { state, wake: Condvar::new() });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            run(&theirs, &conn, &wake);
        });
        let thread = thread.map_err(|error| StoreError::Database(error.to_string()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// After each commit; `erased`: something was, and the WAL shall forget it too.
    pub(super) fn committed(&self, erased: bool) {
        self.change(|state| {
            state.committed(FRAMES.get());
            if erased {
                state.erase();
            }
        });
    }

    /// The recorder has nothing to do.
    pub(super) fn idle(&self) {
        self.change(State::idle);
    }

    /// The recorder is between two transactions: its turn, if it is.
    pub(super) fn attend(&self, recorder: &Connection) {
        let Some(finish) = self.shared.lock().take_rest(Instant::now()) else {
            return;
        };
        let done = match finish {
            Finish::Rest => passive(recorder).map(|_| false),
            Finish::Forget => emptied(recorder, FORGET_WAIT),
            Finish::Restart => emptied(recorder, RESTART_WAIT),
        };
        match (finish, &done) {
            (_, Ok(true)) => FRAMES.set(0),
            (Finish::Restart, Ok(false)) => {
                tracing::warn!("somebody reads the record for long: its -wal file goes on growing");
            }
            _ => {}
        }
        self.change(|state| {
            state.finished(finish, done.as_ref().ok().copied(), Instant::now());
            if let Err(error) = &done {
                fails(state, error);
            }
        });
    }

    /// A sync has failed: the record is to be opened anew.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.lock().stage == Stage::Failed
    }

    /// Ends the thread. Whoever closes `recorder` after this moves no more than this has.
    pub(super) fn end(self, recorder: &Connection) -> rusqlite::Result<Option<Before>> {
        let shared = self.shared.clone();
        drop(self);
        let state = shared.lock();
        if state.stage != Stage::Failed {
            return Ok(None);
        }
        recorder.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(Some(Before { failed: true, due: state.erased != Erased::No }))
    }

    /// Changes the state, and wakes the thread if that changes whose turn it is, or until when it waits.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.shared.lock();
        let before = state.stage;
        change(&mut state);
        if state.stop || state.stage != before {
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.change(|state| state.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread failed");
        }
    }
}

fn run(shared: &Shared, conn: &Connection, wake: &dyn Fn()) {
    while shared.turn() {
        let moved = checkpointed(shared, conn);
        let mut state = shared.lock();
        let mut tell = state.moved();
        if let Err(error) = moved {
            fails(&mut state, &error);
            tell |= state.stage == Stage::Failed;
        }
        drop(state);
        if tell {
            wake();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread's turn. `false`: it is to end.
    fn turn(&self) -> bool {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.stop {
                return false;
            }
            if state.take(now) {
                return true;
            }
            state = if let Some(again) = state.again() {
                let waited = self.wake.wait_timeout(state, again.saturating_duration_since(now));
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.wake.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

/// Something could not be moved. If that was a sync, it is the end.
fn fails(state: &mut State, error: &rusqlite::Error) {
    if is_of_a_sync(error) {
        state.stage = Stage::Failed;
        tracing::error!(
            %error,
            "the disk failed to keep the record's file; all is in its -wal file, and the record \
             is opened anew"
        );
    } else {
        // The next commits ask again; nothing is lost but room.
        tracing::warn!(%error, "a checkpoint failed; it will be tried again");
    }
}

fn is_of_a_sync(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

/// Moves until little is left, or until it is clear that more comes than can be moved.
fn checkpointed(shared: &Shared, conn: &Connection) -> rusqlite::Result<()> {
    let mut before = u32::MAX;
    for _ in 0..ROUNDS {
        let moved = passive(conn)?;
        let left = shared.lock().frames.saturating_sub(moved);
        if left <= LITTLE || left >= before.max(WORTH) {
            break;
        }
        before = left;
    }
    Ok(())
}

/// Moves what can be moved without waiting for anybody, and says how many frames that makes.
fn passive(conn: &Connection) -> rusqlite::Result<u32> {
    conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?
        .query_row([], |row| row.get::<_, i64>(2))
        .map(|frames| u32::try_from(frames).unwrap_or(0))
}

/// Moves everything and empties the WAL, waiting so long for whoever reads. `false`: somebody did
/// all the time.
///
/// SQLite waits for a reader by the place it has taken (its read mark). Where one who comes takes the
/// place that has just become free, for the newest commit, it waits for that one as well, and for
/// all who share that place after it. Asked anew it sees that they are in nobody's way, moves
/// everything, and waits only for those who are there: who comes then reads the database alone. So
/// it is asked again and again, for a few milliseconds each.
fn emptied(recorder: &Connection, wait: Duration) -> rusqlite::Result<bool> {
    let (mut before, mut waited) = (0, Duration::ZERO);
    recorder.busy_handler(Some(open::wait_briefly))?;
    let emptied = loop {
        let began = Instant::now();
        let moved = recorder.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            Ok((row.get::<_, i64>(0)? == 0, row.get::<_, i64>(2)?))
        });
        let moved = match moved {
            Ok((true, _)) => break Ok(true),
            Ok((false, moved)) => moved,
            Err(error) => break Err(error),
        };
        // Where another process checkpoints, SQLite does not wait.
        thread::sleep(Duration::from_millis(1));
        // Moving is no waiting.
        waited += if moved > before { began.elapsed().min(ATTEMPT) } else { began.elapsed() };
        before = moved;
        if waited >= wait {
            break Ok(false);
        }
    };
    recorder.busy_handler(Some(open::wait))?;
    emptied
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rusqlite::OpenFlags;

    use super::*;

    /// Somebody who reads one moment of the database.
    fn reads(path: &Path) -> Connection {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        conn.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        conn
    }

    #[test]
    fn the_wal_is_emptied_while_somebody_always_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
        let stop = AtomicBool::new(false);
        let (mut emptied_all, mut size) = (true, 0);
        thread::scope(|scope| {
            // Each begins before the one before it ends.
            let reading = scope.spawn(|| {
                let mut before = reads(&path);
                let until = Instant::now() + Duration::from_secs(60);
                while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                    let next = reads(&path);
                    thread::sleep(Duration::from_millis(2));
                    before = next;
                }
                drop(before);
            });
            for _ in 0..30 {
                for _ in 0..5 {
                    conn.execute("INSERT INTO t VALUES (randomblob(9999))", []).unwrap();
                    thread::sleep(Duration::from_micros(700));
                }
                emptied_all &= emptied(&conn, RESTART_WAIT).unwrap();
                size += fs::metadata(path.with_extension("db-wal")).unwrap().len();
            }
            stop.store(true, Ordering::Relaxed);
            reading.join().unwrap();
        });
        assert!(emptied_all);
        assert_eq!(size, 0);
        // Somebody who does not end is not waited for for ever.
        let reader = reads(&path);
        conn.execute("INSERT INTO t VALUES (1)", []).unwrap();
        let began = Instant::now();
        assert!(!emptied(&conn, FORGET_WAIT).unwrap());
        assert!(began.elapsed() >= FORGET_WAIT);
        drop(reader);
        assert!(emptied(&conn, FORGET_WAIT).unwrap());
    }
}
