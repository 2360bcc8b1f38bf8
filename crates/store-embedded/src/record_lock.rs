//! The lock of a record.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::file_names::with_suffix;
use crate::open_error::OpenError;

/// An exclusive lock on the record, held until this value is dropped.
///
/// It locks a file beside the record's directory, and the directory that both are in, because the
/// file can be removed. Earlier versions lock the same directory, so none of them runs beside this
/// one.
#[derive(Debug)]
pub struct RecordLock {
    /// The record's directory, with the symbolic links before its name resolved.
    pub(crate) directory: PathBuf,
    _file: File,
    _parent: File,
}

impl RecordLock {
    /// Locks the record in `directory`, which need not exist yet. Its parent must.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process holds the lock; [`OpenError::File`].
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let fault = |path: &Path, error| OpenError::File { path: path.to_path_buf(), error };
        let no_name = || fault(directory, io::ErrorKind::InvalidInput.into());
        let name = directory.file_name().ok_or_else(no_name)?;
        let parent = match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = fs::canonicalize(parent).map_err(|error| fault(parent, error))?;
        let directory = parent.join(name);
        let path = with_suffix(&directory, ".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        // Without NONBLOCK, opening a FIFO would block the start.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits().cast_signed()).open(&path);
        let file = file.map_err(|error| fault(&path, error))?;
        let held = File::open(&parent).map_err(|error| fault(&parent, error))?;
        for locked in [&file, &held] {
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(directory)),
                Err(TryLockError::Error(error)) => return Err(fault(&path, error)),
            }
        }
        Ok(Self { directory, _file: file, _parent: held })
    }
}
