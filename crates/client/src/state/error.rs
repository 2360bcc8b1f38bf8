//! Errors of the client's state.

use std::path::PathBuf;

use rusqlite::{ErrorCode, ffi};
use thiserror::Error;
use twinlock_core::id::{ConversationId, Link, MessageId};

use crate::disk::DiskError;

/// Errors of the client's state.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A newer version of this program has written the database.
    #[error(
        "{} was written by a newer version (schema {found}, this one knows {known}): update this program",
        path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its schema version.
        found: usize,
        /// The newest schema version that this program knows.
        known: usize,
    },
    /// There was a state, and a part of it is missing.
    #[error(
        "{} {state}, but {} shows that there was one; nothing was changed. Put {} back from its backup, or, to start without the queued messages and the record's known links, move all of state.db* away",
        path.display(),
        trace.display(),
        path.display()
    )]
    Lost {
        /// The database or its WAL.
        path: PathBuf,
        /// "is missing" or "is empty".
        state: &'static str,
        /// The file that shows that there was a state.
        trace: PathBuf,
    },
    /// The disk is full.
    #[error("the disk that holds this profile's state is full")]
    Full,
    /// The disk of this profile is not writable.
    #[error(
        "this profile is on a disk that cannot be written to, so nothing can be sent or dropped"
    )]
    ReadOnly,
    /// Another process locked the database for longer than a write can take.
    #[error("another program holds this profile's state: try again")]
    Busy,
    /// Any other SQLite error.
    #[error("this profile's state failed: {0}")]
    Database(String),
    /// The message is longer than an entry may be.
    #[error("the message has {got} bytes; the limit is {max}")]
    TooLarge {
        /// Its length in bytes.
        got: usize,
        /// [`twinlock_core::limits::MAX_TEXT`].
        max: usize,
    },
    /// The string is not a valid target of a message.
    #[error("'{}' is neither a room name nor @ and a user name", got.escape_debug())]
    BadTarget {
        /// The given string.
        got: String,
    },
    /// The server sent a number that no record can have.
    #[error("{got} is not the number of an entry or conversation, nor a time")]
    OutOfRange {
        /// The number.
        got: u64,
    },
    /// Tamper evidence: the server's link for an entry differs from the known one.
    #[error(
        "entry {n} of conversation {conversation} was changed: its link was {known}, now it is {got}"
    )]
    Conflict {
        /// The conversation.
        conversation: ConversationId,
        /// The entry.
        n: u64,
        /// The known link.
        known: Link,
        /// The server's link.
        got: Link,
    },
    /// Tamper evidence: a message was acknowledged at another position than before, although the
    /// server always acknowledges an id at its first position.
    #[error("message {message_id} was recorded at one position and is now acknowledged at another")]
    AckChanged {
        /// The message.
        message_id: MessageId,
    },
}

impl From<rusqlite::Error> for StateError {
    fn from(error: rusqlite::Error) -> Self {
        let extended = error.sqlite_error().map(|error| error.extended_code);
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            // The shared-memory file gets its full size at once, which fails only on a full disk.
            _ if extended == Some(ffi::SQLITE_IOERR_SHMSIZE) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ => Self::Database(error.to_string()),
        }
    }
}
