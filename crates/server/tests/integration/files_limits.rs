//! Quotas of users, partial uploads and full disks.

use std::fs;

use crate::common::files::*;
use crate::common::*;
use twinlock_core::proto::{self, Limit, RefusalReason, request::Op};
use twinlock_testing::bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_quota__counts_files_and_charges_whole_blocks() {
    let host = TestServer::start_with(|config| {
        config.limits.files_per_user = 4 * 4096 + 100;
        config.limits.files_number_per_user = 3;
    })
    .await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    // The limit is three files; an open upload counts.
    for _ in 0..2 {
        ada.upload(random(), "x", b"x").await.unwrap();
    }
    let open = ada.offer(put(random(), "x", 1)).await.unwrap();
    assert_eq!(ada.offer(put(random(), "x", 1)).await, Err(RefusalReason::Quota));
    ada.send_part(open.transfer, b"x", 0, 1).await;
    ada.end_file(open.transfer, b"x").await.unwrap();
    assert_eq!(ada.offer(put(random(), "x", 0)).await, Err(RefusalReason::Quota));
    assert!(host.server().erase(LOBBY, 1).await.unwrap());
    ada.upload(random(), "x", b"").await.unwrap();
    // Each small file counts as a block of 4 KiB: two of them leave 8,292 bytes.
    for _ in 0..2 {
        bob.upload(random(), "x", b"x").await.unwrap();
    }
    assert_eq!(bob.offer(put(random(), "x", 8293)).await, Err(RefusalReason::Quota));
    bob.upload(random(), "x", &bytes(8292, 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_quota__counts_stored_and_open_uploads() {
    let host = TestServer::start_with(|config| {
        config.limits.file = 20_000;
        config.limits.files_per_user = 50_000;
    })
    .await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    assert_eq!(ada.offer(put(random(), "x", 20_001)).await, Err(RefusalReason::TooLarge));
    // The same content twice counts twice.
    for _ in 0..2 {
        ada.upload(random(), "x", &bytes(20_000, 1)).await.unwrap();
    }
    assert_eq!(ada.offer(put(random(), "x", 10_001)).await, Err(RefusalReason::Quota));
    let open = ada.offer(put(random(), "x", 5000)).await.unwrap();
    assert_eq!(ada.offer(put(random(), "x", 5001)).await, Err(RefusalReason::Quota));
    // A refused upload uses no quota, and each user has a separate quota.
    ada.offer(put(random(), "x", 5000)).await.unwrap();
    bob.upload(random(), "x", &bytes(20_000, 1)).await.unwrap();
    ada.send_part(open.transfer, &bytes(5000, 2), 0, 5000).await;
    ada.end_file(open.transfer, &bytes(5000, 2)).await.unwrap();
    assert_eq!(ada.offer(put(random(), "x", 1)).await, Err(RefusalReason::Quota));
    assert!(host.server().erase(LOBBY, 1).await.unwrap());
    ada.upload(random(), "x", &bytes(20_000, 3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_upload__discarded_when_new_upload_needs_quota() {
    let host = TestServer::start_with(|config| config.limits.files_per_user = 10 << 20).await;
    let (laptop, mut ada) = host.owner().await;
    let (old, data): ([u8; 16], _) = (random(), bytes(8 * MIB, 1));
    half(&mut ada, old, &data).await;
    ada.bye().await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    ada.upload(random(), "x", &bytes(5 * MIB, 2)).await.unwrap();
    assert_eq!(partials(&host).len(), 1, "there was room for both");
    ada.upload(random(), "x", &bytes(3 * MIB, 3)).await.unwrap();
    assert_eq!(partials(&host), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_upload__oldest_is_discarded_above_limit() {
    let host = TestServer::start_with(|config| config.limits.partial_files_per_user = 2).await;
    let (laptop, mut ada) = host.owner().await;
    let ids: [[u8; 16]; 3] = [random(), random(), random()];
    let data = bytes(2 * MIB, 1);
    for id in ids {
        half(&mut ada, id, &data).await;
        ada.bye().await;
        ada = host.connect(laptop.credential()).await.unwrap();
    }
    assert_eq!(partials(&host).len(), 2);
    // The oldest restarts from zero and displaces the next one.
    for (id, kept) in [(ids[2], true), (ids[1], true), (ids[0], false), (ids[1], false)] {
        let accepted = ada.offer(put(id, "half", data.len() as u64)).await.unwrap();
        assert_eq!(accepted.offset > 0, kept);
        let abort = proto::AbortFile { transfer: accepted.transfer };
        ada.ask(Op::AbortFile(abort)).await.map(done).unwrap();
    }
}

/// A disk with a thousand inodes, in a mount namespace of the child process below.
#[test]
fn disk__no_free_inodes_is_refused_at_offer() {
    const ROLE: &str = "TWINLOCK_TEST_INODES";
    if std::env::var_os(ROLE).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(use_up_the_inodes());
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o nr_inodes=1000,size=64m tmpfs \"$TMPDIR\" && exec \"$0\" \"$@\"";
    let mut child = std::process::Command::new("unshare");
    child.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
    child.args(["sh", "-c", script]).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "files_limits::disk__no_free_inodes_is_refused_at_offer"]);
    let child = child.env(ROLE, "1").env("TMPDIR", disk.path()).output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let ran = child.status.success() && said.contains("1 passed");
    assert!(ran, "{said}{}", String::from_utf8_lossy(&child.stderr));
}

async fn use_up_the_inodes() {
    let host = TestServer::start_with(|config| config.limits.disk_reserve = Some(0)).await;
    let (_, mut ada) = host.owner().await;
    ada.upload(random(), "x", b"one").await.unwrap();
    // The server keeps one in a hundred free.
    let others = tempfile::tempdir().unwrap();
    let free = || rustix::fs::statvfs(others.path()).unwrap().f_favail;
    for n in 0.. {
        if free() <= 10 {
            break;
        }
        fs::write(others.path().join(n.to_string()), "").unwrap();
    }
    assert_eq!(ada.offer(put(random(), "x", 3)).await, Err(RefusalReason::Storage));
    ada.append(LOBBY, "talking goes on").await.unwrap();
    drop(others);
    ada.upload(random(), "x", b"two").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk__reserve_reached_is_refused_at_offer_and_recovers() {
    let host = TestServer::start_with(|config| config.limits.disk_reserve = Some(u64::MAX)).await;
    let (laptop, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(MIB, 1));
    let no = refused(&mut ada, Op::PutFile(put(id, "x", 1 << 20))).await;
    assert_eq!(told(&no), (RefusalReason::Storage, Limit::DiskReserve, u64::MAX));
    // Messages are still recorded.
    ada.append(LOBBY, "full").await.unwrap();
    assert_eq!((blobs(&host), partials(&host)), (vec![], vec![]));
    let host = host.restart(|_| ()).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(ada.upload(id, "x", &data).await.unwrap().1, MIB);
}

/// The size that the child process may write into one file, bytes.
const CHILD_LIMIT: u64 = 6 << 20;

/// A disk that fills during an upload. The test runs in a process with a limit on file size, so
/// that a write fails in the same way and place.
#[test]
fn disk__write_failure_aborts_upload_and_later_one_passes() {
    const ROLE: &str = "TWINLOCK_TEST_FULL_DISK";
    if std::env::var_os(ROLE).is_some() {
        tokio::runtime::Runtime::new().unwrap().block_on(fill_the_disk());
        return;
    }
    // The limit's signal is ignored, so that the write fails instead.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", CHILD_LIMIT / 512);
    let child = std::process::Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "files_limits::disk__write_failure_aborts_upload_and_later_one_passes"])
        .env(ROLE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let ran = child.status.success() && said.contains("1 passed");
    assert!(ran, "{said}{}", String::from_utf8_lossy(&child.stderr));
}

async fn fill_the_disk() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(8 * MIB, 1));
    for _ in 0..2 {
        let accepted = ada.offer(put(id, "x", 8 << 20)).await.unwrap();
        assert!(accepted.offset <= CHILD_LIMIT);
        assert_eq!(accepted.offset > 0, !accepted.prefix_hash.is_empty());
        let have = usize::try_from(accepted.offset).unwrap();
        if have > 0 {
            assert_eq!(accepted.prefix_hash, hash(&data[..have]));
        }
        ada.send_part(accepted.transfer, &data, have, data.len()).await;
        assert_eq!(ada.aborted(accepted.transfer).await, RefusalReason::Storage);
        assert_eq!(ada.end_file(accepted.transfer, &data).await, Err(RefusalReason::NotFound));
        assert_eq!(blobs(&host), []);
        ada.append(LOBBY, "talking goes on").await.unwrap();
    }
    // A file that fits is still accepted.
    let small = bytes(3 * MIB, 2);
    assert_eq!(ada.upload(random(), "small", &small).await.unwrap().0.n, 3);
    let mut got = Vec::new();
    ada.download(3, &mut got).await.unwrap();
    assert!(got == small);
}
