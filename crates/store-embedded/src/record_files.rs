//! The files of a record: their lock, their form, and what happens to them while they are open.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rusqlite::Connection;
use rustix::fs::OFlags;
use rustix::io::Errno;
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::file_names::{wal, with_suffix};
use crate::open_error::OpenError;
use crate::row::get_uint;

/// First bytes of an SQLite database file.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Sizes of the WAL header and of each frame header, bytes (SQLite, *The Database File Format*).
const WAL_HEAD: u64 = 32;
const FRAME_HEAD: u64 = 24;

/// An exclusive lock on the record, held until this value is dropped.
///
/// It also locks the directory, because the lock file can be removed.
#[derive(Debug)]
pub struct RecordLock {
    /// Path of the database, with the symbolic links of its directory resolved.
    pub(crate) database: PathBuf,
    _file: File,
    _directory: File,
}

impl RecordLock {
    /// Locks the record through `record.db.lock`, next to the database. The database need not exist
    /// yet.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process holds the lock; [`OpenError::File`].
    pub fn take(database: &Path) -> Result<Self, OpenError> {
        // A separate file: closing any descriptor of the database would release SQLite's locks on
        // it.
        let database = &resolve(database)?;
        let path = with_suffix(database, ".lock");
        let fault = |error| OpenError::File { path: path.clone(), error };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open(&mut options, &path).map_err(fault)?;
        let directory = File::open(database.parent().unwrap_or(Path::new("."))).map_err(fault)?;
        for locked in [&file, &directory] {
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(OpenError::InUse(database.clone()));
                }
                Err(TryLockError::Error(error)) => return Err(fault(error)),
            }
        }
        Ok(Self { database: database.clone(), _file: file, _directory: directory })
    }
}

/// Resolves the symbolic links in the database's directory. The result is absolute, so that SQLite
/// does not parse it as a URI.
pub(crate) fn resolve(database: &Path) -> Result<PathBuf, OpenError> {
    let fault = |error| OpenError::File { path: database.to_path_buf(), error };
    let name = database.file_name().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    let dir = match database.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(dir).map_err(fault)?.join(name))
}

/// Opens a regular file without following a symbolic link.
pub(crate) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a FIFO would block the start.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(plain)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

pub(crate) fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { is_link() } else { error }
}

pub(crate) fn is_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed here")
}

pub(crate) fn private(path: &Path) -> Result<(), OpenError> {
    let fault = |error| OpenError::File { path: path.to_path_buf(), error };
    // By path: opening and closing a descriptor of the database would release SQLite's locks.
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => Err(fault(is_link())),
        Ok(meta) if !meta.is_file() => Err(fault(io::Error::other("it is not a regular file"))),
        // SQLite deletes the WAL of an empty database.
        Ok(meta) if meta.len() == 0 && has_wal(path) => Err(lost(path, "is empty")),
        Ok(meta) => {
            let mode = meta.permissions().mode();
            match mode & 0o077 {
                0 => Ok(()),
                _ => fs::set_permissions(path, Permissions::from_mode(mode & 0o700)).map_err(fault),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if has_wal(path) {
                return Err(lost(path, "is missing"));
            }
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(path).map_err(fault)?;
            sync_directory(path).map_err(fault)
        }
        Err(error) => Err(fault(error)),
    }
}

/// Refuses a `-wal` or `-shm` that is not a regular file.
///
/// SQLite's own error names only the database, and without a `-shm` SQLite may open the database
/// without its WAL.
pub(crate) fn check_companions(path: &Path) -> Result<(), OpenError> {
    for suffix in ["-wal", "-shm"] {
        let companion = with_suffix(path, suffix);
        let error = match fs::symlink_metadata(&companion) {
            Ok(meta) if meta.is_file() => continue,
            Ok(meta) if meta.is_symlink() => is_link(),
            Ok(_) => io::Error::other("it is not a regular file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => error,
        };
        return Err(OpenError::File { path: companion, error });
    }
    Ok(())
}

/// Refuses a file that is not a database.
///
/// Otherwise SQLite would read the first page from the WAL and then write to the file. Call this
/// before any connection is open: closing the descriptor releases SQLite's locks.
pub(crate) fn check_magic(path: &Path) -> Result<(), OpenError> {
    let fault = |error| OpenError::File { path: path.to_path_buf(), error };
    let file = open(OpenOptions::new().read(true), path).map_err(fault)?;
    let mut head = Vec::with_capacity(MAGIC.len());
    file.take(MAGIC.len() as u64).read_to_end(&mut head).map_err(fault)?;
    if head.is_empty() || head == MAGIC {
        Ok(())
    } else if has_wal(path) {
        Err(lost(path, "is not a database"))
    } else {
        let problem = "it is not a database".to_owned();
        Err(OpenError::Database { path: path.to_path_buf(), problem })
    }
}

pub(crate) fn lost(path: &Path, state: &'static str) -> OpenError {
    OpenError::Lost { path: path.to_path_buf(), state, trace: wal(path) }
}

/// The files that a connection has open under the record's names, by device and inode.
///
/// A file that is removed or replaced while it is open still accepts writes. Entries acknowledged
/// after that are lost when the process ends.
///
/// A connection opened while another file has the name shares its `-shm` with the open connections,
/// so putting the file back does not repair them. The first failure is therefore permanent.
#[derive(Debug)]
pub(crate) struct InPlace {
    opened: [(PathBuf, (u64, u64)); 2],
    lost: OnceLock<StoreError>,
}

impl InPlace {
    /// Call this after the connection's first read: from then on the WAL exists.
    pub(crate) fn of(database: &Path) -> io::Result<Self> {
        let [database, wal] = [database.to_owned(), wal(database)];
        let [of_database, of_wal] = [device_and_inode(&database)?, device_and_inode(&wal)?];
        let opened = [(database, of_database), (wal, of_wal)];
        Ok(Self { opened, lost: OnceLock::new() })
    }

    /// Checks that both paths still name the open files.
    ///
    /// # Errors
    /// [`StoreError::Database`] if one does not, or did not at an earlier check.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.lost.get().is_none() {
            for (path, opened) in &self.opened {
                let problem = match device_and_inode(path) {
                    Ok(found) if found == *opened => continue,
                    Ok(_) => "it was replaced".to_owned(),
                    Err(error) => error.to_string(),
                };
                let problem = format!(
                    "{}: {problem} while the server has it open; nothing is read or written any \
                     more. Stop the server, put the file back, and start it again",
                    path.display()
                );
                tracing::error!(%problem, "a file of the record was moved");
                let _first = self.lost.set(StoreError::Database(problem));
                break;
            }
        }
        self.lost.get().map_or(Ok(()), |lost| Err(lost.clone()))
    }
}

pub(crate) fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Whether the WAL of a record that is not open contains anything.
pub(crate) fn has_wal(database: &Path) -> bool {
    fs::symlink_metadata(wal(database)).is_ok_and(|meta| meta.len() > 0)
}

/// Truncates the WAL after its last successful commit, which removes the frames of a failed one.
///
/// SQLite ignores such frames and later overwrites them. But a process that opens the record before
/// that recovers the WAL from its beginning, and would take them for a commit that was never
/// synced.
pub(crate) fn truncate_failed_commit(database: &Path, conn: &Connection) -> Result<(), DbError> {
    let size: u64 = conn.pragma_query_value(None, "page_size", |row| get_uint(row, 0))?;
    let (busy, frames): (i64, i64) =
        conn.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let length = match u64::try_from(frames) {
        Ok(0) if busy == 0 => 0,
        Ok(frames) if busy == 0 => WAL_HEAD + frames * (FRAME_HEAD + size),
        _ => return Err(StoreError::Database("the state of the WAL is unknown".into()).into()),
    };
    let wal = wal(database);
    let cut = open(OpenOptions::new().write(true), &wal).and_then(|file| {
        if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
    });
    Ok(cut.map_err(|error| StoreError::Database(format!("{}: {error}", wal.display())))?)
}

/// Rewrites and syncs the WAL before SQLite recovers it.
///
/// If a server was killed between write and sync of a commit, or the sync failed, the commit may
/// exist in the page cache only. SQLite would recover it, and a client that resends one of its
/// entries would get an ack at once. So the WAL is synced before it is read. It is also rewritten
/// before that, with its own content: after a failed sync the kernel marks the pages clean, and
/// would sync nothing.
pub(crate) fn rewrite_wal(database: &Path) -> io::Result<()> {
    let mut file = match open(OpenOptions::new().read(true).write(true), &wal(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let (mut part, mut at) = (vec![0; 1024 * 1024], 0);
    loop {
        let read = match file.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        file.write_all_at(part.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
    file.sync_all()?;
    sync_directory(database)
}

/// Syncs the directory of `path`: a new file is durable only after its directory.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
