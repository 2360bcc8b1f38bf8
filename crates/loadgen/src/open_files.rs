//! The limit of open files: each connection uses a descriptor.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

/// File descriptors that are not connections.
pub const SPARE_FILES: u64 = 64;

/// The limit of open files is too low.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenFilesError {
    /// The hard limit is too low.
    #[error("this machine allows a process {max} connections (its limit of open files)")]
    HardLimit {
        /// Number of connections that fit.
        max: u64,
    },
    /// The limit could not be raised.
    #[error("the limit of open files cannot be raised: {0}")]
    Raise(Errno),
}

/// Raises the soft limit to the hard one if it is too low for this many connections.
///
/// # Errors
/// [`OpenFilesError`].
pub fn raise_open_files(connections: u64) -> Result<(), OpenFilesError> {
    let files = connections.saturating_add(SPARE_FILES);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    if maximum.is_some_and(|maximum| maximum < files) {
        let max = maximum.unwrap_or(0).saturating_sub(SPARE_FILES);
        return Err(OpenFilesError::HardLimit { max });
    }
    let raised = Rlimit { current: maximum.or(Some(files)), maximum };
    setrlimit(Resource::Nofile, raised).map_err(OpenFilesError::Raise)
}
