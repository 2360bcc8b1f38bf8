//! Records that are sound, and records in which everything that can be changed was changed.

mod databases;
mod log_bytes;
mod states;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use bytes::Bytes;
use tempfile::TempDir;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{MessageId, Name, Sender, ServerKey};
use twinlock_store::{Close as _, EntryLog as _, EntrySearch as _, LOBBY, NewEntry, RowKey};

use super::*;
use crate::{EmbeddedStore, StoreOptions, convert};

const SERVER_KEY: ServerKey = ServerKey([0x5e; 32]);
/// Bytes of the bodies that fill the first segment, and their number.
const BULK: (usize, usize) = (48 * 1024, 26);

fn row_key() -> RowKey {
    RowKey::new(&[0x4b; 32])
}

fn options() -> StoreOptions {
    StoreOptions::new(SERVER_KEY, row_key())
}

fn entry(text: &str) -> NewEntry {
    NewEntry {
        conversation: LOBBY,
        sender: Sender::new(&Name::new("ada").unwrap(), None),
        message_id: MessageId(twinlock_testing::random()),
        kind: EntryKind::TEXT,
        body: Bytes::from(text.to_owned()),
    }
}

/// Makes a record of two segments with everything that a record can have. Returns the store.
async fn fill(dir: &Path) -> std::sync::Arc<EmbeddedStore> {
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/old-record.db");
    let (database, directory) = (dir.join("record.db"), dir.join("record"));
    fs::copy(old, &database).unwrap();
    let expected = Expected::default();
    convert::convert(&database, &directory, &row_key(), &SERVER_KEY, &expected, &mut |_| {})
        .unwrap();
    let store = EmbeddedStore::open(&directory, options()).unwrap();
    for i in 0..BULK.1 {
        let text = format!("{i} {}", "x".repeat(BULK.0));
        store.append(vec![entry(&text), entry("short")]).await.unwrap();
    }
    assert!(directory.join("00000002.log").exists());
    let head = store.newest(1).await.unwrap()[0].n;
    assert!(store.erase(LOBBY, head - 4).await.unwrap().is_some());
    store.append(vec![entry("the last one")]).await.unwrap();
    while store.unindexed() > 0 {
        tokio::task::yield_now().await;
    }
    store
}

/// Moves what each database has in its WAL into the database, whichever connection closed last.
fn in_one_file(dir: &Path) {
    for database in ["people.db", "index.db", "words.db"] {
        let conn = rusqlite::Connection::open(dir.join("record").join(database)).unwrap();
        conn.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
    }
}

/// Whether the log states that its newest records are durable.
fn ends_in_an_empty_batch(directory: &Path) -> bool {
    let mut empty = false;
    walk(directory, WalkedPart::LastSegment, &mut |batch| {
        empty = batch.blocks.is_empty();
        Ok(())
    })
    .unwrap();
    empty
}

/// A record that was closed in order (`false`), and one of a killed server (`true`), which is copied
/// for each test.
fn record(killed: bool) -> TempDir {
    static MADE: OnceLock<(TempDir, TempDir)> = OnceLock::new();
    let (closed, of_killed) = MADE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (dir, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        runtime.block_on(async {
            let store = fill(dir.path()).await;
            let stated = async {
                while !ends_in_an_empty_batch(&dir.path().join("record")) {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            let limit = std::time::Duration::from_secs(20);
            tokio::time::timeout(limit, stated).await.expect("the log states that it is durable");
            copy(dir.path(), copied.path());
            store.close().await.unwrap();
        });
        in_one_file(dir.path());
        for database in ["people.db", "index.db", "words.db"] {
            assert!(!dir.path().join("record").join(database).with_extension("db-wal").exists());
        }
        (dir, copied)
    });
    let dir = tempfile::tempdir().unwrap();
    copy(if killed { of_killed.path() } else { closed.path() }, dir.path());
    dir
}

/// Without the spare segment and the indexes of WALs, which a restart of the machine does not keep.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to.join("record")).unwrap();
    for (path, _) in files(from) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "spare" && !name.ends_with("-shm") {
            fs::copy(&path, to.join(path.strip_prefix(from).unwrap())).unwrap();
        }
    }
}

/// All files with their times and contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path.clone(), (time, fs::read(&path).unwrap()));
        }
    }
    found
}

fn try_check(dir: &Path, expected: &Expected) -> Result<Option<RecordReport>, OpenError> {
    let keys = CheckKeys { row: &row_key(), server: &SERVER_KEY };
    check_record(&dir.join("record"), keys, expected, &mut |_| {})
}

fn check(dir: &Path) -> RecordReport {
    try_check(dir, &Expected::default()).unwrap().unwrap()
}

/// The only finding.
#[track_caller]
fn found(dir: &Path) -> Finding {
    let report = check(dir);
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    report.findings[0].clone()
}

fn segment(dir: &Path, number: u32) -> PathBuf {
    segment_path(&dir.join("record"), number)
}

/// Flips one bit.
fn flip(path: &Path, offset: u64, bit: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}
