//! The files of a record: who may read them, who may open them, and the index of words behind them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::common::contract::*;
use crate::common::{entry, files, join, links, open, options, say};
use twinlock_store::LOBBY;
use twinlock_store_embedded::{EmbeddedStore, OpenError};

#[tokio::test]
async fn record_file__files_are_private_to_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let modes = |dir: &std::path::Path| -> Vec<_> {
        let record = [dir.join("record"), dir.join("record.db"), dir.join("record.lock")];
        let all = files(dir).into_iter().chain(record);
        all.map(|path| (fs::metadata(&path).unwrap().permissions().mode() & 0o777, path)).collect()
    };
    for round in 0..2 {
        let store = open(dir.path());
        if round == 0 {
            join(&*store, "ada").await;
        }
        say(&*store, entry(LOBBY, "ada", "x")).await;
        let modes = modes(dir.path());
        assert!(modes.len() > 9, "{modes:?}");
        for (mode, path) in modes {
            assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{path:?}");
        }
        store.close().await.unwrap();
        // The permissions of existing files are restricted.
        for file in ["", "marker", "00000001.log", "people.db"] {
            let path = dir.path().join("record").join(file);
            let mode = if path.is_dir() { 0o775 } else { 0o664 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

#[tokio::test]
async fn record_file__second_open_is_refused_until_first_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    let first = open(dir.path());
    join(&*first, "ada").await;
    match EmbeddedStore::open(&path, options()) {
        Err(error @ OpenError::InUse(_)) => {
            assert!(error.to_string().contains("another server"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(dir.path().join("record.lock")).unwrap();
    assert!(matches!(EmbeddedStore::open(&path, options()), Err(OpenError::InUse(_))));
    // The first store still works.
    say(&*first, entry(LOBBY, "ada", "x")).await;
    drop(first);
    let second = open(dir.path());
    assert_eq!(links(&*second, LOBBY).await.unwrap().len(), 1);
}

#[tokio::test]
async fn record_file__replaced_while_open_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (segment, kept) = (dir.path().join("record/00000001.log"), dir.path().join("kept"));
    let store = open(dir.path());
    join(&*store, "ada").await;
    say(&*store, entry(LOBBY, "ada", "before")).await;
    fs::rename(&segment, &kept).unwrap();
    let append = async |text| store.append(vec![entry(LOBBY, "ada", text)]).await;
    append("moved away").await.unwrap_err();
    fs::copy(&kept, &segment).unwrap();
    append("replaced").await.unwrap_err();
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 1);
    // Put back, it continues, and the next start has all that was acknowledged.
    fs::rename(&kept, &segment).unwrap();
    say(&*store, entry(LOBBY, "ada", "after")).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(links(&*open(dir.path()), LOBBY).await.unwrap().len(), 2);
}

async fn until_indexed(store: &EmbeddedStore) {
    let indexed = async {
        while store.unindexed() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), indexed).await.expect("the index has everything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index__results_equal_scan_after_catching_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let batch = (1..=1000).map(|i| {
        let text = format!("{} number {i}", if i % 100 == 0 { "N\u{e4}del" } else { "hay" });
        entry(LOBBY, "ada", &text)
    });
    store.append(batch.collect()).await.unwrap();
    let searches = ["needle", "nadel", "nadel num", "number 7", "nadel 500", "hay na"];
    let mut scanned = Vec::new();
    for text in searches {
        scanned.push(store.search(LOBBY, text, 900, 50).await.unwrap());
    }
    until_indexed(&store).await;
    for (text, scanned) in searches.iter().zip(scanned) {
        assert_eq!(store.search(LOBBY, text, 900, 50).await.unwrap(), scanned, "{text}");
    }
    assert_eq!(store.search(LOBBY, "nadel", 900, 50).await.unwrap().len(), 8);
    // Indexing resumes after reopening.
    drop(store);
    let store = open(dir.path());
    say(&*store, entry(LOBBY, "ada", "one more N\u{e4}del")).await;
    until_indexed(&store).await;
    assert_eq!(store.search(LOBBY, "nadel", u64::MAX, 50).await.unwrap().len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn index__takes_steps_during_continuous_appends() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    let text = |i: usize| (0..4000).map(|word| format!("w{:x} ", word * i)).collect::<String>();
    let batch: Vec<_> = (1..=150).map(|i| entry(LOBBY, "ada", &text(i))).collect();
    let bytes: usize = batch.iter().map(|entry| entry.body.len()).sum();
    store.append(batch).await.unwrap();
    let behind = store.unindexed();
    assert!(behind > bytes as u64 / 2, "{behind} of {bytes}");
    // The recorder is never idle, and may record more than is indexed meanwhile.
    let talk = async {
        let mut recorded = behind;
        while recorded - store.unindexed() < bytes as u64 / 4 {
            say(&*store, entry(LOBBY, "ada", "hello")).await;
            // The backlog counts 256 bytes for an entry, besides its body.
            recorded += 256 + 5;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), talk).await.expect("the index takes its steps");
    // Reopening counts the backlog again.
    drop(store);
    let store = open(dir.path());
    assert!(store.unindexed() > 0);
    until_indexed(&store).await;
}
