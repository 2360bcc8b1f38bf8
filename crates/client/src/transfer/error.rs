//! Errors of file transfers, sorted by the side at fault.

use std::path::PathBuf;

use thiserror::Error;

use crate::disk::DiskError;
use crate::error::{ClientError, Fault, Refusal};
use crate::state::StateError;

/// An error of a file transfer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The connection, the server, or the profile's state failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file or directory of this machine failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file changed during the upload.
    #[error("{} changed while it was being sent; nothing of it is recorded", .0.display())]
    Changed(PathBuf),
    /// The file system reports a size that is not the number of bytes.
    #[error(
        "{} has more or fewer bytes than its size of {size}; nothing of it is recorded",
        path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// The reported size in bytes.
        size: u64,
    },
    /// A directory, a device or a pipe cannot be sent.
    #[error("{} is {what}, not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// The entry is not a file.
    #[error("the message is not a file")]
    NoFile,
    /// The destination exists; it is overwritten only on request.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// Something that this program does not replace is at the path.
    #[error("{} is {what}: it is not overwritten; remove it, or choose another destination", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// Another process of this machine fetches the file.
    #[error("{} is being fetched by another program", .0.display())]
    Taken(PathBuf),
    /// The received file does not match the hash in its entry.
    #[error("the received file does not match the BLAKE3 hash of its entry and was discarded")]
    Hash,
    /// The server offers another file than the entry names.
    #[error("the server offers another file than the entry names")]
    OtherFile,
    /// The server sent a wrong offset, by mistake or on purpose. It is not retried automatically,
    /// because that might never end.
    #[error("the server reports an impossible file offset: {0}")]
    Astray(&'static str),
    /// The output cannot be written to.
    #[error("the output cannot be written to: {0}")]
    Output(String),
    /// The reader of the output is gone.
    #[error("the reader of the output has exited")]
    Gone,
}

impl TransferError {
    /// The side at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Client(error) => error.fault(),
            Self::Hash | Self::OtherFile | Self::Astray(_) => Fault::Record,
            Self::Disk(_)
            | Self::Changed(_)
            | Self::Size { .. }
            | Self::NotAFile { .. }
            | Self::NoFile
            | Self::Exists(_)
            | Self::InTheWay { .. }
            | Self::Taken(_)
            | Self::Output(_)
            | Self::Gone => Fault::Local,
        }
    }

    /// The server's refusal, if this is one.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Client(ClientError::Refused(no)) => Some(*no),
            _ => None,
        }
    }
}

impl From<StateError> for TransferError {
    fn from(error: StateError) -> Self {
        Self::Client(error.into())
    }
}
