//! Opening after an end at a bad moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use tempfile::TempDir;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{InviteId, MessageId, Name, Sender, ServerKey};
use twinlock_core::proto::{FileBody, FileMeta};
use twinlock_store::{
    Accounts as _, Appended, Close as _, Directory as _, EntryLog as _, EntrySearch as _,
    FileIndex as _, InviteTerms, LOBBY, NewEntry, Newest, PreparedInvite, ReadLimit, Registration,
    RowKey, StoredContent, UserRole,
};

use super::*;
use crate::log::{Erasure, Fault, Faults, Operation};

const ALL: ReadLimit = ReadLimit { entries: 100, bytes: 1 << 20 };

fn options() -> StoreOptions {
    StoreOptions::new(ServerKey([1; 32]), RowKey::new(&[2; 32]))
}

fn directory() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    (dir, path)
}

pub(crate) async fn with_ada(path: &Path) -> Arc<EmbeddedStore> {
    let store = EmbeddedStore::open(path, options()).unwrap();
    let id = InviteId([1; 8]);
    let terms = InviteTerms { role: UserRole::Member, user: None, expires_ms: u64::MAX >> 1 };
    let invite = PreparedInvite { id, record: vec![1; 192], terms, made_by: None, created_ms: 0 };
    assert!(store.add_invite(invite).await.unwrap());
    let user = Name::new("ada").unwrap();
    let new = Registration { invite: id, user, password: None, device: None };
    store.register(new, 1).await.unwrap();
    store
}

pub(crate) fn entry(text: &str) -> NewEntry {
    NewEntry {
        conversation: LOBBY,
        sender: Sender::new(&Name::new("ada").unwrap(), None),
        message_id: MessageId(twinlock_testing::random()),
        kind: EntryKind::TEXT,
        body: Bytes::from(text.to_owned()),
    }
}

async fn say(store: &EmbeddedStore, text: &str) -> Newest {
    let answer = store.append(vec![entry(text)]).await.unwrap();
    assert!(matches!(answer.as_slice(), [Appended::Recorded(_)]), "{answer:?}");
    store.newest(1).await.unwrap()[0]
}

#[tokio::test]
async fn open__completes_an_erasure_that_only_the_log_has() {
    let (_dir, path) = directory();
    let store = with_ada(&path).await;
    say(&store, "harpsichord").await;
    say(&store, "clavichord").await;
    while store.unindexed() > 0 {
        tokio::task::yield_now().await;
    }
    let page = store.read(LOBBY, 0, ALL).await.unwrap();
    let StoredContent::Body(salt, body) = &page.entries[0].content else { panic!("erased") };
    let commit = twinlock_core::chain::commit(salt, body);
    store.close().await.unwrap();
    drop(store);
    // The process ends after the erasure is in the log.
    let resume = Resume { position: None, next_seq: 1 };
    let mut opened = log::open(&path, resume, &LogOptions::default(), &mut |_| Ok(())).unwrap();
    let mut batch = BatchBuilder::new();
    batch.erasure(&Erasure { conversation: LOBBY, n: 1, time_ms: 5, commit });
    opened.writer.append(&mut batch).unwrap();
    drop(opened);

    let store = EmbeddedStore::open(&path, options()).unwrap();
    let page = store.read(LOBBY, 0, ALL).await.unwrap();
    assert_eq!(page.entries[0].content, StoredContent::Erased(commit));
    for (word, hits) in [("harpsichord", 0), ("clavichord", 1)] {
        assert_eq!(store.search(LOBBY, word, u64::MAX, 9).await.unwrap().len(), hits, "{word}");
    }
    store.close().await.unwrap();
    for file in std::fs::read_dir(&path).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(11).any(|part| part == b"harpsichord"));
    }
}

/// A record of two entries whose process was killed before it stated that the second one is durable,
/// with databases from before it.
async fn killed_after_two(path: &Path) -> (Newest, Newest) {
    let store = with_ada(path).await;
    let first = say(&store, "one").await;
    store.close().await.unwrap();
    drop(store);
    let before = tempfile::tempdir().unwrap();
    twinlock_testing::copy_dir(path, before.path());
    let store = EmbeddedStore::open(path, options()).unwrap();
    let second = say(&store, "two").await;
    store.close().await.unwrap();
    drop(store);
    for file in ["people.db", "people.db-wal", "index.db", "index.db-wal"] {
        std::fs::remove_file(path.join(file)).ok();
        std::fs::copy(before.path().join(file), path.join(file)).ok();
    }
    let mut end = 0;
    let mut visit = |batch: log::ReplayedBatch| {
        if !batch.blocks.is_empty() {
            end = batch.end.offset as usize;
        }
        Ok(())
    };
    log::walk(path, log::WalkedPart::All, &mut visit).unwrap();
    change(path, |bytes| bytes[end..].fill(0));
    (first, second)
}

fn change(path: &Path, change: impl FnOnce(&mut [u8])) {
    let segment = log::segment_path(path, 1);
    let mut bytes = std::fs::read(&segment).unwrap();
    change(&mut bytes);
    std::fs::write(segment, bytes).unwrap();
}

#[tokio::test]
async fn open__damaged_last_batch_is_kept_if_acknowledged() {
    for part in ["header", "body"] {
        let (_dir, path) = directory();
        let (first, second) = killed_after_two(&path).await;
        change(&path, |bytes| {
            let body = bytes.windows(3).rposition(|at| at == b"two").unwrap();
            let header = bytes.windows(4).rposition(|at| at == b"TLB1").unwrap();
            bytes[if part == "header" { header + 20 } else { body }] ^= 1;
        });
        let segment = || std::fs::read(log::segment_path(&path, 1)).unwrap();
        let open = |entries: Vec<Newest>| {
            let lock = RecordLock::take(&path).unwrap();
            EmbeddedStore::open_locked(lock, options(), &Expected { entries })
        };
        let (damaged, other) = (segment(), Newest { conversation: 7, ..second });
        for (expected, text) in [
            (vec![first, second], "entry 2 of conversation 1, which was acknowledged"),
            (vec![first, other], "entry 2 of conversation 7, which was acknowledged"),
        ] {
            let refused = open(expected).unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("nothing was changed"), "{refused}");
            assert_eq!(segment(), damaged);
        }
        // Nobody knows that it was acknowledged: it may be what a power cut leaves.
        let store = open(vec![first]).unwrap();
        assert_eq!(store.newest(1).await.unwrap()[0].n, 1);
        assert_ne!(segment(), damaged);
    }
}

#[tokio::test]
async fn open__record_that_is_only_older_is_opened() {
    let (_dir, path) = directory();
    let (first, second) = killed_after_two(&path).await;
    let third = Newest { n: 3, ..second };
    let lock = RecordLock::take(&path).unwrap();
    let expected = Expected { entries: vec![first, second, third] };
    let store = EmbeddedStore::open_locked(lock, options(), &expected).unwrap();
    assert_eq!(store.newest(1).await.unwrap()[0].n, 2);
}

/// Fails a quarter of the writes and syncs while `on`, without a pattern.
fn sometimes(on: &Arc<AtomicBool>) -> LogOptions {
    let (on, calls) = (on.clone(), AtomicU64::new(0));
    let faults = Faults::new(move |operation| {
        let is_of_batch = matches!(operation, Operation::Write { .. } | Operation::Sync(_));
        let turn = calls.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        let fails = is_of_batch && on.load(Ordering::Relaxed) && turn < 64;
        let error =
            || if turn.is_multiple_of(2) { eio() } else { io::ErrorKind::StorageFull.into() };
        fails.then(|| Fault { written: usize::try_from(turn % 100).unwrap(), error: error() })
    });
    LogOptions { faults, ..LogOptions::default() }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append__failed_syncs_lose_no_acknowledged_entry_or_order() {
    const TASKS: u64 = 8;
    const CALLS: usize = 150;
    let (_dir, path) = directory();
    drop(with_ada(&path).await);
    let failing = Arc::new(AtomicBool::new(false));
    let lock = RecordLock::take(&path).unwrap();
    let store = open_with(lock, options(), &Expected::default(), &sometimes(&failing)).unwrap();
    failing.store(true, Ordering::Relaxed);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut acked, mut failed) = (Vec::new(), 0);
                let mut order = twinlock_store::Order::default();
                for call in 0..CALLS {
                    let new = entry(&format!("{task} {call}"));
                    let id = new.message_id;
                    let answer = store.hand_over(vec![new], &order).await.unwrap().await;
                    match answer {
                        Ok(answers) => match answers.as_slice() {
                            [Appended::Recorded(receipt)] => acked.push((id, receipt.clone())),
                            other => panic!("{other:?}"),
                        },
                        Err(_) => {
                            failed += 1;
                            assert!(order.has_failed());
                            order = twinlock_store::Order::default();
                        }
                    }
                }
                (acked, failed)
            })
        })
        .collect();
    let (mut acked, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (of_task, failures) = task.await.unwrap();
        assert!(of_task.is_sorted_by_key(|(_, receipt)| receipt.n));
        acked.extend(of_task);
        failed += failures;
    }
    assert!(acked.len() > 50 && failed > 50, "{} acked, {failed} failed", acked.len());
    failing.store(false, Ordering::Relaxed);
    say(&store, "once more").await;
    store.close().await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path, options()).unwrap();
    let ada = Name::new("ada").unwrap();
    for (id, receipt) in &acked {
        assert_eq!(store.receipt(&ada, id).await.unwrap().as_ref(), Some(receipt));
    }
    // Numbers without a gap, and only acknowledged entries.
    let page = store.read(LOBBY, 0, ReadLimit { entries: 10_000, ..ALL }).await.unwrap();
    assert_eq!(page.entries.len(), acked.len() + 1);
    assert_eq!(page.head, page.entries.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append__numbers_stay_unique_while_the_cache_is_dropped() {
    const ROOMS: u64 = 12;
    const CALLS: u64 = 120;
    let (_dir, path) = directory();
    let store = with_ada(&path).await;
    let ada = Name::new("ada").unwrap();
    for room in 0..ROOMS - 1 {
        let name = Name::new(&format!("room{room}")).unwrap();
        store.create_room(&ada, &name, "").await.unwrap().unwrap();
    }
    // Many appends at a time, so that batches are prepared while others are in flight, and other
    // writes between them.
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (store, ada) = (store.clone(), ada.clone());
            tokio::spawn(async move {
                for call in 0..CALLS {
                    let room = LOBBY + (task * 5 + call * 7) % ROOMS;
                    let both = [room, LOBBY].map(|conversation| NewEntry {
                        conversation,
                        ..entry(&format!("{task} {call}"))
                    });
                    let answers = store.append(both.to_vec()).await.unwrap();
                    assert!(answers.iter().all(|one| matches!(one, Appended::Recorded(_))));
                    if call % 10 == task {
                        store.mark_read(&ada, room, call).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    // The replay of a lost index verifies every link.
    std::fs::remove_file(path.join("index.db")).unwrap();
    let store = EmbeddedStore::open(&path, options()).unwrap();
    let mut entries = 0;
    for room in LOBBY..LOBBY + ROOMS {
        let limit = ReadLimit { entries: 10_000, ..ALL };
        let page = store.read(room, 0, limit).await.unwrap();
        assert_eq!(page.head, page.entries.len() as u64);
        entries += page.head;
    }
    assert_eq!(entries, 8 * CALLS * 2);
}

/// A repeat that an index without its id has let through.
#[tokio::test]
async fn open__message_that_the_log_has_twice_keeps_its_first_place() {
    let (_dir, path) = directory();
    let store = with_ada(&path).await;
    say(&store, "once").await;
    let first = store.read(LOBBY, 0, ALL).await.unwrap().entries.remove(0);
    store.close().await.unwrap();
    drop(store);
    let StoredContent::Body(salt, body) = &first.content else { panic!("erased") };
    let commit = twinlock_core::chain::commit(salt, body);
    let mut again = twinlock_store::StoredEntry { n: 2, ..first.clone() };
    again.link = twinlock_core::chain::Linked {
        conversation: LOBBY,
        n: 2,
        time_ms: again.time_ms,
        message_id: &again.message_id,
        kind: again.kind,
        sender: &again.sender,
        commit: &commit,
    }
    .link(&first.link)
    .unwrap();
    let resume = Resume { position: None, next_seq: 1 };
    let mut opened = log::open(&path, resume, &LogOptions::default(), &mut |_| Ok(())).unwrap();
    let mut batch = BatchBuilder::new();
    batch.run(LOBBY, [(&again, &commit)]);
    opened.writer.append(&mut batch).unwrap();
    drop(opened);
    for lost in [false, true] {
        if lost {
            std::fs::remove_file(path.join("index.db")).unwrap();
        }
        let store = EmbeddedStore::open(&path, options()).unwrap();
        assert_eq!(store.read(LOBBY, 0, ALL).await.unwrap().entries.len(), 2);
        let ada = Name::new("ada").unwrap();
        let receipt = store.receipt(&ada, &first.message_id).await.unwrap();
        assert_eq!(receipt.map(|receipt| receipt.n), Some(1));
        store.close().await.unwrap();
    }
}

/// Runs `reached` until it holds, at most 20 s.
async fn until(what: &str, reached: impl Fn() -> bool) {
    let waits = async {
        while !reached() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waits).await.expect(what);
}

/// The commit and its repair at once both fail, and no other command comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append__refused_batch_is_overwritten_without_another_command() {
    let (_dir, path) = directory();
    drop(with_ada(&path).await);
    let (failing, stated) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let faults = {
        let (failing, stated) = (failing.clone(), stated.clone());
        Faults::new(move |operation| {
            // The empty batch has no records: 1 once it is written, 2 at its sync.
            match operation {
                Operation::Write { bytes, .. }
                    if bytes.starts_with(b"TLB1") && bytes[12..16] == [0; 4] =>
                {
                    stated.store(1, Ordering::Relaxed);
                }
                Operation::Sync(_) if stated.load(Ordering::Relaxed) == 1 => {
                    stated.store(2, Ordering::Relaxed);
                }
                _ => {}
            }
            // The sync of the batch, and the zeros of its repair.
            let fails = match operation {
                Operation::Write { bytes, .. } => !bytes.starts_with(b"TLB1"),
                Operation::Sync(path) => path.ends_with("00000001.log"),
                _ => false,
            };
            (fails && failing.load(Ordering::Relaxed)).then(|| Fault { written: 0, error: eio() })
        })
    };
    let lock = RecordLock::take(&path).unwrap();
    let log_options = LogOptions { faults, ..LogOptions::default() };
    let store = open_with(lock, options(), &Expected::default(), &log_options).unwrap();
    say(&store, "before").await;
    // The start has written the last batch again. After the next one the recorder has no time to wait for.
    stated.store(0, Ordering::Relaxed);
    let segment = path.join("00000001.log");
    let has = |text: &str| {
        let bytes = std::fs::read(&segment).unwrap();
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    };
    until("the log states that it is durable", || stated.load(Ordering::Relaxed) == 2).await;
    failing.store(true, Ordering::Relaxed);
    store.append(vec![entry("refused words")]).await.unwrap_err();
    assert!(has("refused words"));
    failing.store(false, Ordering::Relaxed);
    until("the refused batch is gone", || !has("refused words")).await;
    assert!(has("before"));
    say(&store, "after").await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erase__repeated_one_names_the_file_again() {
    let (_dir, path) = directory();
    drop(with_ada(&path).await);
    let failing = Arc::new(AtomicBool::new(false));
    let faults = {
        let failing = failing.clone();
        Faults::new(move |operation| {
            // The overwriting of an entry: a batch begins with its header.
            let fails =
                matches!(operation, Operation::Write { bytes, .. } if !bytes.starts_with(b"TLB1"));
            (fails && failing.load(Ordering::Relaxed)).then(|| Fault { written: 0, error: eio() })
        })
    };
    let lock = RecordLock::take(&path).unwrap();
    let log_options = LogOptions { faults, ..LogOptions::default() };
    let store = open_with(lock, options(), &Expected::default(), &log_options).unwrap();
    let meta = FileMeta { name: "plan".into(), size: 5, ..FileMeta::default() };
    let body = FileBody { file: Some(meta), hash: vec![0xa1; 32].into() };
    let file = NewEntry { kind: EntryKind::FILE, body: body.encode_to_vec().into(), ..entry("") };
    store.append(vec![file]).await.unwrap();
    failing.store(true, Ordering::Relaxed);
    store.erase(LOBBY, 1).await.unwrap_err();
    failing.store(false, Ordering::Relaxed);
    assert!(!store.is_referenced(&[0xa1; 32]).await.unwrap());
    let erased = store.erase(LOBBY, 1).await.unwrap().unwrap();
    assert_eq!(erased.file.map(|file| (file.hash, file.size)), Some(([0xa1; 32], 5)));
    assert!(store.erase(LOBBY, 1).await.unwrap().is_none());
    store.close().await.unwrap();
}
