//! The thread that moves batches from the tail into the index, and makes `people.db` durable.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use twinlock_store::StoreError;

use crate::database::{Checkpointer, DatabaseFile};
use crate::error::DbError;
use crate::index::IndexWriter;
use crate::tail::{GROUP, IndexerWork, Tail};

/// Time to collect entries before a step, so that an idle server does not pay a transaction for each.
const GATHER: Duration = Duration::from_millis(50);
/// Interval between checkpoints of `people.db` while it changes.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Pause after a failed step.
const RETRY: Duration = Duration::from_secs(1);

/// The running thread.
pub(crate) struct Indexer(JoinHandle<()>);

impl Indexer {
    pub(crate) fn start(
        index: IndexWriter,
        tail: Arc<Tail>,
        people: DatabaseFile,
    ) -> std::io::Result<Self> {
        let work = move || run(index, &tail, &people);
        thread::Builder::new().name("indexer".into()).spawn(work).map(Self)
    }

    /// Waits for the thread, after [`Tail::close`].
    pub(crate) fn join(self) -> Result<(), StoreError> {
        self.0.join().map_err(|_| StoreError::Database("the indexer failed".into()))
    }
}

fn run(mut index: IndexWriter, tail: &Tail, people: &DatabaseFile) {
    let mut checkpointer = None;
    let mut checkpointed = Instant::now();
    loop {
        match tail.next_work(checkpointed, CHECKPOINT) {
            IndexerWork::Index => {
                if tail.entries() < GROUP {
                    tail.wait_closing(GATHER);
                }
                let batches = tail.oldest();
                match index.add(batches.iter().map(|batch| &**batch)) {
                    Ok(greatest) => tail.indexed(batches.len(), &greatest),
                    Err(error) => {
                        let error = StoreError::from(error);
                        tracing::error!(%error, "the index of entries is not updated");
                        tail.fail(error);
                        if tail.wait_closing(RETRY) {
                            // The next start reads the rest from the log.
                            return;
                        }
                    }
                }
            }
            IndexerWork::Checkpoint => {
                checkpointed = Instant::now();
                if people.sync_failed() {
                    continue;
                }
                match checkpoint(&mut checkpointer, people) {
                    Ok(()) => {}
                    Err(error) if people.sync_failed() => tracing::error!(
                        %error,
                        "people.db is not made durable any more until the server starts again; the \
                         log has its changes"
                    ),
                    Err(error) => {
                        tracing::warn!(%error, "people.db is not durable yet; the log has its changes");
                        tail.people_changed();
                    }
                }
            }
            IndexerWork::End => return,
        }
    }
}

fn checkpoint(slot: &mut Option<Checkpointer>, people: &DatabaseFile) -> Result<(), DbError> {
    let checkpointer = match slot {
        Some(checkpointer) => checkpointer,
        None => slot.insert(people.checkpointer()?),
    };
    checkpointer.checkpoint()
}
