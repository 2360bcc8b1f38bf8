//! Why an operation on the log failed.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use thiserror::Error;
use twinlock_store::StoreError;

/// A failure of a read, an append or an erasure.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum LogError {
    /// The disk is full, or the quota, or the size limit of files.
    #[error("the disk that holds the record is full")]
    Full,
    /// The operating system reported another error.
    #[error("{0}")]
    Failed(String),
    /// The bytes differ from those that were written.
    #[error("{0}")]
    Damaged(String),
}

impl LogError {
    /// The cause of a failed operation on `path`.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        if is_full(error) {
            return Self::Full;
        }
        let problem = format!("{}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged(problem),
            _ => Self::Failed(problem),
        }
    }
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full => Self::Full,
            LogError::Failed(problem) => Self::Database(problem),
            LogError::Damaged(problem) => Self::Damaged(problem),
        }
    }
}

/// Whether more room would have made the operation succeed.
fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT, Errno::FBIG]
        .iter()
        .any(|full| error.raw_os_error() == Some(full.raw_os_error()))
}
