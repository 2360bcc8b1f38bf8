//! File uploads and downloads, on separate connections (docs/protocol.md, section 10).
//!
//! [`Transfers`] has a queue and a few connections. Each connection transfers one file after the
//! other, and reconnects automatically. They are additional sessions of the same device, so that
//! files do not delay messages.
//!
//! A transfer resumes after any interruption. An outgoing file is kept in the profile's state
//! ([`crate::uploads`]), an incoming one in a part file at its destination ([`Destination`]). Both ends
//! compare the hash of what exists before any byte is sent.
//!
//! Not here: which file goes where under which name, beyond making a name [harmless](name).

mod context;
mod destination;
mod download;
mod error;
mod limit;
mod model;
pub mod name;
mod part_file;
mod source;
mod spool;
mod transfer_connection;
mod upload;
mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::clock::now_ms;
use crate::connector::Connector;
use crate::error::ClientError;
use crate::home::Home;
use crate::profile::Profile;
use crate::state::State;
pub use crate::uploads::{BegunUpload, SourceFile};
pub use destination::Destination;
pub use download::{DownloadRequest, DownloadTarget};
pub use error::TransferError;
use limit::RateLimit;
pub use model::{JOBS, JobId, SLOWEST, TransferEvent, TransferOptions};
pub use source::{LocalFile, hash_file, look};
pub use spool::{Copies, gather, spool};
use upload::FileUpload;
use worker::{JobQueue, TransferJob, TransferWorker, WorkerEnvironment};

/// Capacity of the event channel.
const EVENTS: usize = 64;
/// The handle to the connections. Dropping it aborts the transfers; [`Transfers::close`] completes
/// them.
#[derive(Debug)]
pub struct Transfers {
    queue: mpsc::UnboundedSender<(JobId, TransferJob)>,
    state: State,
    next: AtomicU64,
    workers: JoinSet<()>,
}

impl Transfers {
    /// Starts the tasks, which connect when there is work. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's CA certificates cannot be read.
    pub fn start(
        home: &Home,
        profile: Profile,
        state: State,
        options: TransferOptions,
    ) -> Result<(Self, mpsc::Receiver<TransferEvent>), ClientError> {
        let TransferOptions { connection, jobs, limit } = options;
        let (sender, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(WorkerEnvironment {
            home: home.clone(),
            connector: Connector::of(
                &profile,
                connection.address.clone(),
                connection.timing.clone(),
            )?
            .over(connection.route.clone()),
            profile,
            state: state.clone(),
            options: connection,
            limit: Arc::new(RateLimit::new(limit.map(|limit| limit.max(SLOWEST)))),
            events: sender,
            fatal: Mutex::new(None),
        });
        let (queue, taken) = mpsc::unbounded_channel();
        let taken: JobQueue = Arc::new(tokio::sync::Mutex::new(taken));
        let mut workers = JoinSet::new();
        for _ in 0..if jobs == 0 { JOBS } else { jobs } {
            workers.spawn(TransferWorker::new(shared.clone(), taken.clone()).run());
        }
        Ok((Self { queue, state, next: AtomicU64::new(1), workers }, events))
    }

    /// Sends files to `target`, a room's name or `@` and a user name.
    ///
    /// The intent is on disk when this returns: another request for the same file and target
    /// resumes the upload.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is sent then.
    pub async fn put(
        &self,
        target: &str,
        files: Vec<LocalFile>,
    ) -> Result<Vec<(JobId, BegunUpload)>, ClientError> {
        let offers: Vec<_> = files.iter().map(|file| file.offer(target)).collect();
        let uploads = self.state.uploads();
        let begin = move || Ok(uploads.begin(&offers, now_ms(), &mut OsEntropy)?);
        let begun = blocking(begin).await?;
        let mut jobs = Vec::with_capacity(begun.len());
        for (file, begun) in files.into_iter().zip(begun) {
            if let Some(replaced) = &begun.replaced {
                // A spooled copy of an earlier attempt with the same content.
                let _gone = std::fs::remove_file(replaced);
            }
            let upload = FileUpload::new(target.to_owned(), file, begun.message_id);
            jobs.push((self.add(TransferJob::Put(Box::new(upload)))?, begun));
        }
        Ok(jobs)
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub fn get(&self, get: DownloadRequest) -> Result<JobId, ClientError> {
        self.add(TransferJob::Get(Box::new(download::FileDownload::new(get))))
    }

    fn add(&self, job: TransferJob) -> Result<JobId, ClientError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.queue.send((id, job)).map_err(|_| ClientError::Closed)?;
        Ok(id)
    }

    /// Waits until all transfers are complete, and closes the connections. The caller must continue
    /// to take events.
    pub async fn close(self) {
        let Self { queue, mut workers, .. } = self;
        drop(queue);
        while workers.join_next().await.is_some() {}
    }
}
