//! The files of a SQLite record: permissions, locking and content.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::contract::*;
use crate::common::{entry, join, links, name, open, options, say};
use rusqlite::{Connection, OpenFlags};
use twinlock_core::id::ServerKey;
use twinlock_store::{LOBBY, NewEntry, RowKey, Store};
use twinlock_store_embedded::{EmbeddedStore, OpenError, StoreOptions};

/// Polls for up to ten seconds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the record's files contain a word in lower case.
fn holds(dir: &Path, word: &str) -> bool {
    // The WAL first: content moves from it to the database, never back.
    ["record.db-wal", "record.db"].iter().any(|file| {
        let bytes = fs::read(dir.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).to_lowercase().contains(word)
    })
}

fn look(dir: &Path, sql: &str) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let conn = Connection::open_with_flags(dir.join("record.db"), flags).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn record_file__files_are_private_to_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    // The permissions of an existing file are restricted.
    let path = dir.path().join("record.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    say(&*store, entry(LOBBY, "ada", "x")).await;
    let mut names = Vec::new();
    for file in fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["record.db", "record.db-shm", "record.db-wal", "record.db.lock"]);
}

#[tokio::test]
async fn record_file__second_open_is_refused_until_first_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.db");
    let first = open(dir.path());
    join(&*first, "ada").await;
    let second = EmbeddedStore::open(&path, options());
    match second {
        Err(error @ OpenError::InUse(_)) => {
            assert!(error.to_string().contains("another server"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(dir.path().join("record.db.lock")).unwrap();
    assert!(matches!(EmbeddedStore::open(&path, options()), Err(OpenError::InUse(_))));
    // The first store still works.
    say(&*first, entry(LOBBY, "ada", "x")).await;
    drop(first);
    let second = open(dir.path());
    assert_eq!(links(&*second, LOBBY).await.unwrap().len(), 1);
}

#[tokio::test]
async fn record_file__dropped_with_pending_appends_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=10 {
        let store = open(dir.path());
        if round == 1 {
            join(&*store, "ada").await;
        }
        let batch: Vec<NewEntry> = (0..50).map(|_| entry(LOBBY, "ada", "x")).collect();
        // Started, but not awaited.
        tokio::select! {
            biased;
            _ = store.append(batch) => {}
            () = std::future::ready(()) => {}
        }
        drop(store);
        let store = open(dir.path());
        assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 50 * round);
    }
}

#[tokio::test]
async fn record_file__close_leaves_no_wal_and_a_complete_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    say(&*store, entry(LOBBY, "ada", "x")).await;
    store.conversation(&name("ada"), LOBBY).await.unwrap();
    store.close().await.unwrap();
    assert!(!dir.path().join("record.db-wal").exists());
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.path().join("record.db"), copy.path().join("record.db")).unwrap();
    let store = open(copy.path());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 1);
}

#[tokio::test]
async fn record_file__newer_schema_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join("record.db");
    let conn = Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let before = fs::read(&path).unwrap();
    match EmbeddedStore::open(&path, options()) {
        Err(error @ OpenError::NewerSchema { found: 99, known, .. }) => {
            let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
            assert_eq!(known, files.count());
            assert!(error.to_string().contains("newer version"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn record_file__non_database_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.db");
    let text = "this is not a database ".repeat(100);
    fs::write(&path, &text).unwrap();
    assert!(matches!(EmbeddedStore::open(&path, options()), Err(OpenError::Database { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let nowhere = dir.path().join("missing/record.db");
    assert!(matches!(EmbeddedStore::open(&nowhere, options()), Err(OpenError::File { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index__results_equal_scan_after_catching_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let batch = (1..=1000).map(|i| {
        let text = format!("{} number {i}", if i % 100 == 0 { "Nädel" } else { "hay" });
        entry(LOBBY, "ada", &text)
    });
    store.append(batch.collect()).await.unwrap();
    let searches = ["needle", "nadel", "nadel num", "number 7", "nadel 500", "hay na"];
    let mut scanned = Vec::new();
    for text in searches {
        scanned.push(store.search(LOBBY, text, 900, 50).await.unwrap());
    }
    eventually("the index has everything", || {
        look(dir.path(), "SELECT seq FROM indexed")
            == look(dir.path(), "SELECT max(seq) FROM entries")
    });
    for (text, scanned) in searches.iter().zip(scanned) {
        assert_eq!(store.search(LOBBY, text, 900, 50).await.unwrap(), scanned, "{text}");
    }
    assert_eq!(store.search(LOBBY, "nadel", 900, 50).await.unwrap().len(), 8);
    // Indexing resumes after reopening.
    drop(store);
    let store = open(dir.path());
    say(&*store, entry(LOBBY, "ada", "one more Nadel")).await;
    eventually("the index has the new one", || look(dir.path(), "SELECT seq FROM indexed") == 1001);
    assert_eq!(store.search(LOBBY, "nadel", u64::MAX, 50).await.unwrap().len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index__catches_up_during_continuous_appends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let text = |i: usize| (0..4000).map(|word| format!("w{:x} ", word * i)).collect::<String>();
    let batch: Vec<_> = (1..=150).map(|i| entry(LOBBY, "ada", &text(i))).collect();
    let bytes: usize = batch.iter().map(|entry| entry.body.len()).sum();
    store.append(batch).await.unwrap();
    let behind = store.unindexed();
    assert!(behind > bytes as u64 / 2, "{behind} of {bytes}");
    // The recorder is never idle.
    let talk = async {
        while store.unindexed() > bytes as u64 / 4 {
            say(&*store, entry(LOBBY, "ada", "hello")).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), talk).await.expect("the index takes its steps");
    // Reopening counts the backlog again.
    drop(store);
    let store = open(dir.path());
    assert!(store.unindexed() > 0);
    eventually("the index has everything", || store.unindexed() == 0);
    assert_eq!(
        look(dir.path(), "SELECT seq FROM indexed"),
        look(dir.path(), "SELECT max(seq) FROM entries")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_entry__content_leaves_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    // An indexed entry, and a long one on overflow pages. The one after the loop may not be
    // indexed.
    for text in ["Xyzzyplugh1", &format!("{} xyzzyplugh2", "lorem ".repeat(2000))] {
        for _ in 0..20 {
            say(&*store, entry(LOBBY, "ada", "nothing to hide")).await;
        }
        let n = say(&*store, entry(LOBBY, "ada", text)).await.n;
        eventually("the index has everything", || {
            look(dir.path(), "SELECT seq FROM indexed") >= i64::try_from(n).unwrap()
        });
        assert!(holds(dir.path(), "xyzzyplugh"));
        assert!(store.erase(LOBBY, n).await.unwrap().is_some());
        eventually("the files have forgotten", || !holds(dir.path(), "xyzzyplugh"));
    }
    let n = say(&*store, entry(LOBBY, "ada", "xyzzyplugh3")).await.n;
    assert!(store.erase(LOBBY, n).await.unwrap().is_some());
    eventually("the files have forgotten", || !holds(dir.path(), "xyzzyplugh"));
    assert!(store.search(LOBBY, "xyzzyplugh", u64::MAX, 10).await.unwrap().is_empty());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 43);
}

/// Records `mib` MiB in batches of 128 entries; returns the largest size of the WAL, bytes.
async fn say_mib(store: &dyn Store, dir: &Path, mib: usize) -> u64 {
    let body = "x".repeat(8 * 1024);
    let mut largest = 0;
    for _ in 0..mib {
        let batch = (0..128).map(|_| entry(LOBBY, "ada", &body)).collect();
        store.append(batch).await.unwrap();
        largest = largest.max(fs::metadata(dir.join("record.db-wal")).unwrap().len());
    }
    largest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal__stays_bounded_under_heavy_appends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    // 160 MiB through a WAL that is to stay near 16 MiB.
    let largest = say_mib(&*store, dir.path(), 160).await;
    assert!(largest < 80 << 20, "the WAL grew to {} MiB", largest >> 20);
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 160 * 128);
}

/// A reader with an open read transaction.
fn reads(dir: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let conn = Connection::open_with_flags(dir.join("record.db"), flags).unwrap();
    conn.busy_timeout(Duration::from_secs(5)).unwrap();
    conn.execute_batch("BEGIN").unwrap();
    conn.query_row("SELECT count(*) FROM users", [], |_| Ok(())).unwrap();
    conn
}

/// Overlapping readers: each starts before the previous one ends.
struct AlwaysReads {
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<usize>>,
}

impl AlwaysReads {
    fn start(dir: &Path) -> Self {
        let (stop, path) = (Arc::new(AtomicBool::new(false)), dir.to_owned());
        let stopped = stop.clone();
        let reading = std::thread::spawn(move || {
            let (mut before, mut times) = (reads(&path), 0);
            while !stopped.load(Ordering::Relaxed) {
                let next = reads(&path);
                std::thread::sleep(Duration::from_millis(2));
                before = next;
                times += 1;
            }
            drop(before);
            times
        });
        Self { stop, reading: Some(reading) }
    }

    /// Stops, and returns the number of reads.
    fn end(mut self) -> usize {
        self.stopped().unwrap().unwrap()
    }

    fn stopped(&mut self) -> Option<std::thread::Result<usize>> {
        self.stop.store(true, Ordering::Relaxed);
        self.reading.take().map(JoinHandle::join)
    }
}

impl Drop for AlwaysReads {
    fn drop(&mut self) {
        // Before the files are removed.
        self.stopped();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal__stays_bounded_under_continuous_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let reading = AlwaysReads::start(dir.path());
    // 320 MiB through a WAL that restarts from 64 MiB on.
    let largest = say_mib(&*store, dir.path(), 320).await;
    assert!(reading.end() > 100);
    assert!(largest < 160 << 20, "the WAL grew to {} MiB", largest >> 20);
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 320 * 128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_entry__content_leaves_files_despite_reads_and_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let (stop, writer) = (Arc::new(AtomicBool::new(false)), store.clone());
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut said = 0;
        while !stopped.load(Ordering::Relaxed) {
            let batch = (0..16).map(|_| entry(LOBBY, "ada", "nothing to hide")).collect();
            said += writer.append(batch).await.unwrap().len();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        said
    });
    // A reader outlasts the wait. The text is so far back in the WAL that a restarted WAL does not
    // overwrite it.
    let reader = reads(dir.path());
    say_mib(&*store, dir.path(), 8).await;
    let n = say(&*store, entry(LOBBY, "ada", "xyzzyplugh")).await.n;
    assert!(store.erase(LOBBY, n).await.unwrap().is_some());
    std::thread::sleep(Duration::from_millis(200));
    assert!(holds(dir.path(), "xyzzyplugh"));
    drop(reader);
    eventually("the files have forgotten", || !holds(dir.path(), "xyzzyplugh"));
    // With a reader at all times.
    let reading = AlwaysReads::start(dir.path());
    for word in 0..20 {
        let word = format!("xyzzyplugh{word:02}");
        let n = say(&*store, entry(LOBBY, "ada", &word)).await.n;
        assert!(holds(dir.path(), &word));
        assert!(store.erase(LOBBY, n).await.unwrap().is_some());
        eventually("the files have forgotten", || !holds(dir.path(), &word));
    }
    stop.store(true, Ordering::Relaxed);
    let (said, read): (usize, _) = (writing.await.unwrap(), reading.end());
    assert!(said > 100 && read > 20, "{said} {read}");
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 8 * 128 + said + 21);
}

#[tokio::test]
async fn erased_entry__content_is_removed_after_a_read_or_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let n = say(&*store, entry(LOBBY, "ada", "xyzzyplugh")).await.n;
    let reader = reads(dir.path());
    assert!(store.erase(LOBBY, n).await.unwrap().is_some());
    // The wait for the reader is shorter than this.
    std::thread::sleep(Duration::from_millis(200));
    assert!(holds(dir.path(), "xyzzyplugh"));
    // The files as a kill would leave them now.
    let crashed = tempfile::tempdir().unwrap();
    for file in ["record.db", "record.db-wal"] {
        fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
    }
    drop(reader);
    eventually("the files have forgotten", || !holds(dir.path(), "xyzzyplugh"));
    let again = open(crashed.path());
    eventually("the files have forgotten after a crash", || !holds(crashed.path(), "xyzzyplugh"));
    assert_eq!(links(&*again, LOBBY).await.unwrap().len(), 1);
}

#[tokio::test]
async fn wal__without_database_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    say(&*store, entry(LOBBY, "ada", "kept")).await;
    let left = tempfile::tempdir().unwrap();
    let wal = left.path().join("record.db-wal");
    fs::copy(dir.path().join("record.db-wal"), &wal).unwrap();
    let before = fs::read(&wal).unwrap();
    assert!(!before.is_empty());
    let refused = EmbeddedStore::open(&left.path().join("record.db"), options()).unwrap_err();
    assert!(matches!(&refused, OpenError::Lost { .. }), "{refused}");
    assert!(refused.to_string().contains("-wal"), "{refused}");
    assert_eq!(fs::read(&wal).unwrap(), before);
    assert!(!left.path().join("record.db").exists());
    // The same for an empty database and for a file of another kind.
    for other in ["", "something else, ", "x"] {
        let content = other.repeat(600);
        fs::write(left.path().join("record.db"), &content).unwrap();
        let refused = EmbeddedStore::open(&left.path().join("record.db"), options()).unwrap_err();
        assert!(matches!(&refused, OpenError::Lost { .. }), "{refused}");
        assert_eq!(fs::read(&wal).unwrap(), before);
        assert_eq!(fs::read_to_string(left.path().join("record.db")).unwrap(), content);
    }
}

#[tokio::test]
async fn record_file__of_another_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.db");
    open(dir.path()).close().await.unwrap();
    let other = StoreOptions::new(ServerKey([7; 32]), RowKey::new(&[0x4b; 32]));
    let refused = EmbeddedStore::open(&path, other).unwrap_err();
    assert!(matches!(&refused, OpenError::OtherServer { .. }), "{refused}");
    open(dir.path()).close().await.unwrap();
}

#[tokio::test]
async fn record_file__symbolic_link_is_refused_and_not_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    for file in ["record.db", "record.db.lock", "record.db-wal", "record.db-shm"] {
        for target in ["there", "missing"] {
            let dir = tempfile::tempdir().unwrap();
            let target = elsewhere.path().join(target);
            if target.ends_with("there") {
                fs::write(&target, "kept").unwrap();
            }
            open(dir.path()).close().await.unwrap();
            fs::remove_file(dir.path().join(file)).ok();
            std::os::unix::fs::symlink(&target, dir.path().join(file)).unwrap();
            let refused =
                EmbeddedStore::open(&dir.path().join("record.db"), options()).unwrap_err();
            assert!(refused.to_string().contains("symbolic link"), "{file}: {refused}");
            assert_eq!(target.exists(), target.ends_with("there"), "{file}");
        }
    }
    assert_eq!(fs::read_to_string(elsewhere.path().join("there")).unwrap(), "kept");
}

#[tokio::test]
async fn record_file__directory_as_side_file_is_refused() {
    for file in ["record.db-wal", "record.db-shm", "record.db.lock"] {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).close().await.unwrap();
        fs::remove_file(dir.path().join(file)).ok();
        fs::create_dir(dir.path().join(file)).unwrap();
        let refused = EmbeddedStore::open(&dir.path().join("record.db"), options()).unwrap_err();
        assert!(refused.to_string().contains(&format!("{file}: ")), "{file}: {refused}");
    }
}

#[tokio::test]
async fn record_file__replaced_while_open_acknowledges_nothing() {
    for file in ["record.db", "record.db-wal"] {
        for replaced in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (path, away) = (dir.path().join(file), dir.path().join("away"));
            let store = open(dir.path());
            join(&*store, "ada").await;
            say(&*store, entry(LOBBY, "ada", "before")).await;
            fs::rename(&path, &away).unwrap();
            let other = [fs::read(&away).unwrap(), vec![7; 100_000]].concat();
            if replaced {
                fs::write(&path, &other).unwrap();
            }
            let refused = store.append(vec![entry(LOBBY, "ada", "lost")]).await.unwrap_err();
            assert!(refused.to_string().contains(&format!("{file}: ")), "{refused}");
            // A new connection may have used the other file, so restoring the file is not enough.
            if replaced {
                fs::rename(&path, dir.path().join("other")).unwrap();
            }
            fs::rename(&away, &path).unwrap();
            let again = store.append(vec![entry(LOBBY, "ada", "lost")]).await.unwrap_err();
            assert_eq!(again, refused);
            assert_eq!(store.person(&name("ada")).await.unwrap_err(), refused);
            if replaced {
                fs::rename(&path, &away).unwrap();
                fs::rename(dir.path().join("other"), &path).unwrap();
            }
            assert_eq!(store.close().await.unwrap_err(), refused);
            // Nothing is done to another file.
            if replaced {
                assert!(fs::read(&path).unwrap() == other, "{file}");
                fs::rename(&away, &path).unwrap();
            }
            let store = open(dir.path());
            assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 1, "{file} {replaced}");
            say(&*store, entry(LOBBY, "ada", "after")).await;
        }
    }
}

#[tokio::test]
async fn record_file__moved_while_open_makes_close_fail_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    fs::rename(dir.path().join("record.db"), dir.path().join("away")).unwrap();
    store.person(&name("ada")).await.unwrap_err();
    tokio::time::timeout(Duration::from_secs(10), store.close()).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn record_file__path_is_never_a_uri() {
    let before = std::env::current_dir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["file:x", "file:x?mode=memory", "a%20b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        // A relative path, as on a command line.
        std::env::set_current_dir(dir.path()).unwrap();
        let path = Path::new(name).join("record.db");
        let store = EmbeddedStore::open(&path, options()).unwrap();
        join(&*store, "ada").await;
        store.close().await.unwrap();
        assert!(fs::metadata(dir.path().join(name).join("record.db")).unwrap().len() > 0, "{name}");
    }
    std::env::set_current_dir(before).unwrap();
}
