//! The names of a database's companion files.

use std::path::{Path, PathBuf};

/// The WAL of a database.
pub(crate) fn wal(database: &Path) -> PathBuf {
    with_suffix(database, "-wal")
}

/// The companion file with this suffix.
pub(crate) fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
