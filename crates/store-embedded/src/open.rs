//! The files of a record: permissions, lock, checks before opening, and migrations.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use rusqlite_migration::{M, Migrations, SchemaVersion};
use rustix::fs::OFlags;
use rustix::io::Errno;
use thiserror::Error;
use twinlock_core::id::{Link, ServerKey};
use twinlock_store::{LOBBY, Newest, StoreError};

use crate::error::DbError;
use crate::options::Expected;
use crate::row::{get_uint, int};

/// The numbered schema files. New ones are appended; released ones never change.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../migrations/0001_record.sql")),
    M::up(include_str!("../migrations/0002_files.sql")),
    M::up(include_str!("../migrations/0003_classic.sql")),
    M::up(include_str!("../migrations/0004_bounds.sql")),
    M::up(include_str!("../migrations/0005_sources.sql")),
    M::up(include_str!("../migrations/0006_files_charged.sql")),
    M::up(include_str!("../migrations/0007_classic_import.sql")),
    M::up(include_str!("../migrations/0008_source_methods.sql")),
];

/// Page cache of the recorder's connection, KiB. It holds the right edges of the indexes; a larger
/// one helps only an index whose ids do not start with a time.
const RECORDER_CACHE: i64 = 8 * 1024;
/// Page cache of each reading connection, KiB.
const READER_CACHE: i64 = 512;
/// Size to which the WAL file is truncated when it restarts, bytes. It is larger only after a
/// burst.
const WAL_KEPT: i64 = 16 * 1024 * 1024;

/// Entries that the check at startup counts, over all conversations.
const COUNTED: u64 = 4096;

/// First bytes of an SQLite database file.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Sizes of the WAL header and of each frame header, bytes (SQLite, *The Database File Format*).
const WAL_HEAD: u64 = 32;
const FRAME_HEAD: u64 = 24;

/// Why a record could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has the record open.
    #[error("{} is in use: another server runs on this record; stop it or name another --data", .0.display())]
    InUse(PathBuf),
    /// A newer version of this program has migrated the record.
    #[error(
        "{} was written by a newer version (schema {found}, this one knows {known}): run that version, or restore a backup from before the update",
        path.display()
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema version of the database.
        found: usize,
        /// The newest schema version that this program knows.
        known: usize,
    },
    /// There was a record, but its database is missing, empty or not a database.
    #[error(
        "{} {state}, but {} shows that there was a record; nothing was changed. Restore {} from its backup, or move both away to create a new record",
        path.display(),
        trace.display(),
        path.display()
    )]
    Lost {
        /// The database.
        path: PathBuf,
        /// "is missing", "is empty" or "is not a database".
        state: &'static str,
        /// The file that shows that there was a record.
        trace: PathBuf,
    },
    /// The file is a database, but contains no record.
    #[error(
        "{} is a database without the record of this server; nothing was changed. Restore the record from its backup, or move this file away",
        .0.display()
    )]
    NoRecord(PathBuf),
    /// The WAL does not belong to the database.
    #[error(
        "{} and {} do not belong together, or are damaged: they lack acknowledged entries ({problem}); nothing was changed. Restore both from one backup, or the database alone from a backup made with `sqlite3 .backup` and move the other away. To accept the loss, remove {}",
        path.display(),
        with_suffix(path, "-wal").display(),
        path.with_file_name("heads").display()
    )]
    Mixed {
        /// The database.
        path: PathBuf,
        /// The entry that is missing, or SQLite's message.
        problem: String,
    },
    /// The record belongs to another server identity.
    #[error(
        "{} belongs to a server with another key ({recorded}) than the one in use ({given}): restore the identity that belongs to it, or the record that belongs to this identity",
        path.display()
    )]
    OtherServer {
        /// The database.
        path: PathBuf,
        /// The server key in the record.
        recorded: ServerKey,
        /// The server key of the identity in use.
        given: ServerKey,
    },
    /// An operation on a file or directory failed.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The database cannot be used: SQLite failed, or the file is not a database.
    #[error("{}: {problem}; if the file is damaged, restore it from its backup", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's message, or another cause.
        problem: String,
    },
}

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

impl RecordLock {
    /// Checks an existing record without writing to it. Refuses a file without a record, and a WAL
    /// that does not belong to the database.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn check(&self, expected: &Expected) -> Result<(), OpenError> {
        private(&self.database)?;
        check_magic(&self.database)?;
        check_companions(&self.database)?;
        check_wal_matches(&self.database, expected)
    }
}

/// Resolves the symbolic links in the database's directory. The result is absolute, so that SQLite
/// does not parse it as a URI.
fn resolve(database: &Path) -> Result<PathBuf, OpenError> {
    let fault = |error| OpenError::File { path: database.to_path_buf(), error };
    let name = database.file_name().ok_or_else(|| fault(io::ErrorKind::InvalidInput.into()))?;
    let dir = match database.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Ok(fs::canonicalize(dir).map_err(fault)?.join(name))
}

/// Opens a regular file without following a symbolic link.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a FIFO would block the start.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(plain)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) { is_link() } else { error }
}

fn is_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed here")
}

/// Opens the recorder's connection at the start of a store: checks the files, then migrates.
///
/// Creates the database and the lobby if they are missing. The database has mode 0600, which SQLite
/// copies to the WAL.
pub(crate) fn recorder(
    path: &Path,
    server_key: &ServerKey,
    now_ms: u64,
) -> Result<Connection, OpenError> {
    private(path)?;
    check_magic(path)?;
    // An empty WAL goes with a failed start, as it came.
    let keep_wal = has_wal(path);
    open_existing(path, server_key, now_ms, keep_wal)
}

/// Checks the database together with its WAL, without writing to either.
///
/// SQLite would accept a WAL from another time and checkpoint it into the database, which destroys
/// the database.
fn check_wal_matches(path: &Path, expected: &Expected) -> Result<(), OpenError> {
    let mixed = |problem: String| OpenError::Mixed { path: path.to_path_buf(), problem };
    let wal = has_wal(path);
    if wal && expected.closed {
        return Err(mixed("the record was closed in order, which leaves no WAL".to_owned()));
    }
    let is_missing = |path: &Path| {
        fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    if is_missing(&self::wal(path)) && !is_missing(&with_suffix(path, "-shm")) {
        tracing::warn!(
            path = %self::wal(path).display(),
            "the server did not end in order, and its WAL is missing: if power did not fail while it \
             started or ended, entries that were acknowledged are missing"
        );
    }
    let read = || -> rusqlite::Result<Result<(), OpenError>> {
        let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        leave_files(&conn)?;
        let tables = "SELECT COUNT(*) FROM sqlite_schema
                      WHERE type = 'table' AND name IN ('users', 'conversations', 'entries')";
        if conn.query_row(tables, [], |row| row.get::<_, i64>(0))? != 3 {
            return Ok(Err(OpenError::NoRecord(path.to_path_buf())));
        }
        if !wal {
            return Ok(Ok(()));
        }
        let Some(missing) = missing(&conn, &expected.entries)? else { return Ok(Ok(())) };
        // An older record with its own WAL is consistent. The check reads every page, so it runs
        // only if an entry is missing.
        match conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?.as_str() {
            "ok" => Ok(Ok(())),
            _ => Ok(Err(mixed(format!(
                "entry {} of conversation {}",
                missing.n, missing.conversation
            )))),
        }
    };
    match read() {
        Ok(checked) => checked,
        Err(error) => match DbError::from(error).0 {
            StoreError::Damaged(problem) if wal => Err(mixed(problem)),
            // `open_existing` reports this error when it opens the database for writing.
            _ => Ok(()),
        },
    }
}

/// Returns an entry that is missing, or whose predecessors are.
fn missing(conn: &Connection, entries: &[Newest]) -> rusqlite::Result<Option<Newest>> {
    let mut link = conn.prepare("SELECT link FROM entries WHERE conversation = ?1 AND n = ?2")?;
    let mut count = conn.prepare(
        // Reads every row, so that the count does not come from the index alone.
        "SELECT COALESCE(SUM(LENGTH(link)), 0) / 32 FROM entries
         WHERE conversation = ?1 AND n > ?2 AND n <= ?3",
    )?;
    let counted = COUNTED / (entries.len() as u64).max(1);
    for at in entries {
        let found =
            link.query_row(params![int(at.conversation), int(at.n)], |row| row.get(0).map(Link));
        let first = at.n.saturating_sub(counted);
        let range = params![int(at.conversation), int(first), int(at.n)];
        let present: u64 = count.query_row(range, |row| get_uint(row, 0))?;
        if found.optional()? != Some(at.link) || present != at.n - first {
            return Ok(Some(*at));
        }
    }
    Ok(None)
}

/// Opens the recorder's connection to an existing database, and migrates it. `keep_wal`: whether
/// the WAL stays if that fails.
pub(crate) fn open_existing(
    path: &Path,
    server_key: &ServerKey,
    now_ms: u64,
    keep_wal: bool,
) -> Result<Connection, OpenError> {
    let fault = |error| OpenError::File { path: path.to_path_buf(), error };
    check_companions(path)?;
    rewrite_wal(path).map_err(fault)?;
    let database = |problem: String| OpenError::Database { path: path.to_path_buf(), problem };
    let sqlite = |error: rusqlite::Error| match DbError::from(error).0 {
        StoreError::Full => fault(io::ErrorKind::StorageFull.into()),
        StoreError::Database(problem) | StoreError::Damaged(problem) => database(problem),
        other => database(other.to_string()),
    };
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    if keep_wal {
        leave_files(&conn).map_err(sqlite)?;
    }
    let migrations = Migrations::from_slice(MIGRATIONS);
    let migration = |error: rusqlite_migration::Error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => sqlite(err),
        other => database(other.to_string()),
    };
    // SQLite opens a file without write permission read-only, and reports no error.
    if conn.is_readonly(rusqlite::MAIN_DB).map_err(sqlite)? {
        return Err(fault(io::ErrorKind::PermissionDenied.into()));
    }
    let schema = migrations.current_version(&conn).map_err(migration)?;
    // Checked before anything in the file changes.
    if let SchemaVersion::Outside(found) = schema {
        let (found, known) = (found.get(), MIGRATIONS.len());
        return Err(OpenError::NewerSchema { path: path.to_path_buf(), found, known });
    }
    // Another program's database: a migration would add the record's tables to it.
    if schema == SchemaVersion::NoneSet
        && conn
            .query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| get_uint(row, 0))
            .map_err(sqlite)?
            > 0
    {
        return Err(OpenError::NoRecord(path.to_path_buf()));
    }
    set_pragmas(&conn).map_err(sqlite)?;
    migrations.to_latest(&mut conn).map_err(migration)?;
    let recorded = lobby(&conn, server_key, now_ms).map_err(sqlite)?;
    if recorded != *server_key {
        return Err(OpenError::OtherServer {
            path: path.to_path_buf(),
            recorded,
            given: *server_key,
        });
    }
    // For the WAL's directory entry: SQLite syncs the directory with `fdatasync`, which is not
    // enough on some file systems.
    sync_directory(path).map_err(fault)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(sqlite)?;
    Ok(conn)
}

fn set_pragmas(conn: &Connection) -> rusqlite::Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // Overwrites deleted content, so that erased entries leave no trace in free pages.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "cache_size", -RECORDER_CACHE)?;
    conn.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
    // The checkpoint thread and the recorder run checkpoints explicitly.
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Opens a connection that only reads.
pub(crate) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "cache_size", -READER_CACHE)?;
    Ok(conn)
}

/// Opens the connection of the checkpoint thread.
pub(crate) fn checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "cache_size", -64)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    // If a connection checkpoints when it closes, it is the recorder's.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // Each connection is used by one thread at a time.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_handler(Some(wait))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    Ok(conn)
}

/// Busy handler: waits for another process (a backup, an `sqlite3` shell) that holds a lock,
/// usually for a few milliseconds.
///
/// SQLite's own handler would sleep up to 100 ms at a time. Gives up after about ten seconds.
pub(crate) fn wait(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(if tries < 2000 { 100 } else { 2000 }));
    tries < 7000
}

/// Busy handler for one of several attempts to empty the WAL: gives up after about 8 ms.
pub(crate) fn wait_briefly(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(100));
    tries < 50
}

fn private(path: &Path) -> Result<(), OpenError> {
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
fn check_companions(path: &Path) -> Result<(), OpenError> {
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
fn check_magic(path: &Path) -> Result<(), OpenError> {
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

fn lost(path: &Path, state: &'static str) -> OpenError {
    OpenError::Lost { path: path.to_path_buf(), state, trace: wal(path) }
}

fn wal(database: &Path) -> PathBuf {
    with_suffix(database, "-wal")
}

fn with_suffix(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Makes the connection leave database and WAL as they are when it closes.
pub(crate) fn leave_files(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
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
fn rewrite_wal(database: &Path) -> io::Result<()> {
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
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Creates the lobby if it is missing. Returns the key of the server that created it.
fn lobby(conn: &Connection, server_key: &ServerKey, now_ms: u64) -> rusqlite::Result<ServerKey> {
    let made_by = conn
        .query_row("SELECT server_key FROM conversations WHERE id = ?1", [int(LOBBY)], |row| {
            row.get(0).map(ServerKey)
        })
        .optional()?;
    if made_by.is_none() {
        conn.execute(
            "INSERT INTO conversations (id, name, topic, server_key, members, created_ms)
             VALUES (?1, 'lobby', '', ?2, 0, ?3)",
            params![int(LOBBY), server_key.0, int(now_ms)],
        )?;
    }
    Ok(made_by.unwrap_or(*server_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_db__migrations_run_in_sequence_and_none_is_missing() {
        Migrations::from_slice(MIGRATIONS).validate().unwrap();
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        assert_eq!(files.count(), MIGRATIONS.len());
    }

    /// The WAL may have entries that no other file has, and a running server knows it by its inode.
    #[test]
    fn record_db__failed_open_leaves_the_wal() {
        let dir = tempfile::tempdir().unwrap();
        let path = resolve(&dir.path().join("record.db")).unwrap();
        let conn = recorder(&path, &ServerKey([1; 32]), 0).unwrap();
        leave_files(&conn).unwrap();
        drop(conn);
        let before = device_and_inode(&wal(&path)).unwrap();
        assert!(has_wal(&path));
        let refused = open_existing(&path, &ServerKey([2; 32]), 0, true);
        assert!(matches!(refused, Err(OpenError::OtherServer { .. })), "{refused:?}");
        assert_eq!(device_and_inode(&wal(&path)).unwrap(), before);
        assert!(has_wal(&path));
        // A connection that ends in order leaves one file.
        drop(open_existing(&path, &ServerKey([1; 32]), 0, true).unwrap());
        assert!(!wal(&path).exists());
    }

    #[test]
    fn record_db__opens_with_wal_full_sync_and_secure_delete() {
        let dir = tempfile::tempdir().unwrap();
        let path = resolve(&dir.path().join("record.db")).unwrap();
        let conn = recorder(&path, &ServerKey([1; 32]), 0).unwrap();
        let pragma = |name: &str| -> String {
            let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
            conn.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal");
        assert_eq!(pragma("synchronous"), "2");
        assert_eq!(pragma("foreign_keys"), "1");
        assert_eq!(pragma("secure_delete"), "1");
        assert_eq!(pragma("trusted_schema"), "0");
    }
}
