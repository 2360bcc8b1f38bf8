//! Directories and files for nobody else to read; files whole or not at all.
//!
//! A file is written under another name, flushed, renamed, and the directory flushed, so that a
//! crash or a power cut leaves the old state or the new one. A temporary file that was left over is
//! swept by the next write of the same file.
//!
//! Files are opened without following a symbolic link, so a planted link cannot make the server read
//! or overwrite a file elsewhere.

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

/// The data directory, made where it is missing: its path without a link in it, on which all that
/// follows hangs. Refused where another user can put files into it, or exchange it for another.
pub(crate) fn data_directory(path: &Path) -> Result<PathBuf, Failed> {
    make_directory(path)?;
    let dir = fs::canonicalize(path).map_err(failed("use", path))?;
    check_directory(&dir)?;
    for above in dir.ancestors().skip(1) {
        let above_meta = fs::metadata(above).map_err(failed("read", above))?;
        // With the sticky bit only an entry's owner can rename it.
        if above_meta.mode() & 0o1002 == 0o002 {
            return Err(failed("use", &dir)(io::Error::other(format!(
                "everybody can exchange it, since {} is writable by everybody and has no sticky bit",
                above.display()
            ))));
        }
    }
    Ok(dir)
}

/// Refuses a directory that another user can write to. It may be a link to one.
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

/// Makes a directory and those above it, each so that it would survive a power cut. One that is
/// there stays as it is; whoever made it may have been killed before its name was on disk.
pub(crate) fn make_directory(path: &Path) -> Result<(), Failed> {
    if path.try_exists().map_err(failed("read", path))? {
        if !path.is_dir() {
            return Err(failed("use", path)(ErrorKind::NotADirectory.into()));
        }
        return match sync(parent(path)) {
            // Not ours to read, or of a file system that has nothing to sync.
            Err(Failed { error, .. }) if is_foreign(&error) => Ok(()),
            synced => synced,
        };
    }
    let parent = parent(path);
    make_directory(parent)?;
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            // Another first start was quicker, unless it is a link to nothing.
            if !path.is_dir() {
                return Err(failed("make", path)(io::Error::other("a link to nothing is there")));
            }
        }
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

/// Opens a regular file and follows no link.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_regular(options, path, OFlags::NOFOLLOW).map_err(|error| {
        match error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            true => io::Error::other("it is a symbolic link, which is not followed here"),
            false => error,
        }
    })
}

/// Opens a file with these flags as well; anything but a regular file is refused.
pub(crate) fn open_regular(
    options: &mut OpenOptions,
    path: &Path,
    flags: OFlags,
) -> io::Result<File> {
    // Without NONBLOCK a pipe would hold up the start.
    let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// The content of a file of at most `most` bytes, wiped after use. `None`: no such file.
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Failed> {
    let file = match open(OpenOptions::new().read(true), path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("read", path))?,
    };
    let length = file.metadata().map_err(failed("read", path))?.len();
    if length > most {
        return Err(failed("read", path)(ErrorKind::FileTooLarge.into()));
    }
    // Room for all of it at once: a vector that grows leaves copies of a secret behind.
    let room = usize::try_from(length).unwrap_or(0).saturating_add(1);
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(most).read_to_end(&mut content).map_err(failed("read", path))?;
    Ok(Some(content))
}

/// Whether something has this name, be it a link to nothing.
pub(crate) fn is_there(path: &Path) -> Result<bool, Failed> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true).map_err(failed("read", path)),
    }
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
