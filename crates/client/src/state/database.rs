//! The SQLite database of a state: opening, settings, schema, and the check that no part is missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations, SchemaVersion};

use super::error::StateError;
use crate::disk::{self, DiskError};

/// Maximum size of a database after an interrupted first use, in bytes.
const PAGE: u64 = 4096;
/// Pages in the WAL at which it is moved into the database. Every command reads the WAL when it opens
/// the state, and `send` writes 11 pages, so this is one checkpoint (two more syncs) in 12 messages.
const CHECKPOINT: i64 = 128;
/// The numbered schema files; append only.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../../migrations/0001_state.sql")),
    M::up(include_str!("../../migrations/0002_transfers.sql")),
];

/// Busy handler: waits for another process's write, which takes milliseconds.
///
/// Polls every 200 µs for about a quarter of a second, then every 2 ms. Gives up after about ten
/// seconds, which allow for a machine or a disk that wakes up from sleep. SQLite's own handler
/// sleeps up to 100 ms and rarely hits the gaps of a process that writes continuously.
fn wait(tries: i32) -> bool {
    thread::sleep(Duration::from_micros(if tries < 1000 { 200 } else { 2000 }));
    tries < 6000
}

/// Opens the database; creates it and applies missing migrations.
pub(super) fn connect(path: &Path) -> Result<Connection, StateError> {
    // An absolute path is not read as a URI. The parents are resolved, because `NOFOLLOW` refuses a
    // symbolic link in any component.
    let dir = path.parent().unwrap_or(path);
    let dir = fs::canonicalize(dir).map_err(DiskError::at(dir))?;
    let path = &dir.join(path.file_name().unwrap_or_default());
    check_not_lost(path)?;
    // SQLite creates its other files with the mode of the database.
    disk::make_private_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut conn = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
    conn.busy_handler(Some(wait))?;
    let migrations = Migrations::from_slice(MIGRATIONS);
    let database = |error: rusqlite_migration::Error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => err.into(),
        other => StateError::Database(other.to_string()),
    };
    if let SchemaVersion::Outside(found) = migrations.current_version(&conn).map_err(database)? {
        let (found, known) = (found.get(), MIGRATIONS.len());
        return Err(StateError::NewerSchema { path: path.to_path_buf(), found, known });
    }
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Texts of recorded messages leave no trace in free pages of the database. In the WAL they stay
    // until it is overwritten from its start, after [`CHECKPOINT`] pages.
    conn.pragma_update(None, "secure_delete", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    if migrations.pending_migrations(&conn).map_err(database)? != 0 {
        migrations.to_latest(&mut conn).map_err(database)?;
    }
    // From now on the database file alone shows that there was a state.
    if fs::metadata(path).map_err(DiskError::at(path))?.len() <= PAGE {
        conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(conn)
}

/// Detects a missing database or WAL.
///
/// The WAL stays when a process ends, so each of the two files shows that the other existed. SQLite
/// would delete a WAL without its database, and would open a database without its WAL as of the
/// last checkpoint.
pub(super) fn check_not_lost(path: &Path) -> Result<(), StateError> {
    let length = |path: &Path| match fs::symlink_metadata(path) {
        // A symbolic link is refused when it is opened.
        Ok(found) if found.is_file() || found.is_symlink() => Ok(Some(found.len())),
        Ok(_) => Err(StateError::from(DiskError::at(path)(disk::not_a_file()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::at(path)(error).into()),
    };
    let [wal, shm] = ["-wal", "-shm"].map(|suffix| beside(path, suffix));
    let there = |length: Option<u64>| length.is_some_and(|length| length > 0);
    let state = |length| if length == Some(0) { "is empty" } else { "is missing" };
    let (database, log) = (length(path)?, length(&wal)?);
    // SQLite removes the `-shm` before the WAL, and writes an empty WAL where it opens a database without one.
    if !there(database) && there(log) {
        return Err(StateError::Lost { path: path.to_owned(), state: state(database), trace: wal });
    }
    if database.is_some_and(|length| length > PAGE) && log.is_none() && length(&shm)?.is_some() {
        return Err(StateError::Lost { path: wal, state: state(log), trace: shm });
    }
    Ok(())
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Converts to SQLite's integers, which end at 2^63 - 1.
pub(crate) fn int(got: u64) -> Result<i64, StateError> {
    i64::try_from(got).map_err(|_| StateError::OutOfRange { got })
}

/// Converts back. The schema and [`int`] exclude negative numbers.
pub(crate) fn uint(stored: i64) -> u64 {
    stored.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_db__opens_with_wal_full_sync_and_secure_delete() {
        let dir = tempfile::tempdir().unwrap();
        let conn = connect(&dir.path().join("state.db")).unwrap();
        let pragma = |name: &str| -> String {
            let value = conn.query_row(
                &format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}"),
                [],
                |row| row.get(0),
            );
            value.unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal");
        assert_eq!(pragma("synchronous"), "2");
        assert_eq!(pragma("foreign_keys"), "1");
        assert_eq!(pragma("secure_delete"), "1");
    }

    #[test]
    fn state_db__migrations_run_in_sequence_and_none_is_missing() {
        Migrations::from_slice(MIGRATIONS).validate().unwrap();
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        assert_eq!(files.count(), MIGRATIONS.len());
    }
}
