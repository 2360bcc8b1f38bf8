//! Measures the rate of appends with 256-byte bodies: one task with one entry at a time, then 16
//! tasks with 64 outstanding entries each.
//!
//! The record is in a new directory below DIR (default: the system's temporary directory).
//!
//! `cargo run --release -p twinlock-store-embedded --example append_rate [DIR [SECONDS [ENTRIES A CALL]]]`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{DeviceId, InviteId, MessageId, Name, Sender, ServerKey};
use twinlock_store::{
    Appended, InviteTerms, LOBBY, NewDevice, NewEntry, PreparedInvite, Registration, RowKey, Store,
    UserRole,
};
use twinlock_store_embedded::{EmbeddedStore, StoreOptions};

const TASKS: usize = 16;
const BODY: usize = 256;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let below = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = args.next().map_or(5, |s| s.parse().expect("seconds"));
    let per_call = args.next().map_or(1, |s| s.parse().expect("entries a call"));
    let dir = tempfile::tempdir_in(below).unwrap();
    let options = StoreOptions::new(ServerKey([1; 32]), RowKey::new(&[2; 32]));
    let store: Arc<dyn Store> = EmbeddedStore::open(&dir.path().join("record"), options).unwrap();
    for task in 0..TASKS {
        register(&*store, task).await;
    }
    // A server always has a watcher.
    let mut news = store.watch();
    let watcher = tokio::spawn(async move { while news.recv().await.is_ok() {} });
    for window in [1, 64] {
        let tasks = if window == 1 { 1 } else { TASKS };
        run(&store, tasks, window, per_call, Duration::from_secs(seconds)).await;
    }
    store.close().await.unwrap();
    watcher.abort();
}

async fn register(store: &dyn Store, task: usize) {
    let id = InviteId((task as u64).to_be_bytes());
    let terms = InviteTerms { role: UserRole::Member, user: None, expires_ms: 1 << 60 };
    let invite = PreparedInvite { id, record: vec![0; 192], terms, made_by: None, created_ms: 0 };
    assert!(store.add_invite(invite).await.unwrap());
    let device = NewDevice { id: device(task), label: String::new(), record: vec![0; 192] };
    let user = user(task);
    let new = Registration { invite: id, user, password: None, device: Some(device) };
    store.register(new, 1).await.unwrap();
}

fn user(task: usize) -> Name {
    Name::new(&format!("user{task}")).unwrap()
}

fn device(task: usize) -> DeviceId {
    DeviceId([u8::try_from(task).unwrap(); 16])
}

async fn run(store: &Arc<dyn Store>, tasks: usize, window: usize, per_call: usize, time: Duration) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let began = Instant::now();
    let cpu = cpu();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let sender = Sender::new(&user(task), Some(&device(task)));
                let body = Bytes::from(vec![b'x'; BODY]);
                let one = || {
                    let mut id = [u8::try_from(task).unwrap(); 16];
                    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
                    NewEntry {
                        conversation: LOBBY,
                        sender: sender.clone(),
                        message_id: MessageId(id),
                        kind: EntryKind::TEXT,
                        body: body.clone(),
                    }
                };
                let call = || {
                    let batch: Vec<_> = (0..per_call).map(|_| one()).collect();
                    let store = store.clone();
                    let since = Instant::now();
                    async move {
                        let answers = store.append(batch).await.unwrap();
                        let recorded = answers.iter().all(|a| matches!(a, Appended::Recorded(_)));
                        assert!(recorded, "a member was refused");
                        since.elapsed()
                    }
                };
                let mut calls: FuturesUnordered<_> =
                    (0..window.div_ceil(per_call)).map(|_| call()).collect();
                let mut latencies = Vec::new();
                while let Some(latency) = calls.next().await {
                    latencies.push(latency);
                    if began.elapsed() < time {
                        calls.push(call());
                    }
                }
                latencies
            })
        })
        .collect();
    let count = tasks.len();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let (took, cpu) = (began.elapsed(), self::cpu() - cpu);
    latencies.sort_unstable();
    let rows = latencies.len() * per_call;
    let at = |share: usize| latencies[(latencies.len() * share / 1000).min(latencies.len() - 1)];
    println!(
        "{count:>2} x {window:<2}  {:>8.0} rows/s  {:.2} us CPU a row  p50 {:?}  p99 {:?}  p99.9 {:?}  max {:?}",
        rows as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / rows as f64,
        at(500),
        at(990),
        at(999),
        at(1000),
    );
}

/// CPU time of this process so far, in ticks of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |n| after.split_whitespace().nth(n).and_then(|t| t.parse::<u64>().ok());
    Duration::from_millis(10 * (ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0)))
}
