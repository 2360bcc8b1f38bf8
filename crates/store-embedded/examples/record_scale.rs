//! Measures a large record: the rate of recording, a start after the process was killed, a start without the index,
//! and the rate of reading a conversation, alone and interleaved with 255 others.
//!
//! `cargo run --release -p twinlock-store-embedded --example record_scale DIR ENTRIES` takes about 400 bytes an entry
//! below DIR, and starts itself for the part that is killed.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{InviteId, MessageId, Name, Sender, ServerKey};
use twinlock_store::{
    Appended, InviteTerms, LOBBY, NewEntry, PreparedInvite, ReadLimit, Registration, RowKey, Store,
    UserRole,
};
use twinlock_store_embedded::{EmbeddedStore, StoreOptions};

const BODY: usize = 256;
/// Entries of one append.
const BATCH: usize = 256;
/// Appends at the same time.
const WINDOW: usize = 16;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [below, entries] => {
            for rooms in ["1", "256"] {
                measure(Path::new(below), rooms, entries).await;
            }
        }
        ["fill", dir, rooms, entries] => {
            fill(Path::new(dir), rooms.parse().unwrap(), entries.parse().unwrap()).await;
        }
        _ => panic!("DIR ENTRIES"),
    }
}

async fn measure(below: &Path, rooms: &str, entries: &str) {
    let dir = tempfile::tempdir_in(below).unwrap();
    let program = std::env::current_exe().unwrap();
    println!("{entries} entries of {BODY} bytes in {rooms} conversations");
    let fill = Command::new(program).arg("fill").arg(dir.path()).args([rooms, entries]).status();
    assert!(!fill.unwrap().success(), "it ends as one that is killed");
    sizes(dir.path());
    let begin = Instant::now();
    let store = open(dir.path());
    println!("start after the kill: {:.2?}", begin.elapsed());
    println!("memory: {} MiB", resident());
    for conversation in [LOBBY, 40] {
        let (begin, mut after, mut read) = (Instant::now(), 0, 0);
        loop {
            let page = ReadLimit { entries: 512, bytes: 256 * 1024 };
            let Ok(page) = store.read(conversation, after, page).await else { break };
            let Some(last) = page.entries.last() else { break };
            (after, read) = (last.n, read + page.entries.len());
        }
        if read > 0 {
            rate("read", read, begin.elapsed());
        }
    }
    println!("memory: {} MiB", resident());
    store.close().await.unwrap();
    drop(store);
    for suffix in ["", "-wal", "-shm"] {
        let _may_be_missing =
            std::fs::remove_file(dir.path().join(format!("record/index.db{suffix}")));
    }
    let begin = Instant::now();
    let store = open(dir.path());
    rate("start without the index", entries.parse().unwrap(), begin.elapsed());
    store.close().await.unwrap();
    sizes(dir.path());
}

fn open(dir: &Path) -> Arc<dyn Store> {
    let options = StoreOptions::new(ServerKey([1; 32]), RowKey::new(&[2; 32]));
    EmbeddedStore::open(&dir.join("record"), options).unwrap()
}

fn rate(what: &str, entries: usize, took: Duration) {
    println!(
        "{what}: {entries} in {took:.2?}, {:.0} entries/s",
        entries as f64 / took.as_secs_f64()
    );
}

async fn fill(dir: &Path, rooms: usize, entries: usize) {
    let store = open(dir);
    let ada = Name::new("ada").unwrap();
    let terms = InviteTerms { role: UserRole::Member, user: None, expires_ms: 1 << 60 };
    let id = InviteId([1; 8]);
    let invite = PreparedInvite { id, record: vec![0; 192], terms, made_by: None, created_ms: 0 };
    assert!(store.add_invite(invite).await.unwrap());
    let password = Some(vec![1; 192]);
    let new = Registration { invite: id, user: ada.clone(), password, device: None };
    store.register(new, 1).await.unwrap();
    let mut conversations = vec![LOBBY];
    for room in 1..rooms {
        let room = Name::new(&format!("room{room}")).unwrap();
        conversations.push(store.create_room(&ada, &room, "").await.unwrap().unwrap().id);
    }
    let begin = Instant::now();
    let body = Bytes::from(vec![b'x'; BODY]);
    for first in (0..entries).step_by(BATCH * WINDOW) {
        let append = |first: usize| {
            let entry = |n: usize| {
                let mut id = [7; 16];
                id[..8].copy_from_slice(&(n as u64).to_be_bytes());
                NewEntry {
                    conversation: conversations[n % conversations.len()],
                    sender: Sender::new(&ada, None),
                    message_id: MessageId(id),
                    kind: EntryKind::TEXT,
                    body: body.clone(),
                }
            };
            let batch: Vec<_> = (first..(first + BATCH).min(entries)).map(entry).collect();
            let store = store.clone();
            async move { store.append(batch).await.unwrap() }
        };
        let firsts = (first..(first + BATCH * WINDOW).min(entries)).step_by(BATCH);
        for answers in futures_util::future::join_all(firsts.map(append)).await {
            assert!(answers.iter().all(|answer| matches!(answer, Appended::Recorded(_))));
        }
    }
    rate("recorded", entries, begin.elapsed());
    // Without closing anything.
    std::process::exit(9);
}

/// The sizes of the record's files.
fn sizes(dir: &Path) {
    let mut all: Vec<(PathBuf, u64)> = std::fs::read_dir(dir.join("record"))
        .unwrap()
        .map(|file| file.unwrap())
        .map(|file| (file.path(), file.metadata().unwrap().len()))
        .collect();
    all.sort();
    let mib = |size: u64| size / 1024 / 1024;
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    let (logs, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(path, _)| is_log(path));
    println!("{} segments {} MiB", logs.len(), mib(logs.iter().map(|(_, size)| size).sum()));
    for (path, size) in others.iter().filter(|(_, size)| mib(*size) > 0) {
        println!("{} {} MiB", path.file_name().unwrap().to_str().unwrap(), mib(*size));
    }
}

/// Memory of this process, MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
