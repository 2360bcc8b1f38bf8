//! A repeated message id is answered from its first recording, whatever was recorded since.

use twinlock_core::id::MessageId;
use twinlock_store::{Appended, LOBBY, NewEntry};

use crate::common::contract::*;
use crate::common::{entry, full, join, open};

/// Entries between a message and its repetition, in `make test` and in `make torture`.
const BETWEEN: [usize; 2] = [3000, 1_000_000];
const BATCH: usize = 1000;

fn random_id() -> MessageId {
    MessageId(twinlock_testing::random())
}

fn with_id(message_id: MessageId) -> NewEntry {
    NewEntry { message_id, ..entry(LOBBY, "ada", "repeated") }
}

/// Ids that begin with a time, as clients draw them.
fn timed_id(ms: u64) -> MessageId {
    let mut id = random_id();
    id.0[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicate__is_answered_from_its_first_place_after_many_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    join(&*store, "ada").await;
    join(&*store, "bob").await;
    let now = 1_700_000_000_000;
    let hour = 60 * 60 * 1000;
    let repeated = [
        MessageId([0; 16]),
        MessageId([255; 16]),
        random_id(),
        random_id(),
        timed_id(now),
        timed_id(now + hour),
    ];
    let first = store.append(repeated.map(with_id).to_vec()).await.unwrap();
    let between = BETWEEN[usize::from(full())];
    for round in 0..between / BATCH {
        let ms = now + u64::try_from(round).unwrap();
        let id = |i: usize| if i.is_multiple_of(4) { random_id() } else { timed_id(ms) };
        let user = |i: usize| if i.is_multiple_of(2) { "ada" } else { "bob" };
        let new = |i| NewEntry { message_id: id(i), ..entry(LOBBY, user(i), "other") };
        let answers = store.append((0..BATCH).map(new).collect()).await.unwrap();
        assert!(answers.iter().all(|answer| matches!(answer, Appended::Recorded(_))));
        // While earlier ones are indexed, and while they are not.
        assert_eq!(store.append(repeated.map(with_id).to_vec()).await.unwrap(), first);
    }
    for _ in 0..2 {
        assert_eq!(store.append(repeated.map(with_id).to_vec()).await.unwrap(), first);
        store.close().await.unwrap();
        drop(store);
        store = open(dir.path());
    }
    assert_eq!(store.append(repeated.map(with_id).to_vec()).await.unwrap(), first);
    let lobby = store.newest(1).await.unwrap();
    assert_eq!(lobby[0].n as usize, between / BATCH * BATCH + repeated.len());
}
