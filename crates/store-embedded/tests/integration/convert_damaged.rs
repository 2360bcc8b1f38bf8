//! Conversion refuses a record that does not verify, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use twinlock_core::id::ServerKey;
use twinlock_core::keys::RowKey;
use twinlock_store::LOBBY;
use twinlock_store_embedded::{Expected, OpenError, convert};

use crate::common::old_record::{SERVER_KEY, grow, row_key};
use crate::convert::{convert, convert_expecting, database, fixture};

/// Names and content of the files of a directory, without the index of a WAL.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|file| {
        let path = file.unwrap().path();
        let content = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        (path.file_name().unwrap().to_str().unwrap().to_owned(), content)
    });
    files.filter(|(name, _)| !name.ends_with("-shm")).collect()
}

/// Refused because of damage, with this text, and unchanged.
#[track_caller]
fn refused(dir: &Path, expected: &Expected, text: &str) {
    let before = files(dir);
    match convert_expecting(dir, expected) {
        Err(error @ OpenError::Damaged { .. }) => {
            assert!(error.to_string().contains(text), "{error}");
        }
        other => panic!("{text}: {other:?}"),
    }
    assert!(files(dir) == before, "{text}: {:?}", files(dir).keys());
}

#[test]
fn convert__changed_rows_are_refused_and_named() {
    for (sql, text) in [
        (
            "UPDATE entries SET link = zeroblob(32) WHERE conversation = 1 AND n = 7",
            "entry 7 of conversation 1 or one before it was changed",
        ),
        (
            "UPDATE entries SET body = x'00' WHERE conversation = 2 AND n = 9",
            "entry 9 of conversation 2 or one before it was changed",
        ),
        (
            "UPDATE entries SET salt = zeroblob(16) WHERE conversation = 2 AND n = 9",
            "entry 9 of conversation 2",
        ),
        (
            "UPDATE entries SET \"commit\" = zeroblob(32) WHERE conversation = 1 AND n = 3",
            "entry 3 of conversation 1",
        ),
        (
            "UPDATE entries SET body = NULL WHERE conversation = 1 AND n = 5",
            "entry 5 of conversation 1: it has neither a body nor a commitment",
        ),
        (
            "UPDATE entries SET time_ms = time_ms + 1 WHERE conversation = 1 AND n = 6",
            "entry 6 of conversation 1",
        ),
        (
            "UPDATE entries SET kind = 2 WHERE conversation = 1 AND n = 6",
            "entry 6 of conversation 1",
        ),
        (
            "UPDATE entries SET sender = x'626f62' WHERE conversation = 1 AND n = 6",
            "entry 6 of conversation 1",
        ),
        (
            "UPDATE entries SET user = 1 WHERE conversation = 1 AND n = 6",
            "entry 6 of conversation 1: it is stored for another user than its sender",
        ),
        (
            "DELETE FROM entries WHERE conversation = 2 AND n = 9",
            "entry 10 of conversation 2 arrived instead of entry 9",
        ),
        ("DELETE FROM entries WHERE conversation = 2 AND n = 1", "instead of entry 1"),
        (
            "UPDATE entries SET seq = -seq WHERE conversation = 2 AND n = 9",
            "entry 9 of conversation 2 arrived instead of entry 1",
        ),
        ("PRAGMA foreign_keys = OFF; DELETE FROM conversations WHERE id = 5", "conversation 5"),
        ("UPDATE users SET role = 2 WHERE name = 'carl'", "the MAC of user carl does not verify"),
        ("UPDATE users SET mac = zeroblob(32) WHERE name = 'ada'", "user ada"),
        ("UPDATE credentials SET state = 0 WHERE state = 1", "the MAC of a credential"),
        ("UPDATE credentials SET role = 2 WHERE cid = x'030606060606060606'", "a credential"),
        ("UPDATE classic_keys SET conversation = 1 WHERE name = 'lamp'", "classic key lamp"),
        ("UPDATE classic_keys SET state = 0 WHERE name = 'siren'", "classic key siren"),
        ("UPDATE conversations SET members = members + 1 WHERE id = 2", "its conversations"),
        (
            "PRAGMA foreign_keys = OFF; DELETE FROM users WHERE name = 'eve'",
            "member eve of conversation 1 is no user",
        ),
        ("DROP TABLE members", "without the record of a server"),
    ] {
        let dir = fixture();
        let conn = Connection::open(database(&dir)).unwrap();
        conn.execute_batch(sql).unwrap();
        conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        conn.close().unwrap();
        refused(dir.path(), &Expected::default(), text);
    }
}

#[test]
fn convert__other_keys_are_refused() {
    let dir = fixture();
    let before = files(dir.path());
    let directory = dir.path().join("record");
    let convert = |row_key: &RowKey, server_key: &ServerKey| {
        let expected = Expected::default();
        convert::convert(&database(&dir), &directory, row_key, server_key, &expected, &mut |_| {})
    };
    let refused = convert(&RowKey::new(&[1; 32]), &SERVER_KEY);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{refused:?}");
    let refused = convert(&row_key(), &ServerKey([1; 32]));
    assert!(matches!(refused, Err(OpenError::OtherServer { .. })), "{refused:?}");
    assert!(files(dir.path()) == before);
    assert!(convert(&row_key(), &SERVER_KEY).is_ok());
}

#[test]
fn convert__newer_and_foreign_databases_are_refused() {
    for (version, newer) in [(10, true), (8, false)] {
        let dir = tempfile::tempdir().unwrap();
        let conn = Connection::open(database(&dir)).unwrap();
        conn.execute_batch("CREATE TABLE other (x)").unwrap();
        conn.pragma_update(None, "user_version", version).unwrap();
        conn.close().unwrap();
        let before = files(dir.path());
        let refused = convert(dir.path());
        assert_eq!(matches!(refused, Err(OpenError::Newer { .. })), newer, "{refused:?}");
        assert_eq!(matches!(refused, Err(OpenError::Damaged { .. })), !newer, "{refused:?}");
        assert!(files(dir.path()) == before);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(database(&dir), "no database, but longer than a header".repeat(9)).unwrap();
    refused(dir.path(), &Expected::default(), "it is not a database");
    // The stub without the record.
    let dir = fixture();
    convert(dir.path()).unwrap();
    fs::remove_dir_all(dir.path().join("record")).unwrap();
    refused(dir.path(), &Expected::default(), "was converted, and is missing");
}

/// An older copy of a record verifies. Only `heads` shows that its end is missing.
#[tokio::test]
async fn convert__record_without_acknowledged_entries_is_refused() {
    let dir = fixture();
    let mut conn = Connection::open(database(&dir)).unwrap();
    let newest = grow(&mut conn, LOBBY, &["newer than the fixture".to_owned()]);
    conn.close().unwrap();
    let older = fixture();
    let mut expected = Expected::default();
    expected.entries.push(newest);
    let text = "which was acknowledged, is missing";
    refused(older.path(), &expected, text);
    convert_expecting(dir.path(), &expected).unwrap();
    for at in &mut expected.entries {
        at.link.0 = [0; 32];
    }
    refused(fixture().path(), &expected, text);
    convert(older.path()).unwrap();
}

/// SQLite takes a WAL of another time.
#[tokio::test]
async fn convert__wal_of_another_time_is_refused() {
    let dir = fixture();
    let mut conn = Connection::open(database(&dir)).unwrap();
    for n in 0..200 {
        grow(&mut conn, LOBBY, &[format!("early {n} {}", "x".repeat(500))]);
    }
    let wal = dir.path().join("record.db-wal");
    let early = fs::read(&wal).unwrap();
    assert!(!early.is_empty());
    conn.close().unwrap();
    let mut conn = Connection::open(database(&dir)).unwrap();
    for n in 0..400 {
        grow(&mut conn, LOBBY, &[format!("late {n} {}", "y".repeat(700))]);
    }
    conn.close().unwrap();
    fs::write(&wal, early).unwrap();
    refused(dir.path(), &Expected::default(), "do not belong together");
    fs::remove_file(&wal).unwrap();
    let _index_of_the_wal = fs::remove_file(dir.path().join("record.db-shm"));
    convert(dir.path()).unwrap();
}

/// Every page that is missing or another one is found.
#[test]
fn convert__damaged_pages_are_never_converted_silently() {
    let original = fs::read(database(&fixture())).unwrap();
    let whole = convert(fixture().path()).unwrap();
    let page = usize::from(u16::from_be_bytes(original[16..18].try_into().unwrap()));
    for number in 1..original.len() / page {
        let dir = fixture();
        let mut bytes = original.clone();
        bytes[number * page..(number + 1) * page].fill(0);
        fs::write(database(&dir), &bytes).unwrap();
        match convert(dir.path()) {
            // A page of an index or of the words, which the log does not come from.
            Ok(converted) => assert_eq!(converted, whole, "page {number}"),
            Err(_) => assert!(fs::read(database(&dir)).unwrap() == bytes, "page {number}"),
        }
    }
}
