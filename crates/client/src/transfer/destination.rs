//! The destination of a download: a directory, directories below it, and a name.
//!
//! All operations use the directory's descriptor and follow no symbolic link in it. Other users of
//! the directory can create obstacles. These cause an error and are never written to.

use std::ffi::OsString;
use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::TransferError;
use crate::disk::DiskError;

/// Mode of new directories above a file, before the umask.
const NEW_DIR_MODE: u32 = 0o777;

/// The destination of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The directory, which exists.
    pub dir: PathBuf,
    /// Directories below it, created if they are missing; a symbolic link among them is not
    /// followed. A sender's names pass through [`super::name::below`] first.
    pub below: Vec<String>,
    /// The file's name: one component. A name from another user passes through
    /// [`super::name::harmless`] first.
    pub name: OsString,
    /// Overwrite an existing file.
    pub force: bool,
    /// Keep the execute permission of a file from another user.
    pub keep_mode: bool,
}

impl Destination {
    /// The file's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir_path().join(&self.name)
    }

    pub(super) fn dir_path(&self) -> PathBuf {
        let mut dir = self.dir.clone();
        dir.extend(&self.below);
        dir
    }

    /// Fails if the file exists, unless it may be overwritten. Blocks.
    ///
    /// # Errors
    /// [`TransferError::Exists`]; [`TransferError::InTheWay`] for things that are never
    /// overwritten: a directory, a device, a pipe, a link to one of them, and anything but a
    /// directory above the file.
    pub fn check(&self) -> Result<(), TransferError> {
        let mut dir = self.dir.clone();
        for name in &self.below {
            dir.push(name);
            match std::fs::symlink_metadata(&dir) {
                Ok(found) if found.is_dir() => {}
                Ok(found) => return Err(in_the_way(&dir, found.file_type())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(DiskError::at(&dir)(error).into()),
            }
        }
        match std::fs::symlink_metadata(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(DiskError::at(&self.path())(error).into()),
            Ok(found) if !is_replaced(&self.path(), found.file_type()) => {
                Err(if found.is_symlink() {
                    let what = "a symbolic link that is never replaced";
                    TransferError::InTheWay { path: self.path(), what }
                } else {
                    in_the_way(&self.path(), found.file_type())
                })
            }
            Ok(_) if self.force => Ok(()),
            Ok(_) => Err(TransferError::Exists(self.path())),
        }
    }

    /// Opens the directory of the file; creates it if it is missing.
    pub(super) fn open_dir(&self) -> Result<File, TransferError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.dir, flags, Mode::empty());
        let mut dir = File::from(dir.map_err(|error| DiskError::at(&self.dir)(error.into()))?);
        let mut path = self.dir.clone();
        for name in &self.below {
            path.push(name);
            let at = |error: Errno| TransferError::from(DiskError::at(&path)(error.into()));
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(NEW_DIR_MODE)) {
                Ok(()) => dir.sync_all().map_err(DiskError::at(&path))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(at(error)),
            }
            let next = rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty());
            dir = File::from(next.map_err(|error| match error {
                Errno::LOOP | Errno::NOTDIR => {
                    let found = std::fs::symlink_metadata(&path);
                    found.map_or_else(|_| at(error), |found| in_the_way(&path, found.file_type()))
                }
                error => at(error),
            })?);
        }
        Ok(dir)
    }
}

/// Whether the path may be replaced: a regular file, or a symbolic link to one or to nothing.
///
/// The link itself is replaced, never its target. Links into `/proc`, such as `/dev/stdout`, belong
/// to the system even if they lead to a regular file.
fn is_replaced(path: &Path, kind: FileType) -> bool {
    if !kind.is_symlink() {
        return kind.is_file();
    }
    let is_system = std::fs::read_link(path).is_ok_and(|to| to.starts_with("/proc"));
    !is_system
        && match std::fs::metadata(path) {
            Ok(found) => found.is_file(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
}

fn in_the_way(path: &Path, kind: FileType) -> TransferError {
    let what = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_file() => "a file",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    TransferError::InTheWay { path: path.to_path_buf(), what }
}
