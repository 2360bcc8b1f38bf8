//! Moving the WAL into the database, off the recorder's path.
//!
//! A checkpoint writes and syncs the database while the recorder goes on; only what came meanwhile
//! is left, and once that is little, the recorder moves it itself between two commits. Then the
//! WAL begins anew. So it stays bounded under any load, and no commit waits for a long checkpoint.
//!
//! A sync of the database that fails is the end of that. SQLite counts what a checkpoint has moved
//! beside commits as moved, and leaves its sync to the next one; and after a sync that failed a
//! kernel counts such pages as written, or drops them and reads what was there before. So a later
//! sync that goes well would let the WAL begin anew without them, and what is read meanwhile may be
//! of before. The recorder closes every connection then and opens the record anew: that takes the
//! WAL from its beginning, where all of it still is.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;

use super::open;

/// Frames (pages) of WAL after which a checkpoint is worth its two syncs: 4 MiB. Smaller ones
/// write the same hot pages more often; larger ones keep the disk longer from the commits' syncs, and
/// make the WAL and a start after a crash longer.
const WORTH: u32 = 1024;
/// Frames that are little enough to be moved between two commits: half a MiB, below a millisecond.
const LITTLE: u32 = 128;
/// Frames at which the recorder waits for those who read, so that the WAL can begin anew: 64 MiB.
const LARGE: u32 = 16 * WORTH;
/// When what could not be emptied is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Rounds after which the recorder takes over whatever is left: it must then be slowed down, since
/// the disk cannot follow.
const ROUNDS: u32 = 8;

thread_local! {
    /// Frames in the WAL after the last commit of this thread's connection.
    static FRAMES: Cell<u32> = const { Cell::new(0) };
}

fn count(_: &Wal, frames: std::ffi::c_int) -> rusqlite::Result<()> {
    FRAMES.set(u32::try_from(frames).unwrap_or(0));
    Ok(())
}

/// What recorder and checkpointer tell each other.
#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Asked>,
    wake: Condvar,
    /// Frames in the WAL, as the recorder last saw it.
    frames: AtomicU32,
    /// The recorder shall move the rest.
    finish: AtomicBool,
    /// Held while something is moved, until it is known whether that has failed.
    turn: Mutex<()>,
    /// A sync has failed: nothing is moved any more.
    failed: AtomicBool,
    /// Something that was erased may still be in the WAL.
    due: AtomicBool,
    /// The disk is given time.
    rests: AtomicBool,
}

#[derive(Debug, Default)]
struct Asked {
    checkpoint: bool,
    stop: bool,
}

/// The recorder's end.
#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Frames at which the next one is asked for.
    next: u32,
    /// Frames below which none is; `None`: as many more as there are after the next commit.
    least: Option<u32>,
    /// Frames at which whoever reads is waited for.
    large: u32,
}

/// What was before this opening of the record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// A sync has failed.
    pub(super) failed: bool,
    /// Something that was erased may still be in the WAL.
    pub(super) due: bool,
}

impl Checkpointer {
    /// Starts the thread. `recorder` is the recorder's connection, to count its frames; this must
    /// be called on the thread that commits with it. `wake` is called once a sync has failed. After
    /// one that has failed before, the disk is given time.
    pub(super) fn start(
        path: &Path,
        recorder: &Connection,
        before: Before,
        wake: impl Fn() + Send + 'static,
    ) -> rusqlite::Result<Self> {
        let conn = open::checkpointer(path)?;
        recorder.wal_hook(Some(count));
        let (due, rests) = (AtomicBool::new(before.due), AtomicBool::new(before.failed));
        let shared = Arc::new(Shared { due, rests, ..Shared::default() });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            run(&theirs, &conn, &wake);
        });
        if let Err(error) = &thread {
            tracing::error!(%error, "no thread for checkpoints: the recorder makes them");
        }
        let least = if before.failed { None } else { Some(0) };
        Ok(Self { shared, thread: thread.ok(), next: WORTH, least, large: LARGE })
    }

    /// After each commit.
    pub(super) fn committed(&mut self, recorder: &Connection) {
        let frames = FRAMES.get();
        let before = self.shared.frames.swap(frames, Ordering::AcqRel);
        if frames < before {
            (self.next, self.least, self.large) = (WORTH, Some(0), LARGE);
        }
        let least = *self.least.get_or_insert(frames.saturating_add(WORTH));
        if frames < least {
            return;
        }
        self.shared.rests.store(false, Ordering::Release);
        if frames >= self.next {
            self.next = frames.saturating_add(WORTH);
            self.ask(|asked| asked.checkpoint = true);
        }
        let unattended = self.thread.is_none() && frames >= WORTH;
        if self.shared.finish.swap(false, Ordering::AcqRel) || unattended {
            self.finish(recorder);
        }
    }

    fn finish(&mut self, recorder: &Connection) {
        // The thread is at it: once it is done.
        let Ok(_turn) = self.shared.turn.try_lock() else {
            return self.shared.finish.store(true, Ordering::Release);
        };
        if self.has_failed() {
            return;
        }
        let frames = self.shared.frames.load(Ordering::Acquire);
        // Readers that come one after the other may keep it from beginning anew as long as nobody
        // waits for them.
        let done = if frames < self.large {
            passive(recorder).map(|_| ())
        } else {
            // Somebody who reads for long is not waited for again and again.
            self.large = frames.saturating_mul(2);
            restarted(recorder)
        };
        if let Err(error) = done {
            self.shared.fails(&error);
        }
    }

    /// The recorder has nothing to do: a good moment, if it is worth something.
    pub(super) fn idle(&mut self) {
        let frames = self.shared.frames.load(Ordering::Acquire);
        if frames >= LITTLE && self.least.is_some_and(|least| frames >= least) {
            self.ask(|asked| asked.checkpoint = true);
        }
    }

    /// A sync has failed: the record is to be opened anew.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }

    /// Ends the thread. Whoever closes `recorder` after this moves no more than this has.
    pub(super) fn end(self, recorder: &Connection) -> rusqlite::Result<Option<Before>> {
        let shared = self.shared.clone();
        drop(self);
        if !shared.has_failed() {
            return Ok(None);
        }
        recorder.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(Some(Before { failed: true, due: shared.due.load(Ordering::Acquire) }))
    }

    /// Something was erased: the WAL shall forget it too.
    pub(super) fn truncate(&self) {
        self.shared.due.store(true, Ordering::Release);
        self.ask(|asked| asked.checkpoint = true);
    }

    fn ask(&self, ask: impl FnOnce(&mut Asked)) {
        ask(&mut lock(&self.shared.asked));
        self.shared.wake.notify_one();
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.ask(|asked| asked.stop = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread failed");
        }
    }
}

fn run(shared: &Shared, conn: &Connection, wake: &dyn Fn()) {
    loop {
        {
            let mut asked = lock(&shared.asked);
            while !(asked.checkpoint || asked.stop) {
                asked = shared.wait(asked);
            }
            if asked.stop {
                return;
            }
            asked.checkpoint = false;
        }
        let _turn = lock(&shared.turn);
        if shared.has_failed() {
            continue;
        }
        // What is erased stays due until the WAL has really been emptied.
        let done = if shared.due.swap(false, Ordering::AcqRel) {
            // Most of it without the writer's lock.
            let emptied = passive(conn).and_then(|_| truncated(conn));
            if !matches!(emptied, Ok(true)) {
                shared.due.store(true, Ordering::Release);
                // Nothing else would have it begin anew.
                let grows = shared.frames.load(Ordering::Acquire) >= WORTH;
                shared.finish.fetch_or(grows, Ordering::AcqRel);
            }
            emptied.map(|_| ())
        } else {
            checkpointed(shared, conn)
        };
        if let Err(error) = done
            && shared.fails(&error)
        {
            wake();
        }
    }
}

impl Shared {
    /// Until it is asked; or for a while, if something has been tried in vain.
    fn wait<'a>(&self, asked: MutexGuard<'a, Asked>) -> MutexGuard<'a, Asked> {
        let resting = self.rests.load(Ordering::Acquire) || self.has_failed();
        if resting || !self.due.load(Ordering::Acquire) {
            return self.wake.wait(asked).unwrap_or_else(PoisonError::into_inner);
        }
        let waited = self.wake.wait_timeout(asked, AGAIN);
        let (mut asked, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        asked.checkpoint |= waited.timed_out();
        asked
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Says whether that is the end.
    fn fails(&self, error: &rusqlite::Error) -> bool {
        let last = is_of_a_sync(error);
        if last {
            self.failed.store(true, Ordering::Release);
            tracing::error!(
                %error,
                "the disk failed to keep the record's file; all is in its -wal file, and the record \
                 is opened anew"
            );
        } else {
            // The next commits ask again; nothing is lost but room.
            tracing::warn!(%error, "a checkpoint failed; it will be tried again");
        }
        last
    }
}

fn is_of_a_sync(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC))
}

fn checkpointed(shared: &Shared, conn: &Connection) -> rusqlite::Result<()> {
    for _ in 0..ROUNDS {
        let moved = passive(conn)?;
        let left = shared.frames.load(Ordering::Acquire).saturating_sub(moved);
        if left <= LITTLE {
            break;
        }
    }
    shared.finish.store(true, Ordering::Release);
    Ok(())
}

/// Moves what can be moved without waiting for anybody, and says how many frames that makes.
fn passive(conn: &Connection) -> rusqlite::Result<u32> {
    conn.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?
        .query_row([], |row| row.get::<_, i64>(2))
        .map(|frames| u32::try_from(frames).unwrap_or(0))
}

/// Moves everything, waiting for whoever reads, so that the recorder's next commit begins the WAL
/// anew.
fn restarted(recorder: &Connection) -> rusqlite::Result<()> {
    recorder.busy_handler(Some(open::wait_a_second))?;
    let busy: rusqlite::Result<i64> =
        recorder.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0));
    recorder.busy_handler(Some(open::wait))?;
    if busy? != 0 {
        tracing::warn!("somebody reads the record for long: its -wal file goes on growing");
    }
    Ok(())
}

/// Moves everything and empties the WAL, waiting for readers and the recorder as long as this
/// connection does. `false`: they were busy all the time.
fn truncated(conn: &Connection) -> rusqlite::Result<bool> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy != 0 {
        tracing::debug!("what was erased is still in the WAL; it will be emptied in a moment");
    }
    Ok(busy == 0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
