//! Paths: companion files of a database, and directories without symbolic links.

use std::io;
use std::path::{Path, PathBuf};

use crate::open_error::OpenError;

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

/// Resolves the symbolic links of the directory that `path` is in. The last part need not exist.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    let fault = |path: &Path, error| OpenError::File { path: path.to_path_buf(), error };
    let no_name = || fault(path, io::ErrorKind::InvalidInput.into());
    let name = path.file_name().ok_or_else(no_name)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = std::fs::canonicalize(parent).map_err(|error| fault(parent, error))?;
    Ok(parent.join(name))
}
