//! The store of one machine, on SQLite: one file, WAL, `synchronous=FULL`.
//!
//! One thread writes ([`recorder`]), a few connections read, and another thread checkpoints the
//! WAL. A lock file ensures that only one process has the record open.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod checkpoint;
mod classic;
mod contract;
mod conversations;
mod credentials;
mod entries;
mod entry_writer;
mod error;
mod files;
mod fts_query;
mod head_cache;
mod index;
mod open;
mod people;
mod readers;
mod recorder;
mod row;
mod search;
mod sources;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use tokio::sync::{Semaphore, broadcast, oneshot};
use twinlock_core::id::ServerKey;

use checkpoint::{Before, Checkpointer};
use error::DbError;
pub use open::{OpenError, RecordLock};
use readers::Readers;
use recorder::{Command, Desk, Ended, Job, JobDone};

use twinlock_store::sequencer::Salts;
use twinlock_store::{Bounds, Clock, Newest, Published, RowKey, StoreError};

/// Capacity of the recorder's queue, bytes: bodies, plus [`ENTRY`] for each entry.
///
/// When the queue is full, appends wait (backpressure). It holds several transactions, so that the
/// recorder does not run out of work.
const QUEUE: usize = 32 * 1024 * 1024;
/// Size of an entry in the queue apart from its body, bytes.
const ENTRY: usize = 256;
/// Number of commits that a watcher may lag behind before it must read the heads itself. Each keeps
/// its bodies in memory until the slowest watcher has received it.
const NEWS: usize = 64;
/// Back-off before another attempt to reopen a record.
const AGAIN: Duration = Duration::from_secs(1);

/// Options for opening a record.
pub struct Options {
    server_key: ServerKey,
    row_key: RowKey,
    clock: Clock,
    bounds: Bounds,
}

/// What is known of a record before it is opened.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Entries that were on disk in it.
    pub entries: Vec<Newest>,
    /// It was closed in order, and not opened since.
    pub closed: bool,
}

impl Options {
    /// Options with the system clock and the default bounds.
    ///
    /// `server_key` goes into `link_0` of new conversations. `row_key` is the key of the MACs over
    /// users and credentials.
    #[must_use]
    pub fn new(server_key: ServerKey, row_key: RowKey) -> Self {
        let bounds = Bounds::default();
        let clock = Arc::new(system_ms);
        Self { server_key, row_key, clock, bounds }
    }

    /// Sets other bounds.
    #[must_use]
    pub fn bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// Sets another clock.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }
}

fn system_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The recorder's thread, which returns why it ended.
type Recorder = JoinHandle<Result<(), StoreError>>;

/// A record in one SQLite file. Dropping it completes queued writes and waits for them.
pub struct SqliteStore {
    server_key: ServerKey,
    row_key: Arc<RowKey>,
    bounds: Bounds,
    readers: Arc<Readers>,
    commands: Sender<Command>,
    /// Serializes the acquisition of queue space, so that appends are queued in the order of their
    /// calls.
    turn: tokio::sync::Mutex<()>,
    room: Arc<Semaphore>,
    /// Bytes that are recorded but not indexed.
    unindexed: Arc<AtomicU64>,
    salts: Salts,
    news: broadcast::Sender<Arc<[Published]>>,
    recorder: Mutex<Option<Recorder>>,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("readers", &self.readers).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the record at `path` (`record.db`, with its WAL and lock file in the same directory),
    /// and creates it if it is missing. Blocks while it migrates the schema.
    ///
    /// # Errors
    /// [`OpenError`]. An error that refuses the record leaves its files unchanged.
    pub fn open(path: &Path, options: Options) -> Result<Arc<Self>, OpenError> {
        Self::open_locked(RecordLock::take(path)?, options)
    }

    /// [`Self::open`] for a caller that takes the lock first, to check other files before the
    /// record is created.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_locked(lock: RecordLock, options: Options) -> Result<Arc<Self>, OpenError> {
        let Options { server_key, row_key, clock, bounds } = options;
        let path = &lock.database.clone();
        let lock = Arc::new(lock);
        // The WAL may still contain content that was erased just before a crash.
        let before = Before { failed: false, due: open::has_wal(path) };
        let conn = open::recorder(path, &server_key, clock())?;
        let file = |error| OpenError::File { path: path.to_path_buf(), error };
        let in_place = Arc::new(open::InPlace::of(path).map_err(file)?);
        let (commands, waiting) = mpsc::channel();
        let (started, start) = mpsc::sync_channel(1);
        let news = broadcast::Sender::new(NEWS);
        let unindexed = Arc::new(AtomicU64::new(0));
        let readers = Arc::new(Readers::new(path.to_path_buf(), in_place.clone(), lock.clone()));
        let desk = Opened {
            path: path.to_path_buf(),
            in_place,
            server_key,
            clock,
            readers: readers.clone(),
            commands: commands.clone(),
            news: news.clone(),
            unindexed: unindexed.clone(),
        };
        let recorder = thread::Builder::new().name("recorder".into()).spawn(move || {
            let ended = desk.run(conn, before, &waiting, &started);
            if let Err(error) = &ended {
                tracing::error!(%error, "the recorder has ended");
            }
            // Released last.
            drop(lock);
            ended
        });
        let fault = |problem: String| OpenError::Database { path: path.to_path_buf(), problem };
        let recorder = recorder.map_err(|error| fault(error.to_string()))?;
        if start.recv().is_err() {
            let ended = join(Some(recorder)).err();
            let unknown = || "its threads could not be started".to_owned();
            return Err(fault(ended.map_or_else(unknown, |error| error.to_string())));
        }
        Ok(Arc::new(Self {
            server_key,
            row_key: Arc::new(row_key),
            bounds,
            readers,
            commands,
            turn: tokio::sync::Mutex::new(()),
            room: Arc::new(Semaphore::new(QUEUE)),
            unindexed,
            salts: Salts::default(),
            news,
            recorder: Mutex::new(Some(recorder)),
        }))
    }

    /// Limits the file to this number of 4 KiB pages, to simulate a full disk; `None` lifts the
    /// limit.
    ///
    /// # Errors
    /// [`StoreError`].
    #[cfg(feature = "test-util")]
    pub async fn limit_pages(&self, pages: Option<u32>) -> Result<(), StoreError> {
        let pages = pages.unwrap_or(u32::MAX - 1);
        self.write(move |desk| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(desk.conn.query_row(&sql, [], |_| Ok(()))?)
        })
        .await
    }

    /// Runs `work` in a transaction of the recorder, and waits until it is on disk.
    ///
    /// Once queued, it runs even if the caller drops this future.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin_write(work)?.await.unwrap_or(Err(StoreError::Closed))
    }

    fn begin_write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |desk| {
            let result = match desk {
                Ok(desk) => work(desk).map_err(StoreError::from),
                Err(error) => Err(error.clone()),
            };
            JobDone {
                keep: result.is_ok(),
                answer: Box::new(move |failed| {
                    reply.send(failed.map_or(result, |error| Err(error.clone()))).ok();
                }),
            }
        });
        self.commands.send(Command::Job(job)).map_err(|_| StoreError::Closed)?;
        Ok(answer)
    }

    /// Asks the recorder to end after all queued commands.
    fn end(&self) -> Option<Recorder> {
        // Fails if the recorder has ended.
        self.commands.send(Command::Close).ok();
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the recorder's thread needs to reopen its record.
struct Opened {
    path: PathBuf,
    in_place: Arc<open::InPlace>,
    server_key: ServerKey,
    clock: Clock,
    readers: Arc<Readers>,
    commands: Sender<Command>,
    news: broadcast::Sender<Arc<[Published]>>,
    unindexed: Arc<AtomicU64>,
}

impl Opened {
    /// Records until the store closes. Reopens the record after each failed sync of a checkpoint.
    fn run(
        &self,
        mut conn: Connection,
        mut before: Before,
        waiting: &Receiver<Command>,
        started: &SyncSender<()>,
    ) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        loop {
            match self.record(&conn, before, waiting, &mut batch, started) {
                Ok(Ended::Closed(ended)) => return ended,
                Ok(Ended::Failed(failed)) => before = failed,
                Err(error) if !before.failed => return Err(error),
                Err(error) => {
                    open::leave_files(&conn).map_err(DbError::from)?;
                    if !still_closed(&error, waiting, &mut batch) {
                        return Ok(());
                    }
                }
            }
            // Close every connection, so that SQLite forgets which pages it has checkpointed. The WAL
            // stays: `in_place` knows this file, and a failed sync may have lost what it has.
            self.readers.without_any(|| drop(conn));
            conn = loop {
                let again = || open::again(&self.path, &self.server_key, (self.clock)());
                let opened = self.in_place.check().and_then(|()| {
                    again().map_err(|error| StoreError::Database(error.to_string()))
                });
                match opened {
                    Ok(conn) => break conn,
                    Err(error) => {
                        if !still_closed(&error, waiting, &mut batch) {
                            return Ok(());
                        }
                    }
                }
            };
            tracing::warn!("the record was reopened");
        }
    }

    fn record(
        &self,
        conn: &Connection,
        before: Before,
        waiting: &Receiver<Command>,
        batch: &mut Vec<Command>,
        started: &SyncSender<()>,
    ) -> Result<Ended, StoreError> {
        let commands = self.commands.clone();
        let wake = move || drop(commands.send(Command::Look));
        let checkpointer = Checkpointer::start(&self.path, conn, before, wake)?;
        recorder::run(self, conn, checkpointer, waiting, batch, started)
    }
}

/// Refuses commands until the next attempt to reopen the record. `false`: the store is closing.
fn still_closed(error: &StoreError, waiting: &Receiver<Command>, batch: &mut Vec<Command>) -> bool {
    tracing::error!(%error, "the record cannot be reopened yet");
    recorder::refuse(waiting, batch, error, AGAIN)
}

/// Waits for the recorder to end, which takes a commit and a checkpoint.
fn join(recorder: Option<Recorder>) -> Result<(), StoreError> {
    let failed = || StoreError::Database("the recorder failed".into());
    recorder.map_or(Ok(()), |recorder| recorder.join().unwrap_or_else(|_| Err(failed())))
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.readers.close_idle();
        // The error is logged; callers that need it use `close`.
        let _ended = join(self.end());
    }
}
