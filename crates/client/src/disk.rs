//! Private files and directories: made with their mode, never widened, written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

/// Owner only: files that hold secrets or texts.
const FILE_MODE: u32 = 0o600;
/// Owner only: the directories they are in.
const DIR_MODE: u32 = 0o700;
/// Any right of the group or of others.
const NOT_OWNER: u32 = 0o077;

/// A file or directory could not be read, made or written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {problem}", path.display())]
pub struct DiskError {
    /// Which.
    pub path: PathBuf,
    /// The kind, to decide by.
    pub kind: io::ErrorKind,
    /// The system's words.
    pub problem: String,
}

impl DiskError {
    /// There is no room: on the disk, of a quota, or for so large a file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.kind, StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Nothing can be written there.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self.kind, ReadOnlyFilesystem | PermissionDenied)
    }

    /// Joins a path to the system's error, for `map_err`.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self {
            path: path.to_path_buf(),
            kind: error.kind(),
            problem: error.to_string(),
        }
    }
}

/// Makes `path` and what is missing above it, mode 0700. An existing one is left as it is.
pub(crate) fn make_dir(path: &Path) -> Result<(), DiskError> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(DiskError::at(path))
}

/// [`make_dir`] for a directory that is ours alone: an existing one is closed to others.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), DiskError> {
    make_dir(path)?;
    close_path_to_others(path)
}

/// Opens a regular file for reading. A link is followed; a pipe, which would hold up its reader, is not
/// opened.
pub(crate) fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
}

fn is_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed here")
}

/// The system's words for a link that is not followed are "too many levels of symbolic links".
fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { is_link() } else { error }
}

pub(crate) fn not_a_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Opens for reading and writing, made with mode 0600 where it is missing. Follows no symbolic link.
pub(crate) fn open_private(path: &Path) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(path).map_err(|error| DiskError::at(path)(plain(error)))?;
    close_to_others(&file, path)?;
    Ok(file)
}

/// Adds a line, which ends with a newline, to a regular file of mode 0600, made where it is missing,
/// and syncs it. A line that a crash or a full disk cut off is ended first. A link is not followed.
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

/// Makes an empty file of mode 0600 where none is, and closes an existing one to others, without
/// opening that: POSIX drops a process's locks on a file, SQLite's too, when any descriptor closes.
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

/// Takes every right from group and others; gives the mode back that was wider.
pub(crate) fn close_to_others(file: &File, path: &Path) -> Result<Option<u32>, DiskError> {
    let mode = file.metadata().map_err(DiskError::at(path))?.permissions().mode() & 0o7777;
    if mode & NOT_OWNER == 0 {
        return Ok(None);
    }
    file.set_permissions(Permissions::from_mode(mode & !NOT_OWNER)).map_err(DiskError::at(path))?;
    Ok(Some(mode))
}

/// What to do where the file is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Fail with [`io::ErrorKind::AlreadyExists`].
    Keep,
    /// Put the new one in its place.
    Replace,
}

/// Writes a file of mode 0600 so that after any crash the old content or the new is there, whole:
/// a new file beside it, fsync, rename, fsync of the directory.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], existing: Existing) -> Result<(), DiskError> {
    let at = || DiskError::at(path);
    let dir = path.parent().ok_or_else(|| at()(io::ErrorKind::InvalidInput.into()))?;
    // A leading dot and a tilde: never the name of a profile.
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
