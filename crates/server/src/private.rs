//! Directories and files for nobody else to read; files whole or not at all.
//!
//! A file is written under another name, flushed, renamed, and the directory flushed, so that a
//! crash or a power cut leaves the old state or the new one. A temporary file that was left over is
//! swept by the next write of the same file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of a directory.
pub(crate) const DIR_MODE: u32 = 0o700;
/// Mode of a file.
pub(crate) const FILE_MODE: u32 = 0o600;

/// The file system said no.
#[derive(Debug)]
pub(crate) struct Failed {
    /// A verb: read, write, make.
    pub(crate) doing: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failed {
    move |error| Failed { doing, path: path.to_owned(), error }
}

/// Makes a directory and those above it, each so that it would survive a power cut. One that is
/// there stays as it is; whoever made it may have been killed before its name was on disk.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failed> {
    if path.try_exists().map_err(failed("read", path))? {
        return match sync(parent(path)) {
            // Not ours to read, or of a file system that has nothing to sync.
            Err(Failed { error, .. }) if is_foreign(&error) => Ok(()),
            synced => synced,
        };
    }
    let parent = parent(path);
    make_directory(parent)?;
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        // Another first start was quicker.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("make", path))?,
    }
    sync(parent)
}

/// Puts `content` at `path`, replacing what was there, and returns once it would survive a power
/// cut.
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

/// Removes a file; none there is no error.
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

/// Names in a directory that was found survive a power cut, whoever made them.
pub(crate) fn sync_found(dir: &File, path: &Path) -> Result<(), Failed> {
    match dir.sync_all() {
        Err(error) if !is_foreign(&error) => Err(failed("write", path)(error)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<(), Failed> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(failed("write", dir))
}
