//! The names of the files beside a database.

use std::path::{Path, PathBuf};

/// The WAL of a database.
pub(crate) fn wal(database: &Path) -> PathBuf {
    with_suffix(database, "-wal")
}

/// The file beside a database with this suffix.
pub(crate) fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
