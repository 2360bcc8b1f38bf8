//! Conversion: the log answers as the record that it was made of.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;
use tempfile::TempDir;
use twinlock_store::{Appended, LOBBY, Store};
use twinlock_store_embedded::convert::{self, Converted, KEPT_FOR, Progress, Stage};
use twinlock_store_embedded::{EmbeddedStore, Expected, OpenError, StoreOptions};

use crate::common::contract::*;
use crate::common::old_record::{SERVER_KEY, answers, clock, grow, newest_of, repeat, row_key};
use crate::common::{entry, links, say};

/// Entries of the fixture, and conversations.
const ENTRIES: u64 = 104;
const CONVERSATIONS: u64 = 6;
/// Newest schema of the old form.
const NEWEST_SCHEMA: u32 = 8;

/// A directory with a copy of the fixture.
pub(crate) fn fixture() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/old-record.db");
    fs::copy(fixture, database(&dir)).unwrap();
    dir
}

pub(crate) fn database(dir: &TempDir) -> PathBuf {
    dir.path().join("record.db")
}

pub(crate) fn convert(dir: &Path) -> Result<Converted, OpenError> {
    convert_expecting(dir, &Expected::default())
}

pub(crate) fn convert_expecting(dir: &Path, expected: &Expected) -> Result<Converted, OpenError> {
    let (database, directory) = (dir.join("record.db"), dir.join("record"));
    convert::convert(&database, &directory, &row_key(), &SERVER_KEY, expected, &mut |_| {})
}

/// What the old form answered about the fixture, brought to this schema, and later to the newest.
fn answers_of(schema: u32) -> String {
    let answers = include_str!("../fixtures/old-record.answers");
    let changed = include_str!("../fixtures/old-record-schemas.answers");
    let mut lines: Vec<_> = answers.lines().collect();
    for change in changed.lines() {
        let mut words = change.splitn(3, ' ');
        let mut number = || words.next().unwrap().parse::<u32>().unwrap();
        let (of, line) = (number(), number());
        if of == schema {
            lines[line as usize] = words.next().unwrap();
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Opens the log.
pub(crate) fn open_new(dir: &Path) -> Arc<EmbeddedStore> {
    let options = StoreOptions::new(SERVER_KEY, row_key()).clock(clock());
    EmbeddedStore::open(&dir.join("record"), options).unwrap()
}

/// All answers, once the words are indexed.
pub(crate) async fn all_answers(store: &dyn Store) -> String {
    while store.unindexed() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    answers(store).await
}

/// Fields that the program of the old answers did not know are left out: an old record stands for
/// one value of each.
pub(crate) fn assert_same(before: &str, after: &str) {
    let known =
        |text: &str| text.replace(", state: Active }", " }").replace(", kind: Public,", ",");
    let (before, after) = (known(before), known(after));
    for (before, after) in before.lines().zip(after.lines()) {
        assert_eq!(before, after);
    }
    assert_eq!(before.lines().count(), after.lines().count());
}

#[tokio::test]
async fn convert__log_answers_as_the_old_record() {
    let before = answers_of(NEWEST_SCHEMA);
    assert!(before.contains("penguin") && !before.contains("secret xx"), "{before}");
    let new = fixture();
    let converted = convert(new.path()).unwrap();
    let users = 5;
    let expected =
        Converted { entries: ENTRIES, conversations: CONVERSATIONS, users, resumed: false };
    assert_eq!(converted, expected);
    // At once, after a start in order, and with the index made again.
    for round in 0..3 {
        let store = open_new(new.path());
        for conversation in 1..=CONVERSATIONS {
            links(&*store, conversation).await.unwrap();
        }
        assert_same(&before, &all_answers(&*store).await);
        let repeated = repeat(&*store, 2, "ada").await;
        assert!(
            matches!(&repeated[..], [Appended::Recorded(first)] if first.n == 2),
            "{repeated:?}"
        );
        store.close().await.unwrap();
        if round == 1 {
            fs::remove_file(new.path().join("record/index.db")).unwrap();
        }
    }
}

#[tokio::test]
async fn convert__record_continues_where_it_was() {
    let dir = fixture();
    convert(dir.path()).unwrap();
    let store = open_new(dir.path());
    let head = links(&*store, LOBBY).await.unwrap().len() as u64;
    let said = say(&*store, entry(LOBBY, "ada", "on we go")).await;
    assert_eq!(said.n, head + 1);
    // The message with this id is the first one of ada.
    let known = repeat(&*store, 2, "ada").await;
    assert!(matches!(&known[..], [Appended::Recorded(receipt)] if receipt.n == 2), "{known:?}");
    assert!(store.erase(LOBBY, 5).await.unwrap().is_some());
    assert!(store.erase(LOBBY, 3).await.unwrap().is_none(), "it was erased in the old record");
    store.close().await.unwrap();
    let store = open_new(dir.path());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len() as u64, head + 1);
}

#[tokio::test]
async fn convert__progress_covers_all_entries_twice() {
    let dir = fixture();
    let mut seen = Vec::new();
    let (database, directory) = (database(&dir), dir.path().join("record"));
    let expected = Expected::default();
    let note = &mut |progress| seen.push(progress);
    convert::convert(&database, &directory, &row_key(), &SERVER_KEY, &expected, note).unwrap();
    for stage in [Stage::Copy, Stage::Verify] {
        let of_stage: Vec<_> = seen.iter().filter(|progress| progress.stage == stage).collect();
        let last = Progress { stage, done: ENTRIES, total: ENTRIES };
        assert_eq!(of_stage.last(), Some(&&last));
        assert!(of_stage.is_sorted_by_key(|progress| progress.done));
    }
}

#[tokio::test]
async fn convert__older_program_refuses_the_place() {
    let dir = fixture();
    convert(dir.path()).unwrap();
    // Version 0.1.0 says "was written by a newer version (schema 9, this one knows 8)": the schema
    // is unknown to it, and the file has the tables by which it knows a record.
    let conn = Connection::open(database(&dir)).unwrap();
    let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(number("PRAGMA user_version"), NEWEST_SCHEMA + 1);
    let tables = "SELECT count(*) FROM sqlite_schema
                  WHERE type = 'table' AND name IN ('users', 'conversations', 'entries')";
    assert_eq!(number(tables), 3);
    drop(conn);
    let mode = fs::metadata(database(&dir)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dir.path().join("record.db-wal").exists());
    assert_eq!(convert(dir.path()).unwrap(), Converted::default());
}

#[tokio::test]
async fn convert__old_record_is_kept_and_can_come_back() {
    let dir = fixture();
    let original = fs::read(database(&dir)).unwrap();
    fs::set_permissions(database(&dir), fs::Permissions::from_mode(0o644)).unwrap();
    convert(dir.path()).unwrap();
    let kept = dir.path().join("record.db.before-log");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read(&kept).unwrap(), original);
    fs::rename(&kept, database(&dir)).unwrap();
    // Both forms could count now.
    let refused = convert(dir.path());
    assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{refused:?}");
    fs::remove_dir_all(dir.path().join("record")).unwrap();
    let converted = convert(dir.path()).unwrap();
    assert_eq!((converted.entries, converted.resumed), (ENTRIES, false));
}

#[tokio::test]
async fn convert__old_record_is_forgotten_in_time() {
    let dir = fixture();
    let (kept, directory) = (dir.path().join("record.db.before-log"), dir.path().join("record"));
    assert!(!convert::forget_old_record(&directory).unwrap());
    convert(dir.path()).unwrap();
    let at = |age: Duration| SystemTime::now() + age;
    assert!(!convert::forget_when_old(&directory, at(KEPT_FOR / 2)).unwrap());
    assert!(kept.exists());
    assert!(convert::forget_when_old(&directory, at(KEPT_FOR * 2)).unwrap());
    assert!(!kept.exists());
    assert!(!convert::forget_old_record(&directory).unwrap());
    assert!(!convert::is_due(&database(&dir), &directory).unwrap());
}

/// The log has all but the unlogged data: read markers, login times and sources.
#[tokio::test]
async fn convert__databases_are_rebuilt_from_the_log() {
    let dir = fixture();
    convert(dir.path()).unwrap();
    let store = open_new(dir.path());
    let before = all_answers(&*store).await;
    store.close().await.unwrap();
    for file in ["people.db", "index.db", "words.db"] {
        fs::remove_file(dir.path().join("record").join(file)).unwrap();
    }
    let store = open_new(dir.path());
    let logged = |answers: &str| -> String {
        let lines = answers.lines().filter(|line| {
            let unlogged = ["\"source\"", "\"late\"", "read: ", "seen_ms: "];
            !unlogged.iter().any(|word| line.contains(word))
        });
        lines.map(|line| format!("{line}\n")).collect()
    };
    assert_same(&logged(&before), &logged(&all_answers(&*store).await));
    for conversation in 1..=CONVERSATIONS {
        links(&*store, conversation).await.unwrap();
    }
}

/// Content that is erased in the log is in no other file of the record.
#[tokio::test]
async fn convert__old_record_goes_with_the_first_erasure() {
    let dir = fixture();
    convert(dir.path()).unwrap();
    let kept = dir.path().join("record.db.before-log");
    let store = open_new(dir.path());
    assert!(kept.exists());
    // Nothing is erased here.
    assert!(store.erase(LOBBY, 3).await.unwrap().is_none());
    assert!(kept.exists());
    assert!(store.erase(LOBBY, 5).await.unwrap().is_some());
    assert!(!kept.exists());
    store.close().await.unwrap();

    // At a start, once it is old.
    let dir = fixture();
    convert(dir.path()).unwrap();
    let kept = dir.path().join("record.db.before-log");
    let file = fs::File::open(&kept).unwrap();
    file.set_modified(SystemTime::now() - KEPT_FOR - Duration::from_secs(1)).unwrap();
    drop(open_new(dir.path()));
    assert!(!kept.exists());
}

#[tokio::test]
async fn convert__without_an_old_record_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("record");
    for empty in [false, true] {
        if empty {
            fs::write(database(&dir), "").unwrap();
        }
        assert!(!convert::is_due(&database(&dir), &directory).unwrap());
        assert_eq!(convert(dir.path()).unwrap(), Converted::default());
        assert!(!directory.exists());
    }
}

/// A server that was killed leaves entries in the WAL alone.
#[tokio::test]
async fn convert__wal_of_a_killed_server_is_part_of_the_record() {
    let (dir, killed) = (fixture(), tempfile::tempdir().unwrap());
    let mut conn = Connection::open(database(&dir)).unwrap();
    let texts: Vec<_> = (0..50).map(|n| format!("only in the WAL {n}")).collect();
    let last = grow(&mut conn, LOBBY, &texts).n;
    for file in ["record.db", "record.db-wal"] {
        fs::copy(dir.path().join(file), killed.path().join(file)).unwrap();
    }
    drop(conn);
    assert!(convert::is_due(&database(&killed), &killed.path().join("record")).unwrap());
    convert(killed.path()).unwrap();
    let store = open_new(killed.path());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len() as u64, last);
    let answers = all_answers(&*store).await;
    assert!(answers.contains("only in the WAL 49"), "{answers}");
    // The kept file is the whole old record.
    let kept = Connection::open(killed.path().join("record.db.before-log")).unwrap();
    let newest = newest_of(&kept, LOBBY);
    assert_eq!(newest.n, last);
}

#[test]
fn convert__directory_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"a?b#c%20 \xff\xc3\xbc");
    let odd = dir.path().join(name);
    fs::create_dir(&odd).unwrap();
    fs::copy(database(&fixture()), odd.join("record.db")).unwrap();
    assert_eq!(convert(&odd).unwrap().entries, ENTRIES);
    drop(open_new(&odd));
}

/// Each schema is read as it is. Its own program brings it to the newest one first.
#[tokio::test]
async fn convert__every_schema_is_converted() {
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/schema");
    let mut files: Vec<_> =
        fs::read_dir(migrations).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 8);
    for schema in 1..=NEWEST_SCHEMA {
        let new = tempfile::tempdir().unwrap();
        make_schema(&new, &files[..schema as usize]);
        let converted = convert(new.path()).unwrap();
        assert_eq!(converted.entries, ENTRIES, "schema {schema}");
        let before = answers_of(schema);
        let after = all_answers(&*open_new(new.path())).await;
        // A record without a table of files had none, and this one has.
        let comparable = |answers: &str| -> String {
            let lines = answers.lines().filter(|line| {
                schema > 1
                    || !["stored", "hashes", "file", "referenced"]
                        .iter()
                        .any(|word| line.contains(&format!("\"{word}\"")))
            });
            lines.map(|line| format!("{line}\n")).collect()
        };
        assert_same(&comparable(&before), &comparable(&after));
    }
}

/// A record of an older schema, with what it can have of the fixture.
fn make_schema(dir: &TempDir, migrations: &[PathBuf]) {
    let full = fixture();
    let conn = Connection::open(database(dir)).unwrap();
    for migration in migrations {
        conn.execute_batch(&fs::read_to_string(migration).unwrap()).unwrap();
    }
    let attach = format!("ATTACH '{}' AS full", database(&full).display());
    conn.execute_batch(&attach).unwrap();
    for table in [
        "users",
        "credentials",
        "conversations",
        "members",
        "entries",
        "files",
        "classic_keys",
        "sources",
    ] {
        let sql = format!(
            "SELECT group_concat('\"' || name || '\"') FROM pragma_table_info('{table}', 'main')"
        );
        let columns: Option<String> = conn.query_row(&sql, [], |row| row.get(0)).unwrap();
        let Some(columns) = columns else { continue };
        // A sealed key's MAC covers what this schema has no column for.
        let rows = match columns.contains("sealed") || table != "classic_keys" {
            true => "",
            false => "WHERE sealed IS NULL",
        };
        let copy = format!(
            "INSERT INTO main.{table} ({columns}) SELECT {columns} FROM full.{table} {rows}"
        );
        conn.execute_batch(&copy).unwrap();
    }
    conn.pragma_update(None, "user_version", i64::try_from(migrations.len()).unwrap()).unwrap();
    conn.execute_batch("DETACH full").unwrap();
}
