//! The store: its threads, its queue, and how writes reach the recorder.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, broadcast, oneshot};
use twinlock_core::id::ServerKey;
use twinlock_store::sequencer::Salts;
use twinlock_store::{Bounds, Published, RowKey, StoreError};

use crate::database::{self, DatabaseFile};
use crate::error::DbError;
use crate::index::Indexer;
use crate::open;
use crate::open_error::OpenError;
use crate::options::{Expected, StoreOptions};
use crate::people::WriteTransaction;
use crate::people::writer::PeopleWriter;
use crate::readers::Readers;
use crate::record_lock::RecordLock;
use crate::recorder::{RecordedJob, RecorderCommand, WriteJob};
use crate::words::{WordsFeeder, WordsHandle};

/// Capacity of the recorder's queue, bytes: bodies, plus [`crate::words::ENTRY`] for each entry.
///
/// When the queue is full, appends wait (backpressure). It holds several batches, so that the
/// recorder does not run out of work.
pub(crate) const QUEUE: usize = 32 * 1024 * 1024;
/// Number of commits that a watcher may lag behind before it must read the heads itself. Each keeps
/// its bodies in memory until the slowest watcher has received it.
pub(crate) const COMMITS: usize = 64;

/// The running threads, in the order in which they end.
pub(crate) struct Threads {
    pub(crate) recorder: JoinHandle<(Result<(), StoreError>, PeopleWriter)>,
    pub(crate) words: WordsFeeder,
    pub(crate) indexer: Indexer,
    pub(crate) people: DatabaseFile,
    /// Released last.
    pub(crate) lock: Arc<RecordLock>,
}

impl Threads {
    /// Waits until the threads have ended. The recorder ends the other two.
    pub(crate) fn join(self) -> Result<(), StoreError> {
        let (recorder, people) = match self.recorder.join() {
            Ok((ended, people)) => (ended, Some(people)),
            Err(_) => (Err(StoreError::Database("the recorder failed".into())), None),
        };
        let (words, indexer) = (self.words.join(), self.indexer.join());
        if self.people.sync_failed()
            && let Some(people) = &people
            && let Err(error) = database::leave_wal(people.conn(), true)
        {
            tracing::error!(%error, "the WAL of people.db is copied without what it lacks");
        }
        drop(people);
        drop(self.lock);
        recorder.and(words).and(indexer)
    }
}

/// A record in one directory. Dropping it completes queued writes and waits for them.
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
    pub(crate) words: WordsHandle,
    pub(crate) salts: Arc<Salts>,
    pub(crate) commits: broadcast::Sender<Arc<[Published]>>,
    pub(crate) people: DatabaseFile,
    pub(crate) threads: Mutex<Option<Threads>>,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the record in `directory`, and creates it if it is missing. Blocks while it reads the
    /// end of the log.
    ///
    /// # Errors
    /// [`OpenError`]. An error that refuses the record leaves its files unchanged.
    pub fn open(directory: &Path, options: StoreOptions) -> Result<Arc<Self>, OpenError> {
        Self::open_locked(RecordLock::take(directory)?, options, &Expected::default())
    }

    /// [`Self::open`] for a caller that takes the lock first, and knows entries that were on disk.
    ///
    /// If the last batch does not verify and one of them is not before it, the batch is damaged and
    /// may have it. Otherwise that batch was never acknowledged, and a record without expected
    /// entries is older than they are: it is opened.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_locked(
        lock: RecordLock,
        options: StoreOptions,
        expected: &Expected,
    ) -> Result<Arc<Self>, OpenError> {
        open::open(lock, options, expected)
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

    /// Waits until the unlogged columns of `people.db` are on disk.
    pub(crate) async fn sync_people(&self) -> Result<(), StoreError> {
        let people = self.people.clone();
        let synced = tokio::task::spawn_blocking(move || {
            people.checkpointer().map_err(DbError::from).and_then(|it| it.checkpoint())
        });
        let synced = synced.await.map_err(|error| StoreError::Database(error.to_string()))?;
        Ok(synced?)
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
    pub(crate) fn end(&self) -> Option<Threads> {
        // Fails if the recorder has ended.
        self.commands.send(RecorderCommand::Close).ok();
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.readers.close_idle();
        // The error is logged; callers that need it use `close`.
        if let Some(Err(error)) = self.end().map(Threads::join) {
            tracing::error!(%error, "the record was not closed in order");
        }
    }
}
