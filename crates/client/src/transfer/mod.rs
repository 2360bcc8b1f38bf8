//! Files on their way, up and down, on lines of their own (docs/protocol.md, section 10).
//!
//! [`Transfers`] holds a queue and a few lines, each of which moves one file after the other and
//! connects again by itself. They are sessions of the same device beside the client's line, so
//! talking stays quick. A file that was begun goes on where it stopped, whatever ended it: what is
//! to be sent is kept in the profile's state ([`crate::uploads`]), what comes beside the place
//! where it goes ([`Place`]), and both ends compare the hash of what they have before a byte moves.
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
use twinlock_link::OsEntropy;

use crate::client::{Options, Up, blocking};
use crate::dial::Dial;
use crate::enrol::now_ms;
use crate::error::ClientError;
use crate::home::Home;
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

/// Events waiting for the consumer.
const EVENTS: usize = 64;
/// Lines at once, unless somebody asks for another number: the server has 16 sessions for a user,
/// and one file after the other on each fills most networks.
pub const JOBS: usize = 3;

/// Which transfer of this [`Transfers`].
pub type JobId = u64;

/// What happens to the files.
#[derive(Debug)]
pub enum Event {
    /// A line stands.
    Up(Box<Up>),
    /// One was lost or could not be made, or the server is busy.
    Down {
        /// Why.
        error: ClientError,
        /// When it is tried again.
        retry: Duration,
    },
    /// Bytes begin to move, again after each lost line.
    Began {
        /// Which.
        job: JobId,
        /// Bytes that had moved before.
        from: u64,
    },
    /// They move. Told now and then.
    Progress {
        /// Which.
        job: JobId,
        /// Bytes that have moved.
        done: u64,
    },
    /// The file changed while it was sent, and is begun anew as another message.
    Changed {
        /// Which.
        job: JobId,
        /// The new message.
        message_id: MessageId,
        /// The new size, bytes.
        size: u64,
    },
    /// A file is on the server's disk, and its entry recorded.
    Sent {
        /// Which.
        job: JobId,
        /// The message.
        message_id: MessageId,
        /// Where it is.
        ack: Ack,
        /// Bytes of the file that was recorded.
        size: u64,
        /// BLAKE3 of it.
        hash: [u8; 32],
    },
    /// A file has come and its hash matched.
    Got {
        /// Which.
        job: JobId,
        /// Where it is; `None` if it went out as it came.
        path: Option<std::path::PathBuf>,
    },
    /// It will not arrive.
    Failed {
        /// Which.
        job: JobId,
        /// Why.
        error: TransferError,
    },
}

/// How files are moved.
#[derive(Debug, Clone, Default)]
pub struct Moving {
    /// Of each line; `send` means nothing here.
    pub line: Options,
    /// Lines at once; 0: [`JOBS`].
    pub jobs: usize,
    /// Bytes a second of all lines together. None below 16 KiB/s: the server would take a line
    /// for dead that reads so little.
    pub limit: Option<u64>,
}

/// The slowest that [`Moving::limit`] can be, bytes a second.
pub const SLOWEST: u64 = 16 * 1024;

/// The handle to the lines. When it goes, they end once the queue is empty.
#[derive(Debug)]
pub struct Transfers {
    queue: mpsc::UnboundedSender<(JobId, Job)>,
    state: State,
    next: AtomicU64,
    lanes: JoinSet<()>,
}

impl Transfers {
    /// Starts the tasks; they connect when there is something to do. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's authorities cannot be read.
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
            dial: Dial::of(&profile, line.address.clone(), line.timing.clone())?,
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

    /// Sends files to `target`, a room's name or `@` and a user's. When this returns, the intent
    /// is on disk: the same file to the same target, asked for again, goes on where it stopped.
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
                // What came by standard input before, and is the same.
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

    /// Waits until everything is done, and says bye. Events have to be taken meanwhile.
    pub async fn close(self) {
        let Self { queue, mut lanes, .. } = self;
        drop(queue);
        while lanes.join_next().await.is_some() {}
    }
}
