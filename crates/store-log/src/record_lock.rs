//! The lock of a record's directory.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::open_error::OpenError;

/// An exclusive lock on the record, held until this value is dropped.
#[derive(Debug)]
pub struct RecordLock {
    pub(crate) directory: PathBuf,
    _file: File,
    _directory: File,
}

impl RecordLock {
    /// Creates the directory if it is missing (its parent must exist), and locks it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process holds the lock; [`OpenError::File`].
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let fault = |path: &Path, error| OpenError::File { path: path.to_path_buf(), error };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fault(directory, error));
            }
            _ => {}
        }
        let directory = fs::canonicalize(directory).map_err(|error| fault(directory, error))?;
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // Without NONBLOCK, opening a FIFO would block the start.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits().cast_signed()).open(&path);
        let file = file.map_err(|error| fault(&path, error))?;
        // Also the directory, because the lock file can be removed.
        let held = File::open(&directory).map_err(|error| fault(&directory, error))?;
        for locked in [&file, &held] {
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory)),
                Err(TryLockError::Error(error)) => return Err(fault(&path, error)),
            }
        }
        Ok(Self { directory, _file: file, _directory: held })
    }
}
