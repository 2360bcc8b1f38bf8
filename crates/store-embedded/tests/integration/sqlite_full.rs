//! Behaviour when the disk is full.

use crate::common::contract::*;
use crate::common::{entry, join, links, name, open, say};
use tokio::sync::broadcast::error::TryRecvError;
use twinlock_store::{Appended, LOBBY, Order, StoreError};

#[tokio::test]
async fn full_disk__batch_after_a_failed_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    store.limit_pages(Some(80)).await.unwrap();
    let (large, small) = ("x".repeat(400_000), "y".to_owned());
    let (line, other) = (Order::default(), Order::default());
    let first = store.hand_over(vec![entry(LOBBY, "ada", &large)], &line).await.unwrap();
    assert_eq!(first.await, Err(StoreError::Full));
    let second = store.hand_over(vec![entry(LOBBY, "ada", &small)], &line).await.unwrap();
    assert_eq!(second.await, Err(StoreError::OutOfOrder));
    // Other orders are not affected, and there is space for a small entry.
    let others = store.hand_over(vec![entry(LOBBY, "ada", &small)], &other).await.unwrap();
    assert_eq!(others.await.unwrap().len(), 1);
    assert!(line.has_failed() && !other.has_failed());
    assert_eq!(links(&*store, LOBBY).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk__refuses_writes_allows_reads_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    join(&*store, "ada").await;
    join(&*store, "bob").await;
    let mut news = store.watch();
    let mut acked = Vec::new();
    for (round, room) in (0_u32..3).enumerate() {
        // Some space, which concurrent appends soon exhaust.
        store.limit_pages(Some(60 + 40 * room)).await.unwrap();
        let mut full = 0;
        while full < 50 {
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let store = store.clone();
                    let new = entry(LOBBY, "ada", &"x".repeat(300));
                    tokio::spawn(async move { (new.clone(), store.append(vec![new]).await) })
                })
                .collect();
            for task in tasks {
                match task.await.unwrap() {
                    (new, Ok(answers)) => acked.push((new, answers)),
                    (_, Err(error)) => {
                        assert_eq!(error, StoreError::Full);
                        full += 1;
                    }
                }
            }
        }
        // Other writes get the same error, and reads still work.
        let made = store.create_room(&name("ada"), &name("ops"), &"x".repeat(400_000)).await;
        assert!(made == Err(StoreError::Full), "a room was made on a full disk");
        let before = links(&*store, LOBBY).await.unwrap().len();
        assert_eq!(before, acked.len());
        let found = store.search(LOBBY, "xxx", u64::MAX, 1_000_000).await.unwrap().len();
        assert_eq!(found, before - round);
        // With space again, the store recovers without intervention.
        store.limit_pages(None).await.unwrap();
        let new = entry(LOBBY, "bob", "room again");
        let receipt = say(&*store, new.clone()).await;
        assert_eq!(usize::try_from(receipt.n).unwrap(), before + 1);
        acked.push((new, vec![Appended::Recorded(receipt)]));
    }
    // No entry was duplicated, lost or acknowledged with a wrong number.
    let links = links(&*store, LOBBY).await.unwrap();
    assert_eq!(links.len(), acked.len());
    for (new, answers) in &acked {
        let [Appended::Recorded(receipt)] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(links.get(usize::try_from(receipt.n).unwrap() - 1), Some(&receipt.link));
        assert_eq!(&store.append(vec![new.clone()]).await.unwrap(), answers);
    }
    // Watchers received recorded entries only. (They may have lagged.)
    let mut told = 0;
    loop {
        match news.try_recv() {
            Ok(published) => {
                for entry in published.iter().flat_map(|p| &p.entries) {
                    told += 1;
                    let link = usize::try_from(entry.n).ok().and_then(|n| links.get(n - 1));
                    assert!(link.is_some(), "entry {} was told and is not there", entry.n);
                }
            }
            Err(TryRecvError::Lagged(_)) => {}
            Err(_) => break,
        }
    }
    assert!(told > 0);
}
