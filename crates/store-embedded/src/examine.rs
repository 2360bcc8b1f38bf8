//! A check of a record that changes nothing, for `twinlock doctor`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use twinlock_store::StoreError;

use crate::error::DbError;
use crate::file_names::with_suffix;
use crate::open::leave_files;
use crate::open_error::OpenError;
use crate::record_files::{check_companions, check_magic, has_wal, lost, open, resolve};

/// How long another program may have the record open: a backup locks it for milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of a record's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// There is none.
    Missing,
    /// A server has it open, and checked it when it started.
    InUse,
    /// Another program than a server has it open, so its content was not read.
    Busy,
    /// SQLite's quick check found no fault.
    Good,
}

/// Checks the record's files and, if no server has them open, their content.
///
/// Reads the whole database. A server that starts meanwhile finds the record in use. Creates, changes
/// and removes no file.
///
/// # Errors
/// [`OpenError`].
pub fn examine_record(database: &Path) -> Result<RecordState, OpenError> {
    let database = &resolve(database)?;
    let length = match fs::symlink_metadata(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(OpenError::File { path: database.clone(), error }),
        Ok(meta) => Some(meta.len()),
    };
    let Some(_locks) = lock(database)? else { return Ok(RecordState::InUse) };
    // A start refuses these, and SQLite would delete the WAL of an empty database.
    match length {
        None if has_wal(database) => return Err(lost(database, "is missing")),
        Some(0) if has_wal(database) => return Err(lost(database, "is empty")),
        None | Some(0) => return Ok(RecordState::Missing),
        Some(_) => {}
    }
    check_magic(database)?;
    check_companions(database)?;
    let problem = |problem: String| OpenError::Database { path: database.clone(), problem };
    let journal = with_suffix(database, "-journal");
    if has_wal(database) && fs::symlink_metadata(&journal).is_ok() {
        return Err(problem(format!(
            "{} is a rollback journal, and a record has none: another program has changed its mode",
            journal.display()
        )));
    }
    let checked = match quick_check(database) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            return Ok(RecordState::Busy);
        }
        checked => checked.map_err(|error| match DbError::from(error).0 {
            StoreError::Damaged(text) => problem(text),
            other => problem(other.to_string()),
        })?,
    };
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
    let conn = if has_wal(database) {
        // A connection that can only read would create the index of the WAL (`-shm`). One that locks
        // the database exclusively, which takes a writable descriptor, keeps the index in memory.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let conn = Connection::open_with_flags(database, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        conn.busy_timeout(PATIENCE)?;
        conn.pragma_update(None, "query_only", true)?;
        conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        conn
    } else {
        // Without a WAL the database is all, and `immutable` keeps SQLite from creating one.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let path = database.to_string_lossy();
        let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{path}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    };
    leave_files(&conn)?;
    conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;
    use std::time::SystemTime;

    use tempfile::TempDir;
    use twinlock_core::id::ServerKey;

    use super::*;
    use crate::RecordLock;
    use crate::open::recorder;

    /// A record whose entries are in the database, or else still in the WAL, as after a crash.
    fn record(in_wal: bool) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = resolve(&dir.path().join("record.db")).unwrap();
        let conn = recorder(&path, &ServerKey([1; 32]), 0).unwrap();
        if in_wal {
            leave_files(&conn).unwrap();
        }
        drop(conn);
        if in_wal {
            // As after a restart of the machine.
            let _missing = fs::remove_file(with_suffix(&path, "-shm"));
        }
        assert_eq!(has_wal(&path), in_wal);
        (dir, path)
    }

    /// The files of a directory, with times and contents.
    fn files(dir: &TempDir) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
        let read = |entry: io::Result<fs::DirEntry>| {
            let path = entry.unwrap().path();
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            (path.clone(), (time, fs::read(path).unwrap()))
        };
        fs::read_dir(dir.path()).unwrap().map(read).collect()
    }

    /// Examines a record, which must leave all files as they are.
    fn examined(dir: &TempDir, path: &Path) -> Result<RecordState, OpenError> {
        let before = files(dir);
        let state = examine_record(path);
        assert!(files(dir) == before, "{:?}", files(dir).keys());
        state
    }

    #[test]
    fn examine__good_record_stays_as_it_is() {
        for in_wal in [false, true] {
            let (dir, path) = record(in_wal);
            assert_eq!(examined(&dir, &path).unwrap(), RecordState::Good, "in the WAL: {in_wal}");
            // A server can start.
            drop(recorder(&path, &ServerKey([1; 32]), 0).unwrap());
        }
    }

    #[test]
    fn examine__record_in_use_is_not_read() {
        let (dir, path) = record(true);
        let lock = RecordLock::take(&path).unwrap();
        fs::write(&path, "no database").unwrap();
        assert_eq!(examined(&dir, &path).unwrap(), RecordState::InUse);
        drop(lock);
        let problem = examined(&dir, &path).unwrap_err();
        assert!(matches!(problem, OpenError::Lost { .. }), "{problem}");
    }

    #[test]
    fn examine__missing_or_empty_record_is_new_without_wal() {
        for in_wal in [false, true] {
            for is_empty in [false, true] {
                let (dir, path) = record(in_wal);
                match is_empty {
                    true => File::create(&path).map(drop).unwrap(),
                    false => fs::remove_file(&path).unwrap(),
                }
                match examined(&dir, &path) {
                    Ok(state) => assert_eq!((state, in_wal), (RecordState::Missing, false)),
                    Err(problem) => {
                        assert!(in_wal && matches!(problem, OpenError::Lost { .. }), "{problem}");
                    }
                }
            }
        }
    }

    #[test]
    fn examine__damage_is_found_in_database_and_wal() {
        let (dir, path) = record(false);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0x55; 4096], 4096).unwrap();
        let problem = examined(&dir, &path);
        assert!(matches!(problem, Err(OpenError::Database { .. })), "{problem:?}");

        // A commit that only the WAL has.
        let (dir, path) = record(false);
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "writable_schema", true).unwrap();
        let sql = "UPDATE sqlite_schema SET rootpage = 9999
                   WHERE name = (SELECT max(name) FROM sqlite_schema WHERE type = 'table')";
        conn.execute(sql, []).unwrap();
        leave_files(&conn).unwrap();
        drop(conn);
        assert!(has_wal(&path));
        let problem = examined(&dir, &path);
        assert!(matches!(problem, Err(OpenError::Database { .. })), "{problem:?}");
    }

    #[test]
    fn examine__record_that_another_program_reads_is_left_alone() {
        let (dir, path) = record(true);
        let other = Connection::open(&path).unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema";
        other.query_row(tables, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(examined(&dir, &path).unwrap(), RecordState::Busy);
    }

    #[test]
    fn examine__foreign_files_are_named() {
        let (dir, path) = record(false);
        let shm = with_suffix(&path, "-shm");
        std::os::unix::fs::symlink("/nowhere", &shm).unwrap();
        let problem = examine_record(&path).unwrap_err();
        assert!(problem.to_string().contains("-shm"), "{problem}");
        fs::remove_file(&shm).unwrap();
        fs::write(&path, "something else").unwrap();
        let problem = examined(&dir, &path).unwrap_err();
        assert!(problem.to_string().contains("not a database"), "{problem}");

        let (dir, path) = record(true);
        fs::write(with_suffix(&path, "-journal"), "journal").unwrap();
        let problem = examined(&dir, &path).unwrap_err();
        assert!(problem.to_string().contains("rollback journal"), "{problem}");
    }
}
