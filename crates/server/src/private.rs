//! Directories and files that only this user can read; files are replaced atomically.
//!
//! A file is written under a temporary name, synced and renamed, and the directory is synced. A
//! crash or a power cut therefore leaves the old state or the new one. The next write of the same
//! file removes a leftover temporary file.
//!
//! Files are opened without following a symlink, so a planted one cannot make the server read or
//! overwrite a file elsewhere.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zeroize::Zeroizing;

/// Mode of a directory.
pub(crate) const DIR_MODE: u32 = 0o700;
/// Mode of a file.
pub(crate) const FILE_MODE: u32 = 0o600;

/// A failed file system operation.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Verb for the message: read, write, make.
    pub(crate) doing: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failed {
    move |error| Failed { doing, path: path.to_owned(), error }
}

/// Creates the data directory if it is missing, and returns its canonical path.
///
/// All later paths are below it. Fails if another user can write to the directory or replace it.
pub(crate) fn data_directory(path: &Path) -> Result<PathBuf, Failed> {
    make_directory(path)?;
    checked_directory(path)
}

/// The same for a directory that exists; changes nothing.
pub(crate) fn checked_directory(path: &Path) -> Result<PathBuf, Failed> {
    let dir = fs::canonicalize(path).map_err(failed("use", path))?;
    check_directory(&dir)?;
    for above in dir.ancestors().skip(1) {
        let above_meta = fs::metadata(above).map_err(failed("read", above))?;
        // With the sticky bit, only a directory entry's owner can rename it.
        if above_meta.mode() & 0o1002 == 0o002 {
            return Err(failed("use", &dir)(io::Error::other(format!(
                "everybody can exchange it, since {} is writable by everybody and has no sticky bit",
                above.display()
            ))));
        }
    }
    Ok(dir)
}

/// Refuses a directory that another user can write to. The path may be a symlink to one.
pub(crate) fn check_directory(path: &Path) -> Result<(), Failed> {
    let fault = failed("use", path);
    let meta = fs::metadata(path).map_err(failed("use", path))?;
    if !meta.is_dir() {
        return Err(fault(ErrorKind::NotADirectory.into()));
    }
    let (owner, ours) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != ours && owner != 0 {
        return Err(fault(io::Error::other(format!(
            "it belongs to another user (uid {owner}, the server runs as {ours}), who could exchange its files"
        ))));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(fault(io::Error::other(format!(
            "other users can write to it (mode {:o}): `chmod go-w {}`",
            meta.mode() & 0o7777,
            path.display()
        ))));
    }
    Ok(())
}

/// Creates a directory and its missing parents so that they survive a power cut.
///
/// An existing directory stays unchanged, but its parent is synced: the process that created it may
/// have been killed before the name was on disk.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failed> {
    if path.try_exists().map_err(failed("read", path))? {
        if !path.is_dir() {
            return Err(failed("use", path)(ErrorKind::NotADirectory.into()));
        }
        return match sync(parent(path)) {
            // This user is not permitted to read it, or its file system cannot sync directories.
            Err(Failed { error, .. }) if is_foreign(&error) => Ok(()),
            synced => synced,
        };
    }
    let parent = parent(path);
    make_directory(parent)?;
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // Created by another first start, unless it is a dangling symlink.
            if !path.is_dir() {
                return Err(failed("make", path)(io::Error::other("a link to nothing is there")));
            }
        }
        made => made.map_err(failed("make", path))?,
    }
    sync(parent)
}

/// Replaces the content of `path`; returns once the new content survives a power cut.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Failed> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    remove(&temporary)?;
    let fill = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    fill().map_err(failed("write", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("write", path))?;
    sync(parent(path))
}

/// Opens a regular file without following a symlink.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_regular(options, path, OFlags::NOFOLLOW).map_err(|error| {
        match error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            true => io::Error::other("it is a symbolic link, which is not followed here"),
            false => error,
        }
    })
}

/// Opens a regular file with additional flags; refuses anything else.
pub(crate) fn open_regular(
    options: &mut OpenOptions,
    path: &Path,
    flags: OFlags,
) -> io::Result<File> {
    // Without NONBLOCK, a FIFO would block the start.
    let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// Reads a file of at most `max` bytes; the buffer is wiped on drop. `None`: no such file.
pub(crate) fn read(path: &Path, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Failed> {
    let file = match open(OpenOptions::new().read(true), path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("read", path))?,
    };
    let length = file.metadata().map_err(failed("read", path))?.len();
    if length > max {
        return Err(failed("read", path)(ErrorKind::FileTooLarge.into()));
    }
    // Allocated at once: a growing vector leaves copies of a secret behind.
    let room = usize::try_from(length).unwrap_or(0).saturating_add(1);
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(max).read_to_end(&mut content).map_err(failed("read", path))?;
    Ok(Some(content))
}

/// Whether anything has this name, even a dangling symlink.
pub(crate) fn is_there(path: &Path) -> Result<bool, Failed> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true).map_err(failed("read", path)),
    }
}

/// Removes a file; a missing one is not an error.
pub(crate) fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_foreign(error: &io::Error) -> bool {
    use ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | InvalidInput | ReadOnlyFilesystem)
}

/// Syncs a directory that existed before, so that names created by other processes survive a power
/// cut.
pub(crate) fn sync_found(dir: &File, path: &Path) -> Result<(), Failed> {
    match dir.sync_all() {
        Err(error) if !is_foreign(&error) => Err(failed("write", path)(error)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<(), Failed> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(failed("write", dir))
}
