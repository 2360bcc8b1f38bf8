//! An erased entry leaves no trace in any file.

use std::fs;
use std::path::Path;

use twinlock_store::{LOBBY, StoredContent};

use crate::common::contract::*;
use crate::common::{EVERYTHING, entry, files, join, open, say};

const SECRET: &str = "xylophone-quarterly-figures";

/// The files that contain a word of the secret.
fn traces(dir: &Path) -> Vec<String> {
    let has = |path: &Path, word: &[u8]| {
        fs::read(path).unwrap().windows(word.len()).any(|part| part == word)
    };
    let words: [&[u8]; 2] = [SECRET.as_bytes(), b"xylophone"];
    let mut found = Vec::new();
    for path in files(dir) {
        if words.iter().any(|word| has(&path, word)) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_entry__leaves_no_trace_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    for text in ["before", SECRET, "after"] {
        say(&*store, entry(LOBBY, "ada", text)).await;
    }
    // Also from the index of words.
    while store.unindexed() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.search(LOBBY, "xylophone", u64::MAX, 10).await.unwrap().len(), 1);
    assert!(traces(dir.path()).contains(&"00000001.log".to_owned()));
    assert!(store.erase(LOBBY, 2).await.unwrap().is_some());
    assert_eq!(traces(dir.path()), [""; 0], "with the store open");
    let page = store.read(LOBBY, 0, EVERYTHING).await.unwrap();
    assert_eq!(page.entries.len(), 3);
    assert!(matches!(page.entries[1].content, StoredContent::Erased(_)));
    assert_eq!(store.search(LOBBY, "xylophone", u64::MAX, 10).await.unwrap().len(), 0);
    store.close().await.unwrap();
    assert_eq!(traces(dir.path()), [""; 0], "after closing");
    let store = open(dir.path());
    assert_eq!(store.search(LOBBY, "after", u64::MAX, 10).await.unwrap().len(), 1);
    assert!(store.erase(LOBBY, 2).await.unwrap().is_none());
}
