//! The next segment, written with zeros by a thread before it is needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::error::LogError;
use super::faults::Faults;
use super::file::{LogFile, PIECE};

/// Pause after each piece, as a multiple of the time that it took. Commits on the same disk wait for
/// one piece at most.
const PAUSE: u32 = 3;

/// Makes one spare at a time. The thread ends with this value.
#[derive(Debug)]
pub(crate) struct Spare {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    faults: Faults,
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
    /// A writer waits for the spare.
    hurried: AtomicBool,
}

#[derive(Debug)]
enum State {
    Idle,
    Wanted(u32),
    Making,
    /// The file has this size and is all zeros on disk.
    Ready(LogFile, u32),
    Failed(LogError),
}

impl Spare {
    /// Starts the thread. `path` is the spare's name.
    pub(crate) fn start(path: &Path, faults: &Faults) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            faults: faults.clone(),
            state: Mutex::new(State::Idle),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("log-spare".into()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has a spare made, if there is none. Does not wait.
    pub(crate) fn prepare(&self, size: u32) {
        let mut state = self.shared.lock();
        if matches!(*state, State::Idle | State::Failed(_)) {
            *state = State::Wanted(size);
            self.shared.changed.notify_all();
        }
    }

    /// Takes a spare of at least this size. Waits for the thread, which tries at most once.
    pub(crate) fn take(&self, size: u32) -> Result<(LogFile, u32), LogError> {
        let state = self.shared.lock();
        self.shared.hurried.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        let taken = self.wait_for(size, state);
        self.shared.hurried.store(false, Ordering::Relaxed);
        taken
    }

    fn wait_for(
        &self,
        size: u32,
        mut state: MutexGuard<'_, State>,
    ) -> Result<(LogFile, u32), LogError> {
        let mut tried = false;
        loop {
            match std::mem::replace(&mut *state, State::Idle) {
                State::Ready(file, ready) if ready >= size => return Ok((file, ready)),
                State::Failed(error) if tried => return Err(error),
                State::Idle | State::Ready(..) | State::Failed(_) => {
                    *state = State::Wanted(size);
                    tried = true;
                    self.shared.changed.notify_all();
                }
                // Neither is asked for a smaller one once this call has asked for its own.
                busy @ (State::Wanted(_) | State::Making) => *state = busy,
            }
            state = self.shared.wait(state);
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        {
            // Under the lock, so that the thread does not miss the notice.
            let _state = self.shared.lock();
            self.shared.ended.store(true, Ordering::Relaxed);
            self.shared.changed.notify_all();
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that prepares segments has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !self.ended.load(Ordering::Relaxed) {
            let State::Wanted(size) = *state else {
                state = self.wait(state);
                continue;
            };
            *state = State::Making;
            drop(state);
            let made = self.make(size);
            state = self.lock();
            *state = match made {
                Ok(file) => State::Ready(file, size),
                Err(error) => {
                    tracing::warn!(%error, "the next segment of the record could not be prepared");
                    State::Failed(LogError::io(&self.path, &error))
                }
            };
            self.changed.notify_all();
        }
    }

    /// Writes a new spare: an existing one may be half-written or of another size.
    fn make(&self, size: u32) -> io::Result<LogFile> {
        let file = LogFile::create(&self.path, &self.faults)?;
        let written = self.fill(&file, u64::from(size)).and_then(|()| file.sync());
        if let Err(error) = written {
            // The room is worth more than its content.
            let _removed = std::fs::remove_file(&self.path);
            return Err(error);
        }
        Ok(file)
    }

    /// Writes zeros piece by piece, with pauses. One large sync would delay the commits on the same
    /// disk by its whole time.
    fn fill(&self, file: &LogFile, size: u64) -> io::Result<()> {
        file.reserve(size)?;
        // Past the page cache, which costs more CPU time than recording the entries.
        let mut direct = file.direct().ok();
        let mut offset = 0;
        while offset < size {
            if self.ended.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let length = (size - offset).min(PIECE as u64);
            let began = Instant::now();
            match &direct {
                Some(to) => {
                    let written = to.zero(offset, length);
                    if written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
                        direct = None;
                        continue;
                    }
                    written?;
                }
                None => file.zero(offset, length).and_then(|()| file.sync())?,
            }
            offset += length;
            self.pause(PAUSE * began.elapsed());
        }
        Ok(())
    }

    /// Leaves the disk to others, unless a writer waits.
    fn pause(&self, time: Duration) {
        let order = Ordering::Relaxed;
        let goes_on = |_: &mut State| !self.ended.load(order) && !self.hurried.load(order);
        drop(self.changed.wait_timeout_while(self.lock(), time, goes_on));
    }
}
