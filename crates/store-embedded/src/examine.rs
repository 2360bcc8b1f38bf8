//! A check of a record that changes nothing, for `twinlock doctor`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::file_names::with_suffix;
use crate::open::leave_files;
use crate::open_error::OpenError;
use crate::record_files::{check_companions, check_magic, has_wal, open, resolve};

/// The state of a record's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// There is none.
    Missing,
    /// A server has it open, and checked it when it started.
    InUse,
    /// SQLite's quick check found no fault.
    Good,
}

/// Checks the record's files and, if no server has them open, their content.
///
/// Reads the whole database. A server that starts meanwhile finds the record in use. Creates and
/// changes no file, except that SQLite may create an index of the WAL (`-shm`) if a server did not
/// end in order.
///
/// # Errors
/// [`OpenError`].
pub fn examine_record(database: &Path) -> Result<RecordState, OpenError> {
    let database = &resolve(database)?;
    match fs::symlink_metadata(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(RecordState::Missing),
        Err(error) => return Err(OpenError::File { path: database.clone(), error }),
        Ok(_) => {}
    }
    let Some(_locks) = lock(database)? else { return Ok(RecordState::InUse) };
    check_magic(database)?;
    check_companions(database)?;
    let problem = |problem: String| OpenError::Database { path: database.clone(), problem };
    let checked = quick_check(database).map_err(|error| match DbError::from(error).0 {
        StoreError::Damaged(text) => problem(text),
        other => problem(other.to_string()),
    })?;
    match checked.as_str() {
        "ok" => Ok(RecordState::Good),
        fault => Err(problem(format!("quick check: {fault}"))),
    }
}

/// Shared locks on the files that [`crate::RecordLock`] locks; `None` if a server holds them.
fn lock(database: &Path) -> Result<Option<Vec<File>>, OpenError> {
    let path = with_suffix(database, ".lock");
    let fault = |error| OpenError::File { path: path.clone(), error };
    let mut locked = vec![File::open(database.parent().unwrap_or(Path::new("."))).map_err(fault)?];
    match open(OpenOptions::new().read(true), &path) {
        Ok(file) => locked.push(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    for file in &locked {
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(fault(error)),
        }
    }
    Ok(Some(locked))
}

fn quick_check(database: &Path) -> rusqlite::Result<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = if has_wal(database) {
        Connection::open_with_flags(database, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)?
    } else {
        // Without a WAL the database is all, and `immutable` keeps SQLite from creating one.
        let path = database.to_string_lossy();
        let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{path}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    };
    leave_files(&conn)?;
    conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}
