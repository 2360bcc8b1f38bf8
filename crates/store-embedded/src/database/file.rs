//! The file of a database: its form before SQLite opens it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::file_names::{wal, with_suffix};
use crate::open_error::OpenError;

/// First bytes of an SQLite database file.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Checks the database and its companion files, and creates an empty database if it is missing.
///
/// The file has mode 0600, which SQLite copies to the WAL. Call this while no connection is open:
/// closing a descriptor of the database releases SQLite's locks.
pub(crate) fn prepare(path: &Path) -> Result<(), OpenError> {
    check_companions(path)?;
    private(path)?;
    check_magic(path)
}

/// Checks the database and its companion files. Changes nothing.
pub(crate) fn check(path: &Path) -> Result<(), OpenError> {
    check_companions(path)?;
    check_magic(path)
}

/// Opens a regular file without following a symbolic link.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a FIFO would block the start.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(plain)?;
    if !file.metadata()?.is_file() {
        return Err(is_no_file());
    }
    Ok(file)
}

fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { is_link() } else { error }
}

fn is_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed here")
}

fn is_no_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Refuses a `-wal` or `-shm` that is not a regular file.
///
/// SQLite's own error names only the database, and without a `-shm` SQLite may open the database
/// without its WAL.
fn check_companions(path: &Path) -> Result<(), OpenError> {
    for suffix in ["-wal", "-shm"] {
        let companion = with_suffix(path, suffix);
        let error = match fs::symlink_metadata(&companion) {
            Ok(meta) if meta.is_file() => continue,
            Ok(meta) if meta.is_symlink() => is_link(),
            Ok(_) => is_no_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error,
        };
        return Err(OpenError::File { path: companion, error });
    }
    Ok(())
}

/// Creates the file if it is missing, and removes the permissions of group and others.
///
/// SQLite deletes the WAL of an empty database. It holds nothing that the log does not have.
fn private(path: &Path) -> Result<(), OpenError> {
    let fault = |error| OpenError::File { path: path.to_path_buf(), error };
    // By path: opening and closing a descriptor of the database would release SQLite's locks.
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => Err(fault(is_link())),
        Ok(meta) if !meta.is_file() => Err(fault(is_no_file())),
        Ok(meta) => {
            let mode = meta.permissions().mode();
            match mode & 0o077 {
                0 => Ok(()),
                _ => fs::set_permissions(path, Permissions::from_mode(mode & 0o700)).map_err(fault),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(path).map_err(fault)?;
            sync_directory(path).map_err(fault)
        }
        Err(error) => Err(fault(error)),
    }
}

/// Refuses a file that is not a database.
///
/// Otherwise SQLite would read the first page from the WAL and then write to the file.
fn check_magic(path: &Path) -> Result<(), OpenError> {
    let fault = |error| OpenError::File { path: path.to_path_buf(), error };
    let file = open(OpenOptions::new().read(true), path).map_err(fault)?;
    let mut head = Vec::with_capacity(MAGIC.len());
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(fault)?;
    if head.is_empty() || head == MAGIC {
        return Ok(());
    }
    let problem = "it is not a database".to_owned();
    Err(OpenError::Database { path: path.to_path_buf(), problem })
}

/// Whether the WAL of a database that is not open contains anything.
pub(crate) fn has_wal(database: &Path) -> bool {
    fs::symlink_metadata(wal(database)).is_ok_and(|meta| meta.len() > 0)
}

/// Opens the WAL, which a connection has open, for its sync. Closing this descriptor releases no
/// lock: they are on the database and the `-shm`. `None`: there is none.
pub(crate) fn open_wal(database: &Path) -> io::Result<Option<File>> {
    match open(OpenOptions::new().read(true), &wal(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

/// Syncs the directory of `path`: a new file is durable only after its directory.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
