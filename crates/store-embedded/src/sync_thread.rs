//! The thread that writes and syncs a batch while the recorder prepares the next one.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use twinlock_store::StoreError;

use crate::log::{AppendedBatch, BatchBuilder, LogError, LogWriter};

/// The log's writer, for the recorder and the thread in turn.
#[derive(Clone)]
pub(crate) struct SharedLog(Arc<Mutex<LogWriter>>);

impl SharedLog {
    pub(crate) fn new(log: LogWriter) -> Self {
        Self(Arc::new(Mutex::new(log)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LogWriter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the log as closed in order.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        let Some(log) = Arc::into_inner(self.0) else {
            return Err(StoreError::Database("the log is still in use".into()));
        };
        Ok(log.into_inner().unwrap_or_else(PoisonError::into_inner).close()?)
    }
}

/// A batch that was written and synced, or why it was not.
pub(crate) struct SyncedBatch {
    /// For another batch.
    pub(crate) builder: BatchBuilder,
    pub(crate) appended: Result<AppendedBatch, LogError>,
    /// Time of writing and syncing.
    pub(crate) took: Duration,
}

/// The running thread. It has at most one batch.
pub(crate) struct SyncThread {
    batches: Sender<BatchBuilder>,
    synced: Receiver<SyncedBatch>,
    thread: JoinHandle<()>,
}

impl SyncThread {
    pub(crate) fn start(log: SharedLog) -> std::io::Result<Self> {
        let (batches, waiting) = mpsc::channel::<BatchBuilder>();
        let (done, synced) = mpsc::channel();
        let thread = thread::Builder::new().name("log-sync".into()).spawn(move || {
            for mut builder in waiting {
                let began = Instant::now();
                let appended = log.lock().append(&mut builder);
                let took = began.elapsed();
                if done.send(SyncedBatch { builder, appended, took }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { batches, synced, thread })
    }

    /// Begins to write a batch.
    pub(crate) fn begin(&self, batch: BatchBuilder) {
        // Fails if the thread has ended, which `wait` reports.
        self.batches.send(batch).ok();
    }

    /// Waits for the batch.
    pub(crate) fn wait(&self) -> SyncedBatch {
        self.synced.recv().unwrap_or_else(|_| SyncedBatch {
            builder: BatchBuilder::new(),
            appended: Err(LogError::Failed("the thread of the log failed".into())),
            took: Duration::ZERO,
        })
    }

    /// Ends the thread.
    pub(crate) fn end(self) {
        drop(self.batches);
        self.thread.join().ok();
    }
}
