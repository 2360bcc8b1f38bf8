//! Opening a record: the checks before it, and the migrations.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use rusqlite_migration::{M, Migrations, SchemaVersion};
use twinlock_core::id::{Link, ServerKey};
use twinlock_store::{LOBBY, Newest, StoreError};

use crate::error::DbError;
use crate::file_names::{wal, with_suffix};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::record_files::{
    RecordLock, check_companions, check_magic, has_wal, private, rewrite_wal, sync_directory,
};
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

/// Makes the connection leave database and WAL as they are when it closes.
pub(crate) fn leave_files(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
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
    use crate::record_files::{device_and_inode, resolve};

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
