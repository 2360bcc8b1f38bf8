//! The store: its threads, its queue, and how writes reach the recorder.

use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::{Semaphore, broadcast, oneshot};
use twinlock_core::id::ServerKey;
use twinlock_store::sequencer::Salts;
use twinlock_store::{Bounds, Published, RowKey, StoreError};

use crate::checkpoint::PriorCheckpoints;
use crate::error::DbError;
use crate::open;
use crate::open_error::OpenError;
use crate::options::StoreOptions;
use crate::readers::Readers;
use crate::record_files::{self, RecordLock};
use crate::recorder::{RecordedJob, RecorderCommand, RecorderContext, WriteJob};
use crate::write_transaction::WriteTransaction;

/// Capacity of the recorder's queue, bytes: bodies, plus [`crate::index::ENTRY`] for each entry.
///
/// When the queue is full, appends wait (backpressure). It holds several transactions, so that the
/// recorder does not run out of work.
pub(crate) const QUEUE: usize = 32 * 1024 * 1024;
/// Number of commits that a watcher may lag behind before it must read the heads itself. Each keeps
/// its bodies in memory until the slowest watcher has received it.
const COMMITS: usize = 64;

/// The recorder's thread, which returns why it ended.
pub(crate) type RecorderThread = JoinHandle<Result<(), StoreError>>;

/// A record in one SQLite file. Dropping it completes queued writes and waits for them.
pub struct EmbeddedStore {
    pub(crate) server_key: ServerKey,
    pub(crate) row_key: Arc<RowKey>,
    pub(crate) bounds: Bounds,
    pub(crate) readers: Arc<Readers>,
    pub(crate) commands: Sender<RecorderCommand>,
    /// Serializes the acquisition of queue space, so that appends are queued in the order of their
    /// calls.
    pub(crate) turn: tokio::sync::Mutex<()>,
    pub(crate) room: Arc<Semaphore>,
    /// Bytes that are recorded but not indexed.
    pub(crate) unindexed: Arc<AtomicU64>,
    pub(crate) salts: Salts,
    pub(crate) commits: broadcast::Sender<Arc<[Published]>>,
    pub(crate) recorder: Mutex<Option<RecorderThread>>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("readers", &self.readers).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the record at `path` (`record.db`, with its WAL and lock file in the same directory),
    /// and creates it if it is missing. Blocks while it migrates the schema.
    ///
    /// # Errors
    /// [`OpenError`]. An error that refuses the record leaves its files unchanged.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Arc<Self>, OpenError> {
        Self::open_locked(RecordLock::take(path)?, options)
    }

    /// [`Self::open`] for a caller that takes the lock first, to check other files before the
    /// record is created.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_locked(lock: RecordLock, options: StoreOptions) -> Result<Arc<Self>, OpenError> {
        let StoreOptions { server_key, row_key, clock, bounds } = options;
        let path = &lock.database.clone();
        let lock = Arc::new(lock);
        // The WAL may still contain content that was erased just before a crash.
        let before = PriorCheckpoints { failed: false, due: record_files::has_wal(path) };
        let conn = open::recorder(path, &server_key, clock())?;
        let file = |error| OpenError::File { path: path.to_path_buf(), error };
        let in_place = Arc::new(record_files::InPlace::of(path).map_err(file)?);
        let (commands, waiting) = mpsc::channel();
        let (started, start) = mpsc::sync_channel(1);
        let commits = broadcast::Sender::new(COMMITS);
        let unindexed = Arc::new(AtomicU64::new(0));
        let readers = Arc::new(Readers::new(path.to_path_buf(), in_place.clone(), lock.clone()));
        let context = RecorderContext {
            path: path.to_path_buf(),
            in_place,
            server_key,
            clock,
            readers: readers.clone(),
            commands: commands.clone(),
            commits: commits.clone(),
            unindexed: unindexed.clone(),
        };
        let recorder = thread::Builder::new().name("recorder".into()).spawn(move || {
            let ended = context.run_until_closed(conn, before, &waiting, &started);
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
            commits,
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
        self.write(move |transaction| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(transaction.conn.query_row(&sql, [], |_| Ok(()))?)
        })
        .await
    }

    /// Runs `work` in a transaction of the recorder, and waits until it is on disk.
    ///
    /// Once queued, it runs even if the caller drops this future.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin_write(work)?.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) fn begin_write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> Result<T, DbError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: WriteJob = Box::new(move |transaction| {
            let result = match transaction {
                Ok(transaction) => work(transaction).map_err(StoreError::from),
                Err(error) => Err(error.clone()),
            };
            RecordedJob {
                keep: result.is_ok(),
                answer: Box::new(move |failed| {
                    reply.send(failed.map_or(result, |error| Err(error.clone()))).ok();
                }),
            }
        });
        self.commands.send(RecorderCommand::Job(job)).map_err(|_| StoreError::Closed)?;
        Ok(answer)
    }

    /// Asks the recorder to end after all queued commands.
    pub(crate) fn end(&self) -> Option<RecorderThread> {
        // Fails if the recorder has ended.
        self.commands.send(RecorderCommand::Close).ok();
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Waits for the recorder to end, which takes a commit and a checkpoint.
pub(crate) fn join(recorder: Option<RecorderThread>) -> Result<(), StoreError> {
    let failed = || StoreError::Database("the recorder failed".into());
    recorder.map_or(Ok(()), |recorder| recorder.join().unwrap_or_else(|_| Err(failed())))
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.readers.close_idle();
        // The error is logged; callers that need it use `close`.
        let _ended = join(self.end());
    }
}
