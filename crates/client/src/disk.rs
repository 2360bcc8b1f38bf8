//! Private files and directories: created with an owner-only mode, never widened, replaced
//! atomically.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

/// Owner only: files that hold secrets or texts.
const FILE_MODE: u32 = 0o600;
/// Owner only: the directories that hold these files.
const DIR_MODE: u32 = 0o700;
/// All permissions of group and others.
const NOT_OWNER: u32 = 0o077;

/// A file or directory could not be read, created or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {problem}", path.display())]
pub struct DiskError {
    /// The file or directory.
    pub path: PathBuf,
    /// The kind of error, for decisions.
    pub kind: io::ErrorKind,
    /// The operating system's message.
    pub problem: String,
}

impl DiskError {
    /// The disk is full, a quota is exhausted, or the file is too large for the file system.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.kind, StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// The path cannot be written to.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self.kind, ReadOnlyFilesystem | PermissionDenied)
    }

    /// Adds the path to an I/O error, for `map_err`.
    pub fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self {
            path: path.to_path_buf(),
            kind: error.kind(),
            problem: error.to_string(),
        }
    }
}

/// Creates `path` and its missing parents with mode 0700; does not change existing directories.
pub(crate) fn make_dir(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(DiskError::at(path))
}

/// [`make_dir`] for a directory that only this client uses. Removes the permissions of group and
/// others from an existing one.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), DiskError> {
    make_dir(path)?;
    close_path_to_others(path)
}

/// Opens a regular file for reading. Follows symbolic links; refuses a pipe, which would block its
/// reader.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
}

fn is_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed here")
}

/// Replaces the system's message for a symbolic link that is not followed, "too many levels of
/// symbolic links".
fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { is_link() } else { error }
}

pub(crate) fn not_a_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Opens a file for reading and writing; creates it with mode 0600 if it is missing. Refuses a
/// symbolic link.
pub(crate) fn open_private(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(path).map_err(|error| DiskError::at(path)(plain(error)))?;
    close_to_others(&file, path)?;
    Ok(file)
}

/// Appends `line`, which ends with a newline, to a regular file and syncs it.
///
/// Creates the file with mode 0600 if it is missing. If a crash or a full disk truncated the last
/// line, this ends that line first. Refuses a symbolic link.
pub(crate) fn append_private(path: &Path, line: &[u8]) -> Result<(), DiskError> {
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW;
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(FILE_MODE));
    let opened = opened.map_err(|error| DiskError::at(path)(plain(error.into())));
    let mut file = File::from(opened?);
    let found = file.metadata().map_err(DiskError::at(path))?;
    if !found.is_file() {
        return Err(DiskError::at(path)(not_a_file()));
    }
    close_to_others(&file, path)?;
    let mut last = [b'\n'];
    if let Some(at) = found.len().checked_sub(1) {
        file.read_exact_at(&mut last, at).map_err(DiskError::at(path))?;
    }
    let end: &[u8] = if last == *b"\n" { b"" } else { b"\n" };
    let whole = [end, line].concat();
    file.write_all(&whole).and_then(|()| file.sync_all()).map_err(DiskError::at(path))
}

/// Creates an empty file of mode 0600, or restricts an existing one to its owner.
///
/// Does not open an existing file: when a process closes any descriptor of a file, POSIX drops all
/// its locks on that file, SQLite's too.
pub(crate) fn make_private_file(path: &Path) -> Result<(), DiskError> {
    let mut options = OpenOptions::new();
    match options.write(true).create_new(true).mode(FILE_MODE).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path).map_err(DiskError::at(path))?.is_symlink() {
                return Err(DiskError::at(path)(is_link()));
            }
            close_path_to_others(path)
        }
        made => made.map(drop).map_err(DiskError::at(path)),
    }
}

fn close_path_to_others(path: &Path) -> Result<(), DiskError> {
    let mode = fs::metadata(path).map_err(DiskError::at(path))?.permissions().mode();
    if mode & NOT_OWNER != 0 {
        let closed = Permissions::from_mode(mode & 0o7777 & !NOT_OWNER);
        fs::set_permissions(path, closed).map_err(DiskError::at(path))?;
    }
    Ok(())
}

/// Removes all permissions of group and others. Returns the previous mode if it was wider.
pub(crate) fn close_to_others(file: &File, path: &Path) -> Result<Option<u32>, DiskError> {
    let mode = file.metadata().map_err(DiskError::at(path))?.permissions().mode() & 0o7777;
    if mode & NOT_OWNER == 0 {
        return Ok(None);
    }
    file.set_permissions(Permissions::from_mode(mode & !NOT_OWNER)).map_err(DiskError::at(path))?;
    Ok(Some(mode))
}

/// What to do if the file already exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Fail with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// Replace the existing file.
    Replace,
}

/// Writes a file of mode 0600 atomically: after a crash the old content or the new one is there,
/// complete.
///
/// Writes a temporary file in the same directory, syncs it, renames it, and syncs the directory.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], existing: Existing) -> Result<(), DiskError> {
    let at = || DiskError::at(path);
    let dir = path.parent().ok_or_else(|| at()(io::ErrorKind::InvalidInput.into()))?;
    // The leading dot and the tilde keep this from being the name of a profile.
    let mut file = tempfile::Builder::new()
        .prefix(".new~")
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(dir)
        .map_err(at())?;
    file.write_all(bytes).map_err(at())?;
    file.as_file().sync_all().map_err(at())?;
    match existing {
        Existing::Keep => file.persist_noclobber(path),
        Existing::Replace => file.persist(path),
    }
    .map_err(|error| at()(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(DiskError::at(dir))
}
