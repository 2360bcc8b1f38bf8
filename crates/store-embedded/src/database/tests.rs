use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::file_names::{wal, with_suffix};
use crate::people::PEOPLE;

fn position_at(next_seq: u64) -> RecordPosition {
    let position = LogPosition { segment: 3, offset: u32::MAX };
    RecordPosition { record_id: [8; 16], next_seq, position }
}

/// Ends a process without closing its database.
fn kill(conn: Connection) {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    drop(conn);
}

fn read(path: &Path) -> Vec<Vec<u8>> {
    [path.to_owned(), wal(path)].iter().map(|path| fs::read(path).unwrap_or_default()).collect()
}

#[test]
fn people_db__migrations_run_in_sequence_and_none_is_missing() {
    Migrations::from_slice(PEOPLE.schema).validate().unwrap();
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/people")).unwrap();
    assert_eq!(files.count(), PEOPLE.schema.len());
}

#[test]
fn people_db__opens_private_with_wal_and_secure_delete() {
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let conn = file.writer().unwrap();
    let pragma = |conn: &Connection, name: &str| -> String {
        let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma(&conn, "journal_mode"), "wal");
    assert_eq!(pragma(&conn, "synchronous"), "1");
    assert_eq!(pragma(&conn, "foreign_keys"), "1");
    assert_eq!(pragma(&conn, "secure_delete"), "1");
    assert_eq!(pragma(&conn, "trusted_schema"), "0");
    let automatic = conn.pragma_query_value(None, "wal_autocheckpoint", |row| row.get::<_, i64>(0));
    assert_eq!(automatic, Ok(0));
    for path in [file.path(), &wal(file.path())] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    let reader = reader(file.path()).unwrap();
    assert!(reader.execute("DELETE FROM position", []).is_err());
    drop(reader);
    drop(conn);
    assert!(!wal(file.path()).exists());
    fs::set_permissions(file.path(), Permissions::from_mode(0o644)).unwrap();
    drop(file.writer().unwrap());
    assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn people_db__position_survives_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let conn = file.writer().unwrap();
    assert_eq!(position(&conn).unwrap(), None);
    set_position(&conn, &position_at(5)).unwrap();
    set_position(&conn, &position_at(6)).unwrap();
    kill(conn);
    assert!(file::has_wal(file.path()));
    let conn = file.writer().unwrap();
    assert_eq!(position(&conn).unwrap(), Some(position_at(6)));
    assert_eq!(position(&reader(file.path()).unwrap()).unwrap(), Some(position_at(6)));
}

/// What a checkpoint has copied is in the database file alone.
#[test]
fn people_db__checkpoint_copies_past_a_reader_and_limits_the_wal() {
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let conn = file.writer().unwrap();
    let checkpointer = file.checkpointer().unwrap();
    let without_wal = |file: &DatabaseFile| {
        let copy = tempfile::tempdir().unwrap();
        let copied = DatabaseFile::new(&PEOPLE, copy.path()).unwrap();
        fs::copy(file.path(), copied.path()).unwrap();
        position(&copied.writer().unwrap()).unwrap()
    };
    set_position(&conn, &position_at(5)).unwrap();
    checkpointer.checkpoint().unwrap();
    assert_eq!(without_wal(&file), Some(position_at(5)));
    let reader = reader(file.path()).unwrap();
    let snapshot = reader.unchecked_transaction().unwrap();
    assert_eq!(position(&snapshot).unwrap(), Some(position_at(5)));
    for n in 0..=MANY_FRAMES.unsigned_abs() {
        set_position(&conn, &position_at(n)).unwrap();
    }
    // The reader is older, so the WAL stays; this is not an error.
    checkpointer.checkpoint().unwrap();
    assert!(file::has_wal(file.path()));
    assert_eq!(position(&snapshot).unwrap(), Some(position_at(5)));
    drop(snapshot);
    checkpointer.checkpoint().unwrap();
    assert!(!file::has_wal(file.path()));
    assert_eq!(without_wal(&file), Some(position_at(MANY_FRAMES.unsigned_abs())));
    drop(checkpointer);
    drop(reader);
    drop(conn);
    assert!(!wal(file.path()).exists());
}

#[test]
fn people_db__newer_or_foreign_database_is_refused_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let newer = |error: &OpenError| matches!(error, OpenError::Newer { found: 99, known: 3, .. });
    let damaged = |error: &OpenError| matches!(error, OpenError::Damaged { .. });
    let no_database = |error: &OpenError| matches!(error, OpenError::Database { .. });
    type Expected<'e> = &'e dyn Fn(&OpenError) -> bool;
    let cases: [(&str, Expected<'_>); 3] = [
        ("PRAGMA journal_mode = WAL; CREATE TABLE a (b); PRAGMA user_version = 99", &newer),
        ("CREATE TABLE other (program)", &damaged),
        // The index, say, under this name.
        ("CREATE TABLE position (one); PRAGMA user_version = 1", &damaged),
    ];
    for (sql, expected) in cases {
        fs::remove_file(file.path()).ok();
        let conn = Connection::open(file.path()).unwrap();
        conn.execute_batch(sql).unwrap();
        kill(conn);
        let before = read(file.path());
        let refused = file.writer().unwrap_err();
        assert!(expected(&refused), "{sql}: {refused:?}");
        assert_eq!(read(file.path()), before, "{sql}");
        for suffix in ["-wal", "-shm"] {
            fs::remove_file(with_suffix(file.path(), suffix)).ok();
        }
    }
    fs::write(file.path(), "no database at all").unwrap();
    let refused = file.writer().unwrap_err();
    assert!(no_database(&refused), "{refused:?}");
    assert_eq!(fs::read(file.path()).unwrap(), b"no database at all");
}

#[test]
fn people_db__wal_of_another_time_is_refused_unchanged() {
    let fill = |conn: &Connection, from: i64, to: i64| {
        for n in from..to {
            let sql = "INSERT INTO users (id, name, role, password, created_ms, mac)
                 VALUES (?1, ?2, 0, 0, 0, zeroblob(500))";
            conn.execute(sql, params![n, format!("user{n}")]).unwrap();
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let conn = file.writer().unwrap();
    fill(&conn, 0, 50);
    drop(conn);
    let old = fs::read(file.path()).unwrap();
    let conn = file.writer().unwrap();
    fill(&conn, 50, 300);
    drop(conn);
    let conn = file.writer().unwrap();
    fill(&conn, 300, 310);
    kill(conn);
    // An old copy of the database is put back, without its WAL.
    fs::write(file.path(), old).unwrap();
    let before = read(file.path());
    let refused = file.writer().unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused:?}");
    assert!(refused.to_string().contains("its WAL is of another time"), "{refused}");
    assert_eq!(read(file.path()), before);
    // Without its files it is made again.
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(with_suffix(file.path(), suffix)).unwrap();
    }
    assert_eq!(position(&file.writer().unwrap()).unwrap(), None);
}

#[test]
fn people_db__wal_of_a_lost_database_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
    let conn = file.writer().unwrap();
    set_position(&conn, &position_at(5)).unwrap();
    kill(conn);
    fs::remove_file(file.path()).unwrap();
    assert!(file::has_wal(file.path()));
    assert_eq!(position(&file.writer().unwrap()).unwrap(), None);
}

#[test]
fn people_db__link_or_fifo_is_not_opened() {
    for suffix in ["", "-wal", "-shm"] {
        let dir = tempfile::tempdir().unwrap();
        let file = DatabaseFile::new(&PEOPLE, dir.path()).unwrap();
        drop(file.writer().unwrap());
        let path = with_suffix(file.path(), suffix);
        let target = dir.path().join("target");
        fs::rename(&path, &target).ok();
        symlink(&target, &path).unwrap();
        let refused = file.writer().unwrap_err();
        assert!(refused.to_string().contains("symbolic link"), "{suffix}: {refused}");
        fs::remove_file(&path).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let refused = file.writer().unwrap_err();
        assert!(refused.to_string().contains("not a regular file"), "{suffix}: {refused}");
    }
}
