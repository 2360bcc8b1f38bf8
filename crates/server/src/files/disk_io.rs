//! Work on the local disk: errors, threads, and the detection of changes.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::contract::FilesError;
use crate::private;

/// Bytes read at a time for hashing: they are still in the processor's cache then.
pub(super) const READ: usize = 256 * 1024;

/// Detects changes of a file: device, inode, size, time of the last write.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

pub(super) fn stamp(meta: &fs::Metadata) -> Stamp {
    (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
}

pub(super) fn remove(path: &Path) -> Result<(), FilesError> {
    Ok(private::remove(path)?)
}

/// Runs work that may block on the disk, on a separate thread. It continues if the caller is
/// dropped.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(io_error("use", Path::new("a thread"))(io::Error::other(error)))
    })
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    move |error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            FilesError::Full
        }
        _ => FilesError::Io { doing, path: path.to_owned(), error },
    }
}

impl From<private::Failed> for FilesError {
    fn from(private::Failed { doing, path, error }: private::Failed) -> Self {
        io_error(doing, &path)(error)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
