//! The databases next to the log are made again from it.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use twinlock_core::id::MessageId;
use twinlock_store::{LOBBY, Newest, Receipt, StoreError};
use twinlock_store_embedded::{EmbeddedStore, OpenError};

use crate::common::contract::*;
use crate::common::{
    copy, entry, files, join, links, message_id, name, open, options, remove, say,
};

/// Everything of a small record that the index and the words answer.
#[derive(Debug, PartialEq)]
struct Answers {
    links: Vec<usize>,
    newest: Vec<Newest>,
    receipts: Vec<Option<Receipt>>,
    found: Vec<u64>,
    members: Vec<String>,
    topics: Vec<String>,
}

async fn answers(store: &EmbeddedStore, ids: &[MessageId]) -> Answers {
    let (ada, mut counts, mut receipts) = (name("ada"), Vec::new(), Vec::new());
    for conversation in [LOBBY, LOBBY + 1] {
        counts.push(links(store, conversation).await.unwrap().len());
    }
    for id in ids {
        receipts.push(store.receipt(&ada, id).await.unwrap());
    }
    let found = store.search(LOBBY, "even", u64::MAX, 1000).await.unwrap();
    let conversations = store.conversations(&ada, false, 0, 100).await.unwrap();
    Answers {
        links: counts,
        newest: store.newest(100).await.unwrap(),
        receipts,
        found: found.iter().map(|entry| entry.n).collect(),
        members: store
            .members(LOBBY, None, 100)
            .await
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect(),
        topics: conversations.into_iter().map(|one| one.topic).collect(),
    }
}

/// Fills a record, and returns the ids of all messages of ada.
async fn fill(store: &EmbeddedStore, count: usize) -> Vec<MessageId> {
    let mut ids = Vec::new();
    for i in 0..count {
        let text = format!("message {i} is {}", if i % 2 == 0 { "even" } else { "odd" });
        let conversation = if i % 3 == 0 { LOBBY + 1 } else { LOBBY };
        let new = entry(conversation, "ada", &text);
        ids.push(new.message_id);
        say(store, new).await;
    }
    ids
}

async fn record(dir: &Path) -> Vec<MessageId> {
    let store = open(dir);
    join(&*store, "ada").await;
    join(&*store, "bob").await;
    store.create_room(&name("ada"), &name("ops"), "about work").await.unwrap().unwrap();
    let mut ids = fill(&store, 60).await;
    assert!(store.erase(LOBBY, 2).await.unwrap().is_some());
    ids.push(message_id());
    store.close().await.unwrap();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__lost_databases_are_made_again_from_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let ids = record(dir.path()).await;
    let store = open(dir.path());
    let before = answers(&store, &ids).await;
    assert_eq!((before.links[0], before.links[1]), (40, 20));
    assert_eq!(before.receipts.iter().flatten().count(), 60);
    store.close().await.unwrap();
    drop(store);
    for lost in
        [&["index.db"][..], &["words.db"], &["people.db"], &["index.db", "words.db", "people.db"]]
    {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        lost.iter().for_each(|database| remove(copied.path(), database));
        let store = open(copied.path());
        assert_eq!(answers(&store, &ids).await, before, "without {lost:?}");
        // It continues where it was.
        say(&*store, entry(LOBBY, "bob", "next")).await;
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__index_of_another_time_or_record_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = record(dir.path()).await;
    let older = tempfile::tempdir().unwrap();
    copy(dir.path(), older.path());
    let store = open(dir.path());
    ids.extend(fill(&store, 40).await);
    let before = answers(&store, &ids).await;
    store.close().await.unwrap();
    drop(store);
    let other = tempfile::tempdir().unwrap();
    record(other.path()).await;
    for from in [&older, &other] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        for database in ["index.db", "words.db"] {
            remove(copied.path(), database);
            let to = copied.path().join("record").join(database);
            fs::copy(from.path().join("record").join(database), to).unwrap();
        }
        let store = open(copied.path());
        assert_eq!(answers(&store, &ids).await, before);
        store.close().await.unwrap();
    }
    // A newer index, with an older log.
    for database in ["index.db", "words.db"] {
        remove(older.path(), database);
        let from = dir.path().join("record").join(database);
        fs::copy(from, older.path().join("record").join(database)).unwrap();
    }
    let store = open(older.path());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 40);
    assert_eq!(
        store.search(LOBBY, "even", u64::MAX, 1000).await.unwrap().len(),
        before.found.len() - 13
    );
}

/// The index is as after a power cut in which its pages were lost, and is found out by the replay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__index_that_contradicts_the_log_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = record(dir.path()).await;
    let older = tempfile::tempdir().unwrap();
    copy(dir.path(), older.path());
    let store = open(dir.path());
    ids.extend(fill(&store, 40).await);
    let before = answers(&store, &ids).await;
    store.close().await.unwrap();
    drop(store);
    for change in [
        "UPDATE heads SET link = zeroblob(32)",
        "UPDATE heads SET link = x'00'",
        "UPDATE heads SET n = n - 1",
        "DELETE FROM heads",
        "INSERT INTO runs SELECT seq + 1, conversation, first + count, 1, segment, offset, length
             FROM runs ORDER BY seq DESC LIMIT 1",
        "UPDATE heads SET n = -1",
    ] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let index = copied.path().join("record/index.db");
        remove(copied.path(), "index.db");
        for file in ["record/index.db", "record/index.db-wal"] {
            fs::copy(older.path().join(file), copied.path().join(file)).ok();
        }
        let conn = Connection::open(&index).unwrap();
        assert!(conn.execute(change, []).unwrap() > 0, "{change}");
        conn.close().unwrap();
        let store = open(copied.path());
        assert_eq!(answers(&store, &ids).await, before, "{change}");
        store.close().await.unwrap();
    }
}

/// Bytes of the index have changed where no replay reads them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__entry_is_not_linked_to_a_wrong_head() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path()).await;
    for change in [
        "UPDATE heads SET link = zeroblob(32)",
        "UPDATE heads SET n = n + 1",
        "UPDATE heads SET time_ms = time_ms + 1",
        "DELETE FROM heads",
        "DELETE FROM runs",
        "DELETE FROM runs WHERE seq = (SELECT max(seq) FROM runs WHERE conversation = 1)",
    ] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let conn = Connection::open(copied.path().join("record/index.db")).unwrap();
        assert!(conn.execute(change, []).unwrap() > 0, "{change}");
        conn.close().unwrap();
        let store = open(copied.path());
        let refused = store.append(vec![entry(LOBBY, "ada", "next")]).await.unwrap_err();
        assert!(refused.to_string().contains("remove the file"), "{change}: {refused}");
        store.close().await.unwrap();
        drop(store);
        remove(copied.path(), "index.db");
        let store = open(copied.path());
        say(&*store, entry(LOBBY, "ada", "next")).await;
        assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 41);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__incomplete_or_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path()).await;
    let other = tempfile::tempdir().unwrap();
    record(other.path()).await;
    let from_other = |copied: &Path, file: &str| {
        fs::copy(other.path().join("record").join(file), copied.join("record").join(file)).unwrap();
    };
    let removed = |copied: &Path, file: &str| {
        fs::remove_file(copied.join("record").join(file)).unwrap();
    };
    for (what, file, exchanged) in [
        ("no marker", "marker", false),
        ("no segment", "00000001.log", false),
        ("another marker", "marker", true),
        ("another segment", "00000001.log", true),
        ("another people.db", "people.db", true),
    ] {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        if exchanged {
            from_other(copied.path(), file);
        } else {
            removed(copied.path(), file);
        }
        let content = || -> Vec<_> {
            files(copied.path()).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect()
        };
        let before = content();
        let opened = EmbeddedStore::open(&copied.path().join("record"), options());
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{what}: {opened:?}");
        assert!(content() == before, "{what}: files were changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record__changed_entry_is_named_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    for text in ["the first", "the second", "the third"] {
        say(&*store, entry(LOBBY, "ada", text)).await;
    }
    store.close().await.unwrap();
    drop(store);
    let segment = dir.path().join("record/00000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(10).position(|part| part == b"the second").unwrap();
    bytes[at + 4] = b'S';
    fs::write(&segment, bytes).unwrap();
    let store = open(dir.path());
    let limit = crate::common::EVERYTHING;
    // The page ends before it, and a page that begins with it is an error.
    assert_eq!(store.read(LOBBY, 0, limit).await.unwrap().entries.len(), 1);
    let Err(StoreError::Damaged(problem)) = store.read(LOBBY, 1, limit).await else {
        panic!("a changed entry was read");
    };
    assert!(problem.contains("entry 2 of conversation 1"), "{problem}");
    assert_eq!(store.read(LOBBY, 2, limit).await.unwrap().entries.len(), 1);
}
