//! File uploads and downloads, on separate connections (docs/protocol.md, section 10).
//!
//! [`Transfers`] has a queue and a few connections. Each connection transfers one file after the
//! other, and reconnects automatically. They are additional sessions of the same device, so that
//! files do not delay messages.
//!
//! A transfer resumes after any interruption. An outgoing file is kept in the profile's state
//! ([`crate::uploads`]), an incoming one in a part file at its destination ([`Place`]). Both ends
//! compare the hash of what exists before any byte is sent.
//!
//! Not here: which file goes where under which name, beyond making a name [harmless](name).

mod download;
mod error;
mod lane;
mod limit;
pub mod name;
mod place;
mod source;
mod spool;
mod upload;
pub(crate) mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use twinlock_core::id::MessageId;
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::clock::now_ms;
use crate::connector::Connector;
use crate::error::ClientError;
use crate::home::Home;
use crate::model::{Options, Up};
use crate::outbox::Ack;
use crate::profile::Profile;
use crate::state::State;
pub use crate::uploads::{Begun, Source};
pub use download::{Get, Into};
pub use error::TransferError;
use lane::{Job, Lane, Queue, Shared};
use limit::Limit;
pub use place::Place;
pub use source::{Found, hash_file, look};
pub use spool::{Copies, gather, spool};
use upload::Upload;

/// Capacity of the event channel.
const EVENTS: usize = 64;
/// Default number of connections. The server allows 16 sessions per user, and one file at a time on
/// each connection fills most networks.
pub const JOBS: usize = 3;

/// The id of a transfer in this [`Transfers`].
pub type JobId = u64;

/// An event of the transfers.
#[derive(Debug)]
pub enum Event {
    /// A connection is ready.
    Up(Box<Up>),
    /// A connection was lost or could not be established, or the server is busy.
    Down {
        /// The cause.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// A transfer begins, or resumes after a lost connection.
    Began {
        /// The transfer.
        job: JobId,
        /// Bytes that were transferred before.
        from: u64,
    },
    /// A transfer makes progress; reported at intervals.
    Progress {
        /// The transfer.
        job: JobId,
        /// Bytes transferred so far.
        done: u64,
    },
    /// The file changed during the upload, which restarts as another message.
    Changed {
        /// The transfer.
        job: JobId,
        /// The new message id.
        message_id: MessageId,
        /// The new size in bytes.
        size: u64,
    },
    /// A file is on the server's disk, and its entry is recorded.
    Sent {
        /// The transfer.
        job: JobId,
        /// The message id.
        message_id: MessageId,
        /// Position, time and link of the entry.
        ack: Ack,
        /// Size of the recorded file in bytes.
        size: u64,
        /// BLAKE3 hash of the file.
        hash: [u8; 32],
    },
    /// A file has arrived, and its hash matches.
    Got {
        /// The transfer.
        job: JobId,
        /// The file's path; `None` if it went to a stream.
        path: Option<std::path::PathBuf>,
    },
    /// A transfer failed.
    Failed {
        /// The transfer.
        job: JobId,
        /// The cause.
        error: TransferError,
    },
}

/// Settings of transfers.
#[derive(Debug, Clone, Default)]
pub struct Moving {
    /// Settings of each connection; `send` has no effect.
    pub line: Options,
    /// Number of connections; 0: [`JOBS`].
    pub jobs: usize,
    /// Bytes per second of all connections together, at least 16 KiB/s ([`SLOWEST`]): the server
    /// considers a connection dead that reads more slowly.
    pub limit: Option<u64>,
}

/// The minimum of [`Moving::limit`] in bytes per second.
pub const SLOWEST: u64 = 16 * 1024;

/// The handle to the connections. Dropping it aborts the transfers; [`Transfers::close`] completes
/// them.
#[derive(Debug)]
pub struct Transfers {
    queue: mpsc::UnboundedSender<(JobId, Job)>,
    state: State,
    next: AtomicU64,
    lanes: JoinSet<()>,
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
        moving: Moving,
    ) -> Result<(Self, mpsc::Receiver<Event>), ClientError> {
        let Moving { line, jobs, limit } = moving;
        let (told, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            home: home.clone(),
            dial: Connector::of(&profile, line.address.clone(), line.timing.clone())?,
            profile,
            state: state.clone(),
            options: line,
            limit: Arc::new(Limit::new(limit.map(|limit| limit.max(SLOWEST)))),
            events: told,
            fatal: Mutex::new(None),
        });
        let (queue, taken) = mpsc::unbounded_channel();
        let taken: Queue = Arc::new(tokio::sync::Mutex::new(taken));
        let mut lanes = JoinSet::new();
        for _ in 0..if jobs == 0 { JOBS } else { jobs } {
            lanes.spawn(Lane::new(shared.clone(), taken.clone()).run());
        }
        Ok((Self { queue, state, next: AtomicU64::new(1), lanes }, events))
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
        files: Vec<Found>,
    ) -> Result<Vec<(JobId, Begun)>, ClientError> {
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
            let upload = Upload::new(target.to_owned(), file, begun.message_id);
            jobs.push((self.add(Job::Put(Box::new(upload)))?, begun));
        }
        Ok(jobs)
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub fn get(&self, get: Get) -> Result<JobId, ClientError> {
        self.add(Job::Get(Box::new(download::Download::new(get))))
    }

    fn add(&self, job: Job) -> Result<JobId, ClientError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.queue.send((id, job)).map_err(|_| ClientError::Closed)?;
        Ok(id)
    }

    /// Waits until all transfers are complete, and closes the connections. The caller must continue
    /// to take events.
    pub async fn close(self) {
        let Self { queue, mut lanes, .. } = self;
        drop(queue);
        while lanes.join_next().await.is_some() {}
    }
}
