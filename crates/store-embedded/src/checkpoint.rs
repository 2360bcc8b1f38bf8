//! Checkpoints the WAL in the background, off the recorder's path.
//!
//! A separate thread writes and syncs the database while the recorder commits. Only the frames of
//! commits in that time remain. Once they are few, the recorder checkpoints them itself, between
//! two commits, and the WAL restarts. So the WAL stays bounded under any load, and no commit waits
//! for a long checkpoint as long as the disk keeps up.
//!
//! Thread and recorder take turns ([`CheckpointStage`]). After its part the thread waits for the
//! recorder, so that a disk that is slower than the recorder slows the recorder down. Waiting for
//! readers is also the recorder's part: any other connection would need the write lock for it, and
//! the recorder holds that nearly all the time.
//!
//! After a failed sync of the database, checkpoints stop. SQLite marks pages that it copies during
//! commits as checkpointed, and leaves their sync to the next checkpoint. But when a sync fails, a
//! kernel marks such pages clean, or drops them and reads the old content. A later, successful sync
//! would then let the WAL restart without them, and reads until then could return old content. So
//! the recorder closes every connection and reopens the record. SQLite then recovers the WAL from
//! its beginning, where all frames still are.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use twinlock_store::StoreError;

pub(crate) use crate::checkpoint_state::PriorCheckpoints;
use crate::checkpoint_state::{
    CHECKPOINT_FRAMES, CheckpointStage, CheckpointState, ErasedContent, FEW_FRAMES, RecorderPart,
};
use crate::error::DbError;
use crate::open;

/// How long the recorder waits for readers so that a large WAL can restart.
const RESTART_WAIT: Duration = Duration::from_secs(1);
/// How long the recorder waits for readers to remove erased content from the WAL.
const ERASED_WAIT: Duration = Duration::from_millis(50);
/// Approximate duration of one attempt.
const ATTEMPT: Duration = Duration::from_millis(10);
/// Maximum number of rounds before the recorder takes over. If frames still remain then, the disk
/// does not keep up, and the recorder must be slowed down.
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
struct SharedState {
    state: Mutex<CheckpointState>,
    wake: Condvar,
}

/// The recorder's handle of the checkpoint thread.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    shared: Arc<SharedState>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the checkpoint thread.
    ///
    /// `recorder` is the recorder's connection, whose frames are counted: call this on the thread
    /// that commits with it. `wake` is called when the recorder must [`attend`](Self::attend)
    /// without a commit, and once after a failed sync. If a sync failed `before`, the first
    /// checkpoint is delayed, to give the disk time.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the connection or the thread cannot be created.
    pub(crate) fn start(
        path: &Path,
        recorder: &Connection,
        before: PriorCheckpoints,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, StoreError> {
        let conn = open::checkpointer(path).map_err(DbError::from)?;
        recorder.wal_hook(Some(count));
        let state = Mutex::new(CheckpointState::new(before, Instant::now()));
        let shared = Arc::new(SharedState { state, wake: Condvar::new() });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            run(&theirs, &conn, &wake);
        });
        let thread = thread.map_err(|error| StoreError::Database(error.to_string()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Call this after each commit. `erased`: content was erased, and must be removed from the WAL
    /// too.
    pub(crate) fn committed(&self, erased: bool) {
        self.change(|state| {
            state.committed(FRAMES.get());
            if erased {
                state.erase();
            }
        });
    }

    /// Call this when the recorder has nothing to do.
    pub(crate) fn idle(&self) {
        self.change(CheckpointState::idle);
    }

    /// Call this between two transactions: does the recorder's part if it is the recorder's turn.
    pub(crate) fn attend(&self, recorder: &Connection) {
        let Some(finish) = self.shared.lock().take_recorder_turn(Instant::now()) else {
            return;
        };
        let done = match finish {
            RecorderPart::Remaining => checkpoint_passive(recorder).map(|_| false),
            RecorderPart::RemoveErased => empty_wal(recorder, ERASED_WAIT),
            RecorderPart::Restart => empty_wal(recorder, RESTART_WAIT),
        };
        match (finish, &done) {
            (_, Ok(true)) => FRAMES.set(0),
            (RecorderPart::Restart, Ok(false)) => {
                tracing::warn!(
                    "a long read keeps the WAL from being checkpointed: it keeps growing"
                );
            }
            _ => {}
        }
        self.change(|state| {
            state.end_recorder_turn(finish, done.as_ref().ok().copied(), Instant::now());
            if let Err(error) = &done {
                handle_failure(state, error);
            }
        });
    }

    /// Whether a sync has failed and the record must be reopened.
    pub(crate) fn has_failed(&self) -> bool {
        self.shared.lock().stage == CheckpointStage::Failed
    }

    /// Ends the thread. If a sync failed, returns the state for the next opening, and closing
    /// `recorder` does not checkpoint.
    pub(crate) fn end(self, recorder: &Connection) -> rusqlite::Result<Option<PriorCheckpoints>> {
        let shared = self.shared.clone();
        drop(self);
        let state = shared.lock();
        if state.stage != CheckpointStage::Failed {
            return Ok(None);
        }
        recorder.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(Some(PriorCheckpoints { failed: true, due: state.erased != ErasedContent::No }))
    }

    /// Changes the state, and wakes the thread if the stage changes or the thread must stop.
    fn change(&self, change: impl FnOnce(&mut CheckpointState)) {
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

fn run(shared: &SharedState, conn: &Connection, wake: &dyn Fn()) {
    while shared.wait_for_turn() {
        let done = checkpoint_most(shared, conn);
        let mut state = shared.lock();
        let mut wake_recorder = state.end_thread_turn();
        if let Err(error) = done {
            handle_failure(&mut state, &error);
            wake_recorder |= state.stage == CheckpointStage::Failed;
        }
        drop(state);
        if wake_recorder {
            wake();
        }
    }
}

impl SharedState {
    fn lock(&self) -> MutexGuard<'_, CheckpointState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread's turn. `false`: the thread must end.
    fn wait_for_turn(&self) -> bool {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.stop {
                return false;
            }
            if state.take_thread_turn(now) {
                return true;
            }
            state = if let Some(retry_at) = state.retry_at() {
                let waited = self.wake.wait_timeout(state, retry_at.saturating_duration_since(now));
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.wake.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

/// Handles a failed checkpoint. A failed sync is final until the record is reopened.
fn handle_failure(state: &mut CheckpointState, error: &rusqlite::Error) {
    if is_of_a_sync(error) {
        state.stage = CheckpointStage::Failed;
        tracing::error!(
            %error,
            "a sync during a checkpoint failed; record.db-wal has everything, and the record is reopened"
        );
    } else {
        // The next commits ask again; until then the WAL only takes more space.
        tracing::warn!(%error, "a checkpoint failed; it will be retried");
    }
}

fn is_of_a_sync(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

/// Checkpoints until few frames remain, or until it is clear that the recorder is faster.
fn checkpoint_most(shared: &SharedState, conn: &Connection) -> rusqlite::Result<()> {
    let mut before = u32::MAX;
    for _ in 0..ROUNDS {
        let moved = checkpoint_passive(conn)?;
        let left = shared.lock().frames.saturating_sub(moved);
        if left <= FEW_FRAMES || left >= before.max(CHECKPOINT_FRAMES) {
            break;
        }
        before = left;
    }
    Ok(())
}

/// Checkpoints what it can without waiting for readers. Returns the number of frames that are
/// checkpointed.
fn checkpoint_passive(conn: &Connection) -> rusqlite::Result<u32> {
    conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?
        .query_row([], |row| row.get::<_, i64>(2))
        .map(|frames| u32::try_from(frames).unwrap_or(0))
}

/// Checkpoints everything and truncates the WAL, waiting up to `wait` for readers. `false`: there
/// was a reader all the time.
///
/// SQLite waits for readers by their slot, the read mark. A new reader can take the slot that has
/// just become free, for the newest commit. Then SQLite also waits for this reader and for every
/// later one that shares the slot. A new attempt finds that these readers block nothing, copies
/// everything, and waits only for the readers that are present: later ones read only the database.
/// So this repeats attempts of a few milliseconds.
fn empty_wal(recorder: &Connection, wait: Duration) -> rusqlite::Result<bool> {
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
        // While another process checkpoints, SQLite returns without waiting.
        thread::sleep(Duration::from_millis(1));
        // Copying does not count as waiting.
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
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rusqlite::OpenFlags;

    use super::*;

    /// A reader with an open read transaction.
    fn reads(path: &Path) -> Connection {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        conn.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        conn
    }

    #[test]
    fn checkpoint__wal_is_emptied_despite_continuous_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "journal_mode", "WAL").unwrap();
        conn.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
        let stop = AtomicBool::new(false);
        let (mut emptied_all, mut size) = (true, 0);
        thread::scope(|scope| {
            // Each starts before the previous one ends.
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
                emptied_all &= empty_wal(&conn, RESTART_WAIT).unwrap();
                size += fs::metadata(path.with_extension("db-wal")).unwrap().len();
            }
            stop.store(true, Ordering::Relaxed);
            reading.join().unwrap();
        });
        assert!(emptied_all);
        assert_eq!(size, 0);
        // A reader that does not end delays the checkpoint only for the given time.
        let reader = reads(&path);
        conn.execute("INSERT INTO t VALUES (1)", []).unwrap();
        let began = Instant::now();
        assert!(!empty_wal(&conn, ERASED_WAIT).unwrap());
        assert!(began.elapsed() >= ERASED_WAIT);
        drop(reader);
        assert!(empty_wal(&conn, ERASED_WAIT).unwrap());
    }
}
