//! Why a record could not be opened.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use twinlock_core::id::ServerKey;

/// Why a record could not be opened. An error that refuses a record leaves its files unchanged.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has the record open.
    #[error("{} is in use: another server runs on this record, or a check reads it; end that, or name another --data", .0.display())]
    InUse(PathBuf),
    /// A newer version of this program has written the record.
    #[error(
        "{} was written by a newer version (format {found}, this one knows {known}): run that version, or restore a backup from before the update",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: usize,
        /// The newest format that this program knows.
        known: usize,
    },
    /// Files of the record are missing, swapped, of another record, or have changed content.
    #[error("{}: {problem}; nothing was changed. Restore the whole directory {} from one backup", path.display(), directory.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The record's directory.
        directory: PathBuf,
        /// The damage, with its place in the file and the first missing entry.
        problem: String,
    },
    /// The record belongs to another server identity.
    #[error(
        "{} belongs to a server with another key ({recorded}) than the one in use ({given}): restore the identity that belongs to it, or the record that belongs to this identity",
        path.display()
    )]
    OtherServer {
        /// The record's directory.
        path: PathBuf,
        /// The server key in the record.
        recorded: ServerKey,
        /// The server key of the identity in use.
        given: ServerKey,
    },
    /// The file system has no room for both forms of a record.
    #[error(
        "{} has {} MiB free, and the conversion of the record takes up to {} MiB; nothing was changed. Make room, and start again",
        path.display(),
        available.div_euclid(1024 * 1024),
        needed.div_ceil(1024 * 1024)
    )]
    NoRoom {
        /// The directory of both forms.
        path: PathBuf,
        /// Bytes that it takes at most.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// An operation on a file or directory failed.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A database cannot be used: SQLite failed, or the file is not a database.
    #[error("{}: {problem}; if the file is damaged, restore it from its backup", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's message, or another cause.
        problem: String,
    },
}
