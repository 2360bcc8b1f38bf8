//! Content that is shared, damaged, unreferenced or restored.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::common::files::*;
use crate::common::*;
use twinlock_core::proto::{self, RefusalReason, item::What, request::Op};
use twinlock_testing::{bytes, copy_dir};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__stored_once_until_last_entry_is_erased() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let data = bytes(MIB + 5, 1);
    ada.upload(random(), "hers", &data).await.unwrap();
    bob.upload(random(), "his", &data).await.unwrap();
    bob.upload(random(), "another", &bytes(10, 2)).await.unwrap();
    let sizes = |host: &TestServer| {
        let mut sizes: Vec<_> = blobs(host).into_iter().map(|(_, size)| size).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&host), [10, data.len() as u64]);
    assert!(host.server().erase(LOBBY, 1).await.unwrap());
    assert!(!host.server().erase(LOBBY, 1).await.unwrap());
    assert_eq!(ada.ask(Op::GetFile(get(1))).await, Err(RefusalReason::NotFound));
    let mut got = Vec::new();
    ada.download(2, &mut got).await.unwrap();
    assert!(got == data);
    // A download that has started receives all of it.
    let coming = ada.ask(Op::GetFile(get(2))).await.map(crate::common::coming).unwrap();
    assert!(host.server().erase(LOBBY, 2).await.unwrap());
    assert_eq!(sizes(&host), [10]);
    let mut got = Vec::new();
    ada.receive(&coming, &mut got).await;
    assert!(got == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__damaged_is_detected_and_repaired_by_upload() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let data = bytes(2 * MIB, 1);
    ada.upload(random(), "x", &data).await.unwrap();
    let path = blobs(&host).remove(0).0;
    flip(&path, 1_500_000);
    let coming = ada.ask(Op::GetFile(get(1))).await.map(crate::common::coming).unwrap();
    let mut got = Vec::new();
    ada.receive(&coming, &mut got).await;
    assert_ne!(hash(&got), coming.hash, "the client cannot have missed it");
    // A correct prefix is resumed; one that includes the damage is not.
    let again = |offset: usize| {
        let prefix_hash = hash(&data[..offset]);
        Op::GetFile(proto::GetFile { offset: offset as u64, prefix_hash, ..get(1) })
    };
    for (offset, expected) in [(MIB, 1 << 20), (1_600_000, 0)] {
        let answered = ada.ask(again(offset)).await.map(crate::common::coming).unwrap();
        assert_eq!(answered.offset, expected);
    }
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB as u64).unwrap();
    assert_eq!(ada.ask(Op::GetFile(get(1))).await, Err(RefusalReason::Damaged));
    fs::remove_file(&path).unwrap();
    assert_eq!(ada.ask(Op::GetFile(get(1))).await, Err(RefusalReason::Damaged));
    ada.upload(random(), "x", &data).await.unwrap();
    for n in [1, 2] {
        let mut got = Vec::new();
        ada.download(n, &mut got).await.unwrap();
        assert!(got == data);
    }
    assert_eq!(blobs(&host).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__truncated_during_download_aborts_it() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    ada.upload(random(), "x", &bytes(20 * MIB, 1)).await.unwrap();
    let coming = ada.ask(Op::GetFile(get(1))).await.map(crate::common::coming).unwrap();
    // Without acknowledgements the server can have read only the window.
    let path = blobs(&host).remove(0).0;
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(12 << 20).unwrap();
    let aborted = async {
        loop {
            let at = ada.bulk.iter().map(|(_, offset, data)| offset + data.len() as u64).max();
            ada.ack_file(coming.transfer, at.unwrap_or(0));
            ada.pump().await.unwrap();
            let ended = ada.items().find_map(|item| match item {
                What::FileAborted(aborted) => Some(aborted.why()),
                _ => None,
            });
            if let Some(why) = ended {
                return why;
            }
        }
    };
    assert_eq!(soon("FileAborted", aborted).await, RefusalReason::Damaged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweep__removes_only_expired_and_unreferenced_at_start() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let kept = bytes(MIB, 2);
    ada.upload(random(), "kept", &kept).await.unwrap();
    let (id, data): ([u8; 16], _) = (random(), bytes(4 * MIB, 1));
    half(&mut ada, id, &data).await;
    drop(ada);
    let orphan = host.data().join("files/ab");
    fs::create_dir_all(&orphan).unwrap();
    let orphan = orphan.join("ab".repeat(32));
    fs::write(&orphan, b"never recorded").unwrap();
    // Less than a day has passed.
    let host = host.restart(|_| ()).await;
    eventually("the orphan goes", || !orphan.exists()).await;
    assert_eq!(partials(&host).len(), 1);
    // The retention time of unreferenced content has not passed either.
    let aside = host.data().join("files/unreferenced").join("ab".repeat(32));
    let host = host.restart(|_| ()).await;
    assert_eq!(fs::read(&aside).unwrap(), b"never recorded");
    let old = SystemTime::now() - Duration::from_secs(8 * 24 * 60 * 60);
    fs::File::options().write(true).open(&aside).unwrap().set_modified(old).unwrap();
    let host = host.restart(|config| config.limits.partial_files = Duration::ZERO).await;
    eventually("the upload goes", || partials(&host).is_empty()).await;
    eventually("the orphan goes for good", || !aside.exists()).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(ada.offer(put(id, "half", 4 << 20)).await.unwrap().offset, 0);
    let mut got = Vec::new();
    ada.download(1, &mut got).await.unwrap();
    assert!(got == kept);
}

/// An older record is restored, and then the newer one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__quarantined_is_restored_with_newer_record() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    drop(ada);
    let mut host = host.restart(|_| ()).await;
    let data = host.data();
    let (record, kept) = (data.join("record"), tempfile::tempdir().unwrap());
    let (older, newer) = (kept.path().join("older"), kept.path().join("newer"));
    copy_dir(&record, &older);
    ada = host.connect(laptop.credential()).await.unwrap();
    let kept = bytes(MIB, 2);
    ada.upload(random(), "kept", &kept).await.unwrap();
    drop(ada);
    host.stop().await;
    copy_dir(&record, &newer);
    fs::remove_dir_all(&record).unwrap();
    copy_dir(&older, &record);
    // Without the head file, which would detect the older record at the second start.
    fs::remove_file(data.join("heads")).unwrap();
    let mut host = host.restart(|_| ()).await.restart(|_| ()).await;
    eventually("it is set aside", || blobs(&host).is_empty()).await;
    host.stop().await;
    fs::remove_dir_all(&record).unwrap();
    copy_dir(&newer, &record);
    let host = host.restart(|_| ()).await;
    eventually("it is back", || blobs(&host).len() == 1).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let mut got = Vec::new();
    ada.download(1, &mut got).await.unwrap();
    assert!(got == kept);
}
