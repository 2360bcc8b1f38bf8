//! Why a record could not be opened.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use twinlock_core::id::ServerKey;

use crate::file_names::with_suffix;

/// Why a record could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has the record open.
    #[error("{} is in use: another server runs on this record; stop it or name another --data", .0.display())]
    InUse(PathBuf),
    /// A newer version of this program has migrated the record.
    #[error(
        "{} was written by a newer version (schema {found}, this one knows {known}): run that version, or restore a backup from before the update",
        path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema version of the database.
        found: usize,
        /// The newest schema version that this program knows.
        known: usize,
    },
    /// There was a record, but its database is missing, empty or not a database.
    #[error(
        "{} {state}, but {} shows that there was a record; nothing was changed. Restore {} from its backup, or move both away to create a new record",
        path.display(),
        trace.display(),
        path.display()
    )]
    Lost {
        /// The database.
        path: PathBuf,
        /// "is missing", "is empty" or "is not a database".
        state: &'static str,
        /// The file that shows that there was a record.
        trace: PathBuf,
    },
    /// The file is a database, but contains no record.
    #[error(
        "{} is a database without the record of this server; nothing was changed. Restore the record from its backup, or move this file away",
        .0.display()
    )]
    NoRecord(PathBuf),
    /// The WAL does not belong to the database.
    #[error(
        "{} and {} do not belong together, or are damaged: they lack acknowledged entries ({problem}); nothing was changed. Restore both from one backup, or the database alone from a backup made with `sqlite3 .backup` and move the other away. To accept the loss, remove {}",
        path.display(),
        with_suffix(path, "-wal").display(),
        path.with_file_name("heads").display()
    )]
    Mixed {
        /// The database.
        path: PathBuf,
        /// The entry that is missing, or SQLite's message.
        problem: String,
    },
    /// The record belongs to another server identity.
    #[error(
        "{} belongs to a server with another key ({recorded}) than the one in use ({given}): restore the identity that belongs to it, or the record that belongs to this identity",
        path.display()
    )]
    OtherServer {
        /// The database.
        path: PathBuf,
        /// The server key in the record.
        recorded: ServerKey,
        /// The server key of the identity in use.
        given: ServerKey,
    },
    /// An operation on a file or directory failed.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The database cannot be used: SQLite failed, or the file is not a database.
    #[error("{}: {problem}; if the file is damaged, restore it from its backup", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's message, or another cause.
        problem: String,
    },
}
