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

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;

use super::open;
use crate::StoreError;

/// Frames (pages) of WAL after which a checkpoint is worth its two syncs: 4 MiB. Smaller ones
/// write the same hot pages more often; larger ones keep the disk longer from the commits' syncs, and
/// make the WAL and a start after a crash longer.
const WORTH: u32 = 1024;
/// Frames that are little enough to be moved between two commits: half a MiB, below a millisecond.
const LITTLE: u32 = 128;
/// Frames at which the recorder waits for those who read, so that the WAL can begin anew: 64 MiB.
const LARGE: u32 = 16 * WORTH;
/// How long it waits for them then.
const RESTART_WAIT: Duration = Duration::from_secs(1);
/// How long it waits for them to have the WAL forget what was erased.
const FORGET_WAIT: Duration = Duration::from_millis(50);
/// What one attempt waits, about.
const ATTEMPT: Duration = Duration::from_millis(10);
/// When what was erased is tried again, if it was in vain.
const AGAIN: Duration = Duration::from_secs(1);
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

/// Whose turn it is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody's, until there is more to move.
    #[default]
    Idle,
    /// Nobody's, until there is much more or something is erased: the disk is given time.
    Resting,
    /// The thread's, to move what it can.
    Asked,
    /// Somebody moves.
    Moving,
    /// The recorder's, to move the rest.
    Left,
    /// Nobody's any more: a sync has failed.
    Failed,
}

/// Whether something that was erased may still be in the WAL.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Erased {
    #[default]
    No,
    /// It is, and the WAL is to be emptied.
    Now,
    /// It is, and the WAL is to be emptied then: it was tried in vain, or a start comes first.
    Later(Instant),
}

/// What the recorder is to do in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    /// Move the rest, as far as nobody reads what it would replace.
    Rest,
    /// Empty the WAL of what was erased, and wait a moment for whoever reads.
    Forget,
    /// Empty the WAL, which is large, and wait for whoever reads.
    Restart,
}

/// What recorder and thread know together.
#[derive(Debug)]
struct State {
    stage: Stage,
    erased: Erased,
    /// Frames in the WAL after the last commit.
    frames: u32,
    /// Frames at which there is enough to move; `None`: as many more as there are after the next
    /// commit.
    next: Option<u32>,
    /// Frames at which whoever reads is waited for.
    large: u32,
    stop: bool,
}

impl State {
    fn new(before: Before, now: Instant) -> Self {
        let (stage, next) = match before.failed {
            true => (Stage::Resting, None),
            false => (Stage::Idle, Some(WORTH)),
        };
        let erased = if before.due { Erased::Later(now + AGAIN) } else { Erased::No };
        Self { stage, erased, frames: 0, next, large: LARGE, stop: false }
    }

    fn begins_anew(&mut self) {
        (self.next, self.large) = (Some(WORTH), LARGE);
        match self.stage {
            Stage::Resting => self.stage = Stage::Idle,
            // Nothing was left.
            Stage::Left if self.erased != Erased::Now => self.stage = Stage::Idle,
            _ => {}
        }
    }

    fn committed(&mut self, frames: u32) {
        if frames < self.frames {
            self.begins_anew();
        }
        self.frames = frames;
        let more = frames.saturating_add(WORTH);
        let next = *self.next.get_or_insert(more);
        if frames >= next && matches!(self.stage, Stage::Idle | Stage::Resting) {
            self.next = Some(more);
            self.stage = Stage::Asked;
        }
    }

    /// The recorder has nothing to do: a good moment, if it is worth something.
    fn idle(&mut self) {
        if self.frames >= LITTLE && self.stage == Stage::Idle {
            self.stage = Stage::Asked;
        }
    }

    /// Something was erased: the WAL shall forget it too.
    fn erase(&mut self) {
        // Who erases much does not wait for the same reader each time.
        if self.erased == Erased::No {
            self.erased = Erased::Now;
        }
        if matches!(self.stage, Stage::Idle | Stage::Resting) {
            self.stage = Stage::Asked;
        }
    }

    /// When something is to be tried again, if it is not somebody's turn before.
    fn again(&self) -> Option<Instant> {
        match (self.erased, self.stage) {
            (Erased::Later(at), Stage::Idle | Stage::Asked | Stage::Left) => Some(at),
            _ => None,
        }
    }

    fn is_again(&mut self, now: Instant) -> bool {
        let again = self.again().is_some_and(|at| now >= at);
        if again {
            self.erased = Erased::Now;
        }
        again
    }

    /// The thread's turn, if it is.
    fn take(&mut self, now: Instant) -> bool {
        // What is left is taken back for that: the recorder may be idle, and hears of it so.
        let takes = self.is_again(now) || self.stage == Stage::Asked;
        if takes {
            self.stage = Stage::Moving;
        }
        takes
    }

    /// The thread has done what it can. Says whether the recorder is to hear of it.
    fn moved(&mut self) -> bool {
        self.stage = Stage::Left;
        self.erased == Erased::Now
    }

    /// The recorder's turn, if it is.
    fn take_rest(&mut self, now: Instant) -> Option<Finish> {
        if self.stage != Stage::Left {
            return None;
        }
        self.is_again(now);
        self.stage = Stage::Moving;
        Some(match self.erased {
            // Readers that come one after the other may keep it from beginning anew as long as
            // nobody waits for them.
            _ if self.frames >= self.large => Finish::Restart,
            Erased::Now => Finish::Forget,
            Erased::No | Erased::Later(_) => Finish::Rest,
        })
    }

    /// `emptied`: the WAL is; `None`: the disk has failed to.
    fn finished(&mut self, finish: Finish, emptied: Option<bool>, now: Instant) {
        self.stage = Stage::Idle;
        if emptied == Some(true) {
            self.erased = Erased::No;
            self.frames = 0;
            return self.begins_anew();
        }
        if finish == Finish::Restart && emptied.is_some() {
            // Somebody who reads for long is not waited for again and again.
            self.large = self.frames.saturating_mul(2);
        }
        if self.erased == Erased::Now {
            self.erased = Erased::Later(now + AGAIN);
        }
    }
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

    fn state(failed: bool, due: bool) -> (State, Instant) {
        let now = Instant::now();
        (State::new(Before { failed, due }, now), now)
    }

    #[test]
    fn the_recorder_has_its_turn_however_much_there_is_to_move() {
        let (mut state, now) = state(false, false);
        state.committed(WORTH - 1);
        assert!(!state.take(now));
        state.committed(WORTH);
        assert!(state.take(now));
        // While the thread moves, and after that until the recorder has moved the rest.
        state.committed(4 * WORTH);
        assert!(!state.take(now) && state.take_rest(now).is_none());
        assert!(!state.moved());
        state.committed(8 * WORTH);
        state.idle();
        assert!(!state.take(now));
        assert_eq!(state.take_rest(now), Some(Finish::Rest));
        assert!(!state.take(now) && state.take_rest(now).is_none());
        state.finished(Finish::Rest, Some(false), now);
        state.committed(8 * WORTH + 1);
        assert!(state.take(now));
    }

    #[test]
    fn nothing_is_left_once_the_wal_has_begun_anew() {
        let (mut state, now) = state(false, false);
        state.committed(LITTLE - 1);
        state.idle();
        assert!(!state.take(now));
        state.committed(LITTLE);
        state.idle();
        assert!(state.take(now) && !state.moved());
        state.committed(3);
        assert_eq!(state.take_rest(now), None);
        state.committed(WORTH);
        assert!(state.take(now));
    }

    #[test]
    fn who_reads_for_long_is_waited_for_once_until_twice_as_much_is_there() {
        let (mut state, now) = state(false, false);
        let turn = |state: &mut State, frames, emptied| {
            state.committed(frames);
            assert!(state.take(now) && !state.moved());
            let finish = state.take_rest(now).unwrap();
            state.finished(finish, emptied, now);
            finish
        };
        assert_eq!(turn(&mut state, LARGE - 1, Some(false)), Finish::Rest);
        // Nobody was waited for.
        assert_eq!(turn(&mut state, LARGE + WORTH, None), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 2 * WORTH, Some(false)), Finish::Restart);
        assert_eq!(turn(&mut state, LARGE + 3 * WORTH, Some(false)), Finish::Rest);
        assert_eq!(turn(&mut state, 2 * (LARGE + 2 * WORTH), Some(false)), Finish::Restart);
        state.committed(1);
        assert_eq!(turn(&mut state, LARGE, Some(true)), Finish::Restart);
        assert_eq!(turn(&mut state, WORTH, Some(false)), Finish::Rest);
    }

    #[test]
    fn what_was_erased_is_forgotten_at_once_or_tried_again_in_a_while() {
        let (mut state, now) = state(false, false);
        state.committed(3);
        state.erase();
        assert!(state.take(now));
        // The recorder may be idle.
        assert!(state.moved());
        // Though the WAL begins anew, it may be in what is behind.
        state.committed(2);
        assert_eq!(state.take_rest(now), Some(Finish::Forget));
        state.finished(Finish::Forget, Some(false), now);
        let again = now + AGAIN;
        assert_eq!(state.again(), Some(again));
        // Meanwhile nobody who reads is waited for, whatever else is erased; and it stays that time.
        state.erase();
        state.committed(WORTH);
        assert!(state.take(now) && !state.moved());
        assert_eq!(state.take_rest(now), Some(Finish::Rest));
        state.finished(Finish::Rest, Some(false), now);
        assert_eq!(state.again(), Some(again));
        assert!(!state.take(now) && state.take(again) && state.moved());
        assert_eq!(state.take_rest(again), Some(Finish::Forget));
        state.finished(Finish::Forget, Some(true), again);
        assert!(state.again().is_none() && !state.take(again));
    }

    #[test]
    fn a_turn_of_the_recorder_that_comes_in_time_forgets_too() {
        let (mut state, now) = state(false, true);
        state.committed(WORTH);
        assert!(state.take(now) && !state.moved());
        assert_eq!(state.take_rest(now + AGAIN), Some(Finish::Forget));
    }

    #[test]
    fn what_a_crash_left_is_tried_in_a_while_and_after_a_failed_sync_once_there_is_much_more() {
        let (mut crashed, now) = state(false, true);
        assert_eq!(crashed.again(), Some(now + AGAIN));
        assert!(!crashed.take(now) && crashed.take(now + AGAIN));
        let (mut failed, now) = state(true, true);
        assert!(failed.again().is_none());
        failed.committed(5 * WORTH);
        failed.idle();
        assert!(!failed.take(now + AGAIN));
        failed.committed(6 * WORTH - 1);
        assert!(!failed.take(now + AGAIN));
        failed.committed(6 * WORTH);
        assert!(failed.take(now));
        // Whoever erases something new does not wait for that.
        let (mut failed, now) = state(true, false);
        failed.erase();
        assert!(failed.take(now));
    }

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
