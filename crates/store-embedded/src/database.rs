//! The databases next to the log: how a file is opened, its position in the log, and its checkpoints.

mod file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params};
use rusqlite_migration::{M, Migrations, SchemaVersion};
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::log::LogPosition;
use crate::open_error::OpenError;
use crate::row::{get_uint, int};

pub(crate) use file::open as open_file;

/// Page cache of each reading connection, KiB.
const READER_CACHE: i64 = 512;
/// Size to which the WAL file is truncated when it restarts, bytes. It is larger only after a burst.
const WAL_KEPT: i64 = 4 * 1024 * 1024;
/// Frames in the WAL from which on a checkpoint waits for readers, so that the WAL can restart.
const MANY_FRAMES: i64 = 2048;

/// What one of the databases is.
#[derive(Debug)]
pub(crate) struct DatabaseKind {
    /// The file's name in the record's directory.
    pub(crate) file: &'static str,
    /// The numbered schema files. New ones are appended; released ones never change.
    pub(crate) schema: &'static [M<'static>],
    /// Tables that it has in every version.
    pub(crate) tables: &'static [&'static str],
    /// Page cache of the writing connection, KiB.
    pub(crate) cache: i64,
    /// Whether what it has is only here or in the log's beginning, so that a file that does not fit
    /// is refused instead of made again.
    pub(crate) is_checked: bool,
    /// Number of pages in the WAL at which the writing connection checkpoints; 0: a thread does it.
    pub(crate) auto_checkpoint: i64,
}

/// The place in the log up to which a database is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordPosition {
    /// The id of the record.
    pub(crate) record_id: [u8; 16],
    /// The sequence of the first record that is not applied.
    pub(crate) next_seq: u64,
    /// The start of the batch that begins with it.
    pub(crate) position: LogPosition,
}

/// The position, as of the last commit. `None`: the database is new, so the whole log is replayed.
pub(crate) fn position(conn: &Connection) -> Result<Option<RecordPosition>, DbError> {
    let mut select =
        conn.prepare_cached("SELECT record, next_seq, segment, byte FROM position WHERE one = 1")?;
    let position = select.query_row([], |row| {
        Ok(RecordPosition {
            record_id: row.get(0)?,
            next_seq: get_uint(row, 1)?,
            position: LogPosition { segment: row.get(2)?, offset: row.get(3)? },
        })
    });
    Ok(position.optional()?)
}

/// Moves the position, in the transaction that applied everything before it.
pub(crate) fn set_position(conn: &Connection, at: &RecordPosition) -> Result<(), DbError> {
    let RecordPosition { record_id, next_seq, position: LogPosition { segment, offset } } = at;
    conn.prepare_cached(
        "INSERT OR REPLACE INTO position (one, record, next_seq, segment, byte)
         VALUES (1, ?1, ?2, ?3, ?4)",
    )?
    .execute(params![record_id, int(*next_seq), segment, offset])?;
    Ok(())
}

/// A database in the directory of a record.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseFile {
    kind: &'static DatabaseKind,
    path: PathBuf,
    directory: PathBuf,
    sync_failed: Arc<AtomicBool>,
}

impl DatabaseFile {
    /// The database of the record in `directory`, which exists.
    ///
    /// Resolves the symbolic links of the directory, because SQLite follows none.
    pub(crate) fn new(kind: &'static DatabaseKind, directory: &Path) -> Result<Self, OpenError> {
        let directory = fs::canonicalize(directory)
            .map_err(|error| OpenError::File { path: directory.to_path_buf(), error })?;
        let sync_failed = Arc::default();
        Ok(Self { kind, path: directory.join(kind.file), directory, sync_failed })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the connection that writes, and creates or migrates the database. It is the last one
    /// to close, so that it leaves one file.
    ///
    /// # Errors
    /// [`OpenError`]; then an existing database and its WAL have the same content as before.
    pub(crate) fn writer(&self) -> Result<Connection, OpenError> {
        let path = &self.path;
        let fault = |error| OpenError::File { path: path.clone(), error };
        let database = |problem: String| OpenError::Database { path: path.clone(), problem };
        let sqlite = |error: rusqlite::Error| match DbError::from(error).0 {
            StoreError::Full => fault(io::ErrorKind::StorageFull.into()),
            StoreError::Database(problem) | StoreError::Damaged(problem) => database(problem),
            other => database(other.to_string()),
        };
        let migration = |error: rusqlite_migration::Error| match error {
            rusqlite_migration::Error::RusqliteError { err, .. } => sqlite(err),
            other => database(other.to_string()),
        };
        file::prepare(path)?;
        let migrations = Migrations::from_slice(self.kind.schema);
        let had_wal = file::has_wal(path);
        let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
        leave_wal(&conn, true).map_err(sqlite)?;
        // SQLite opens a file without write permission read-only, and reports no error.
        if conn.is_readonly(rusqlite::MAIN_DB).map_err(sqlite)? {
            return Err(fault(io::ErrorKind::PermissionDenied.into()));
        }
        // Nothing in the file changes before these checks.
        let schema = migrations.current_version(&conn).map_err(migration)?;
        if let SchemaVersion::Outside(found) = schema {
            let (found, known) = (found.get(), self.kind.schema.len());
            return Err(OpenError::Newer { path: path.clone(), found, known });
        }
        if let Some(problem) = problem(&conn, schema, had_wal, self.kind).map_err(sqlite)? {
            let (path, directory) = (path.clone(), self.directory.clone());
            return Err(OpenError::Damaged { path, directory, problem });
        }
        set_pragmas(&conn, self.kind).map_err(sqlite)?;
        migrations.to_latest(&mut conn).map_err(migration)?;
        // For the WAL's directory entry: SQLite syncs the directory with `fdatasync`, which is not
        // enough on some file systems.
        file::sync_directory(path).map_err(fault)?;
        leave_wal(&conn, false).map_err(sqlite)?;
        Ok(conn)
    }

    /// Opens the connection of a thread that makes commits durable.
    pub(crate) fn checkpointer(&self) -> rusqlite::Result<Checkpointer> {
        let conn = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.pragma_update(None, "cache_size", -64)?;
        conn.pragma_update(None, "wal_autocheckpoint", 0)?;
        // If a connection checkpoints when it closes, it is the writer's.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(Checkpointer { path: self.path.clone(), conn, sync_failed: self.sync_failed.clone() })
    }

    /// Whether a sync of this database has failed. From then on its WAL must stay as it is.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }
}

pub(crate) use file::has_wal;

/// Whether the connection leaves the WAL as it is when it closes, as after a start that is refused.
pub(crate) fn leave_wal(conn: &Connection, leaves: bool) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leaves).map(drop)
}

/// Opens a connection that only reads. `path` has no symbolic link.
pub(crate) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "cache_size", -READER_CACHE)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Opens a database that no server has open, and leaves its files as they are. What its WAL has is
/// seen. Several processes can do it at the same time.
///
/// # Errors
/// [`OpenError::Newer`]; another [`OpenError`] for a file that is not this database.
pub(crate) fn examine(kind: &DatabaseKind, directory: &Path) -> Result<Connection, OpenError> {
    let path = directory.join(kind.file);
    file::check(&path)?;
    let had_wal = file::has_wal(&path);
    let fault = |error: rusqlite::Error| OpenError::Database {
        path: path.clone(),
        problem: DbError::from(error).to_string(),
    };
    let conn = if had_wal { beside_wal(&path) } else { unchanged(&path) }.map_err(fault)?;
    let migrations = Migrations::from_slice(kind.schema);
    let schema = migrations
        .current_version(&conn)
        .map_err(|error| OpenError::Database { path: path.clone(), problem: error.to_string() })?;
    if let SchemaVersion::Outside(found) = schema {
        let (found, known) = (found.get(), kind.schema.len());
        return Err(OpenError::Newer { path, found, known });
    }
    match problem(&conn, schema, false, kind).map_err(fault)? {
        Some(problem) => Err(OpenError::Database { path, problem }),
        None => Ok(conn),
    }
}

/// Whether a database exists and has anything. One whose first transaction was never on disk is an
/// empty file, which a start fills again.
pub(crate) fn has_content(kind: &DatabaseKind, directory: &Path) -> bool {
    let path = directory.join(kind.file);
    let Ok(meta) = fs::symlink_metadata(&path) else { return false };
    let is_empty = |conn: Connection| -> rusqlite::Result<bool> {
        conn.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))
    };
    let opened = examine(kind, directory);
    !meta.is_file() || !opened.is_ok_and(|conn| is_empty(conn).unwrap_or(false))
}

/// Opens a database with a WAL. A connection that shares it would create its index (`-shm`) and lock
/// files, which the lock of the record replaces. An exclusive one keeps the index in memory.
fn beside_wal(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags_and_vfs(path, flags, "unix-none")?;
    conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(conn)
}

/// Opens a database without a WAL that no process changes. `immutable` keeps SQLite from creating
/// one.
pub(crate) fn unchanged(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    Connection::open_with_flags(uri + "?immutable=1", flags)
}

/// Makes commits of the writer durable, from another thread.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    path: PathBuf,
    conn: Connection,
    sync_failed: Arc<AtomicBool>,
}

impl Checkpointer {
    /// Makes everything durable that was committed before this call, and copies the WAL into the
    /// database. The writer continues, apart from some milliseconds after a long WAL.
    ///
    /// # Errors
    /// [`DbError`]. After a failed sync the kernel takes the pages for written, and another sync
    /// would succeed, although the disk lacks them. So every later call fails: the WAL keeps all
    /// pages until a start copies them again. SQLite remembers until then which ones it has copied.
    pub(crate) fn checkpoint(&self) -> Result<(), DbError> {
        let failed = |problem: String| {
            self.sync_failed.store(true, Ordering::Relaxed);
            let path = self.path.display();
            DbError::from(StoreError::Database(format!("{path} was not synced: {problem}")))
        };
        if self.sync_failed.load(Ordering::Relaxed) {
            return Err(failed("an earlier sync has failed".into()));
        }
        // A checkpoint syncs nothing while a reader keeps it from copying anything. Only a failed
        // sync is final: descriptors may be there again at the next try.
        let wal = file::open_wal(&self.path)
            .map_err(|error| StoreError::Database(format!("{}: {error}", self.path.display())))?;
        if let Some(wal) = wal {
            wal.sync_data().map_err(|error| failed(error.to_string()))?;
        }
        self.copy().map_err(|error| match error.sqlite_error() {
            Some(code) if code.extended_code == ffi::SQLITE_IOERR_FSYNC => {
                failed(error.to_string())
            }
            _ => error.into(),
        })
    }

    fn copy(&self) -> rusqlite::Result<()> {
        let frames: i64 = self
            .conn
            .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?
            .query_row([], |row| row.get(1))?;
        if frames > MANY_FRAMES {
            // A reader that is older than the newest commit stays in the way; the next call tries
            // again.
            self.conn.busy_handler(Some(wait_briefly))?;
            let truncated = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            self.conn.busy_handler(Some(wait))?;
            truncated?;
        }
        Ok(())
    }
}

/// Why an existing database cannot be the one of this record. `had_wal`: it was not closed in order.
///
/// SQLite accepts a WAL from another time and would copy it into the database, which mixes two
/// states. The log does not need the WAL, but a wrong table of members would go unnoticed.
fn problem(
    conn: &Connection,
    schema: SchemaVersion,
    had_wal: bool,
    kind: &DatabaseKind,
) -> rusqlite::Result<Option<String>> {
    let count = |sql| conn.query_row(sql, [], |row| row.get::<_, i64>(0));
    if schema == SchemaVersion::NoneSet {
        // A migration would add tables to the database of another program.
        let tables = count("SELECT count(*) FROM sqlite_schema")?;
        return Ok((tables > 0).then(|| "it is the database of another program".to_owned()));
    }
    for table in kind.tables {
        let has = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        if conn.query_row(has, [table], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Some(format!("it is another database than {}", kind.file)));
        }
    }
    if had_wal && kind.is_checked {
        let check = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        let found = match check {
            Ok(ok) if ok == "ok" => return Ok(None),
            Ok(found) => found,
            Err(error) if is_damage(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        return Ok(Some(format!(
            "its WAL is of another time, or it is damaged ({found}). Without it and its -wal and \
             -shm, a start makes it again from the log, but for read markers"
        )));
    }
    Ok(None)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn set_pragmas(conn: &Connection, kind: &DatabaseKind) -> rusqlite::Result<()> {
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut makes the database older, not inconsistent; the log has the rest.
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // Overwrites deleted content, so that forgotten sources leave no trace in free pages.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "cache_size", -kind.cache)?;
    conn.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
    conn.pragma_update(None, "wal_autocheckpoint", kind.auto_checkpoint)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    // Each connection is used by one thread at a time.
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_handler(Some(wait))?;
    conn.pragma_update(None, "trusted_schema", false)?;
    Ok(conn)
}

/// Busy handler: waits for a checkpoint that truncates the WAL, or for another process (a backup, an
/// `sqlite3` shell) that holds a lock. SQLite's own handler would sleep up to 100 ms at a time. Gives
/// up after about ten seconds.
fn wait(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(if tries < 2000 { 100 } else { 2000 }));
    tries < 7000
}

/// Busy handler of a checkpoint that truncates the WAL, which stops the writer: gives up after about
/// 8 ms.
fn wait_briefly(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(100));
    tries < 50
}

#[cfg(test)]
mod tests;
