//! The settings and events of transfers.

use std::path::PathBuf;
use std::time::Duration;

use twinlock_core::id::MessageId;

use super::error::TransferError;
use crate::error::ClientError;
use crate::model::{Options, Up};
use crate::outbox::Ack;

/// Default number of connections. The server allows 16 sessions per user, and one file at a time on
/// each connection fills most networks.
pub const JOBS: usize = 3;

/// The id of a transfer in a [`super::Transfers`].
pub type JobId = u64;

/// An event of the transfers.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransferEvent {
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
        path: Option<PathBuf>,
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
pub struct TransferOptions {
    /// Settings of each connection; `send` has no effect.
    pub connection: Options,
    /// Number of connections; 0: [`JOBS`].
    pub jobs: usize,
    /// Bytes per second of all connections together, at least 16 KiB/s ([`SLOWEST`]): the server
    /// considers a connection dead that reads more slowly.
    pub limit: Option<u64>,
}

/// The minimum of [`TransferOptions::limit`] in bytes per second.
pub const SLOWEST: u64 = 16 * 1024;
