//! Moving the WAL into the database, off the recorder's path.
//!
//! A checkpoint writes and syncs the database while the recorder goes on; only what came meanwhile
//! is left, and once that is little, the recorder moves it itself between two commits. Then the
//! WAL begins anew. So it stays bounded under any load, and no commit waits for a long checkpoint.
//!
//! A sync of the database that fails is the end of checkpoints until the next start. Pages that
//! earlier rounds have moved may then be nowhere but in the WAL: a kernel counts them as written, and
//! SQLite as moved, so that a later sync that goes well would let the WAL begin anew without them. A
//! start takes the WAL from its beginning, and moves all of it again.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

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
    /// Nothing is moved any more.
    given_up: AtomicBool,
}

#[derive(Debug, Default)]
struct Asked {
    checkpoint: bool,
    /// Leave nothing of what was erased in the WAL either.
    truncate: bool,
    stop: bool,
}

/// The recorder's end.
#[derive(Debug)]
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Frames at which the next one is asked for.
    next: u32,
}

impl Checkpointer {
    /// Starts the thread. `recorder` is the recorder's connection, to count its frames; this must
    /// be called on the thread that commits with it.
    pub(super) fn start(path: &Path, recorder: &Connection) -> rusqlite::Result<Self> {
        let conn = open::checkpointer(path)?;
        recorder.wal_hook(Some(count));
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || {
            run(&theirs, &conn);
        });
        if let Err(error) = &thread {
            tracing::error!(%error, "no thread for checkpoints: the recorder makes them");
        }
        Ok(Self { shared, thread: thread.ok(), next: WORTH })
    }

    /// After each commit.
    pub(super) fn committed(&mut self, recorder: &Connection) {
        let frames = FRAMES.get();
        let before = self.shared.frames.swap(frames, Ordering::AcqRel);
        if frames < before {
            self.next = WORTH;
        }
        if frames >= self.next {
            self.next = frames.saturating_add(WORTH);
            self.ask(|asked| asked.checkpoint = true);
        }
        let unattended = self.thread.is_none() && frames >= WORTH;
        if self.shared.finish.swap(false, Ordering::AcqRel) || unattended {
            self.next = WORTH;
            if self.shared.has_given_up() {
                return;
            }
            if let Err(error) = passive(recorder) {
                self.shared.failed(&error);
            }
        }
    }

    /// The recorder has nothing to do: a good moment, if it is worth something.
    pub(super) fn idle(&mut self) {
        if self.shared.frames.load(Ordering::Acquire) >= LITTLE {
            self.ask(|asked| asked.checkpoint = true);
        }
    }

    /// Ends the thread. Whoever closes `recorder` after this moves no more than this has.
    pub(super) fn end(self, recorder: &Connection) -> rusqlite::Result<()> {
        let shared = self.shared.clone();
        drop(self);
        if shared.has_given_up() {
            recorder.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        }
        Ok(())
    }

    /// Something was erased: the WAL shall forget it too.
    pub(super) fn truncate(&self) {
        self.ask(|asked| asked.truncate = true);
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

fn run(shared: &Shared, conn: &Connection) {
    // What is erased stays due until the WAL has really been emptied.
    let mut due = false;
    loop {
        let (checkpoint, truncate) = {
            let mut asked = lock(&shared.asked);
            while !(asked.checkpoint || asked.truncate || asked.stop) {
                asked = shared.wake.wait(asked).unwrap_or_else(PoisonError::into_inner);
            }
            if asked.stop {
                return;
            }
            (std::mem::take(&mut asked.checkpoint), std::mem::take(&mut asked.truncate))
        };
        due |= truncate;
        if shared.has_given_up() {
            continue;
        }
        let done = if due {
            truncated(conn).map(|emptied| due = !emptied)
        } else if checkpoint {
            checkpointed(shared, conn)
        } else {
            Ok(())
        };
        if let Err(error) = done {
            shared.failed(&error);
        }
    }
}

impl Shared {
    fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    fn failed(&self, error: &rusqlite::Error) {
        if is_of_a_sync(error) {
            self.given_up.store(true, Ordering::Release);
            tracing::error!(
                %error,
                "the disk failed to keep the record's file; all is in its -wal file, which grows \
                 until the server is started anew"
            );
        } else {
            // The next commits ask again; nothing is lost but room.
            tracing::warn!(%error, "a checkpoint failed; it will be tried again");
        }
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

/// Moves everything and empties the WAL, waiting for readers and the recorder as long as each
/// statement may. `false`: they were busy all the time.
fn truncated(conn: &Connection) -> rusqlite::Result<bool> {
    let busy: i64 = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy != 0 {
        tracing::warn!("what was erased is still in the WAL; it will be emptied later");
    }
    Ok(busy == 0)
}

fn lock(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}
