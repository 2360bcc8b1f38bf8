//! The locks of a record.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::database::open_file;
use crate::file_names::{resolve, with_suffix};
use crate::open_error::OpenError;

/// An exclusive lock on the record, held until this value is dropped.
///
/// It locks `record.lock`, next to the record's directory, and the directory that both are in,
/// because the file can be removed. Earlier versions lock the same directory, so only one of them
/// and this one can run.
#[derive(Debug)]
pub struct RecordLock {
    /// The record's directory, with the symbolic links before its name resolved.
    pub(crate) directory: PathBuf,
    _locked: [File; 2],
}

impl RecordLock {
    /// Locks the record in `directory`, which need not exist yet. Its parent must.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process holds one of the locks; [`OpenError::File`].
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let directory = resolve(directory)?;
        let path = with_suffix(&directory, ".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let locked = [open(&mut options, &path)?, open_parent(&directory)?];
        for file in &locked {
            held(file.try_lock(), &directory)?;
        }
        Ok(Self { directory, _locked: locked })
    }
}

/// A shared lock on what [`RecordLock`] locks: several processes can read the record, and none can
/// open it.
#[derive(Debug)]
pub struct ReadLock {
    /// As [`RecordLock::directory`].
    pub(crate) directory: PathBuf,
    _locked: Vec<File>,
}

impl ReadLock {
    /// Locks the record in `directory`. Creates no file.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if a process holds [`RecordLock`]; [`OpenError::File`].
    pub fn take(directory: &Path) -> Result<Self, OpenError> {
        let directory = resolve(directory)?;
        let path = with_suffix(&directory, ".lock");
        let mut locked = vec![open_parent(&directory)?];
        match open(OpenOptions::new().read(true), &path) {
            Err(OpenError::File { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            file => locked.push(file?),
        }
        for file in &locked {
            held(file.try_lock_shared(), &directory)?;
        }
        Ok(Self { directory, _locked: locked })
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> Result<File, OpenError> {
    open_file(options, path).map_err(|error| OpenError::File { path: path.to_path_buf(), error })
}

fn open_parent(directory: &Path) -> Result<File, OpenError> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    File::open(parent).map_err(|error| OpenError::File { path: parent.to_path_buf(), error })
}

fn held(locked: Result<(), TryLockError>, directory: &Path) -> Result<(), OpenError> {
    let path = directory.to_path_buf();
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path)),
        Err(TryLockError::Error(error)) => Err(OpenError::File { path, error }),
    }
}
