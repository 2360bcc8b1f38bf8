//! What can go wrong with a file on its way, sorted by whose fault it is.

use std::path::PathBuf;

use thiserror::Error;

use crate::disk::DiskError;
use crate::error::{Blame, ClientError, Refusal};
use crate::state::StateError;

/// Why a file did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransferError {
    /// The line, the server, or the profile's state.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file or directory of this machine.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It was written to meanwhile.
    #[error("{} changed while it was being sent; nothing of it is recorded", .0.display())]
    Changed(PathBuf),
    /// Its file system names a size that is not the number of its bytes.
    #[error(
        "{} has more or fewer bytes than its size of {size}; nothing of it is recorded",
        path.display()
    )]
    Size {
        /// Which.
        path: PathBuf,
        /// What the file system says, bytes.
        size: u64,
    },
    /// A directory, a device, a pipe.
    #[error("{} is {what}, not a file", path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Nothing is overwritten unasked.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// Something that this program did not make is where it keeps what has come so far.
    #[error("{} is {what}: it is not touched; remove it, or choose another place", path.display())]
    InTheWay {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process of this machine is at it.
    #[error("{} is being fetched by another program", .0.display())]
    Taken(PathBuf),
    /// The whole of what came is not what the entry says.
    #[error("what came is not the file that the entry names (another BLAKE3); it was thrown away")]
    Hash,
    /// The server offers another file than the entry names.
    #[error("the server offers another file than the entry names")]
    OtherFile,
    /// An offset that is wrong, by mistake or on purpose. Trying again by itself could go on for
    /// ever.
    #[error("the server is at a place in the file that cannot be: {0}")]
    Astray(&'static str),
    /// Where it was to go cannot be written to.
    #[error("the output cannot be written to: {0}")]
    Output(String),
    /// Whoever read the output has gone.
    #[error("nobody reads the output any longer")]
    Gone,
}

impl TransferError {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Client(error) => error.blame(),
            Self::Hash | Self::OtherFile | Self::Astray(_) => Blame::Record,
            Self::Disk(_)
            | Self::Changed(_)
            | Self::Size { .. }
            | Self::NotAFile { .. }
            | Self::Exists(_)
            | Self::InTheWay { .. }
            | Self::Taken(_)
            | Self::Output(_)
            | Self::Gone => Blame::Here,
        }
    }

    /// The server's no, if that is what it is.
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
