//! Interrupted transfers, and peers that violate the transfer protocol.

use std::fs;
use std::time::{Duration, SystemTime};

use crate::common::files::*;
use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{
    self, Limit, RefusalReason, answer::Result as Answered, item::What, request::Op,
};
use twinlock_testing::bytes;

const MIB: usize = 1024 * 1024;

/// Sends half of an upload; returns an offset that the server has certainly acknowledged.
async fn half(client: &mut Client, id: [u8; 16], data: &[u8]) -> u64 {
    let accepted = client.offer(put(id, "half", data.len() as u64)).await.unwrap();
    let half = data.len() / 2;
    client.send_part(accepted.transfer, data, 0, half).await;
    let pick = |item: &What| match item {
        What::FileAck(ack) if ack.offset as usize > half / 2 => Some(ack.offset),
        _ => None,
    };
    client.pick("acknowledgement", pick).await
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Polls until a condition holds that no connection reports.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__resumes_after_disconnect_restart_and_crash() {
    let mut host = Host::start().await;
    let (laptop, ada) = host.owner().await;
    drop(ada);
    for (round, n) in (0..3_u8).zip(1..) {
        let data = bytes(20 * MIB + 7, round.into());
        let id: [u8; 16] = random();
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        let acked = half(&mut ada, id, &data).await;
        // The server may not have noticed the disconnect when the next connection arrives.
        drop(ada);
        host = match round {
            0 => host,
            1 => host.restart(|_| ()).await,
            _ => host.crash(|_| ()).await,
        };
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        let accepted = ada.offer(put(id, "half", data.len() as u64)).await.unwrap();
        let have = usize::try_from(accepted.offset).unwrap();
        assert!(accepted.offset >= acked && have <= data.len() / 2, "{round}: {have} of {acked}");
        assert_eq!(accepted.prefix_hash, hash(&data[..have]));
        ada.send_part(accepted.transfer, &data, have, data.len()).await;
        assert_eq!(ada.end_file(accepted.transfer, &data).await.unwrap().n, n);
        let mut got = Vec::new();
        ada.download(n, &mut got).await.unwrap();
        assert!(got == data);
        assert_eq!(partials(&host), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__damaged_prefix_is_detected_and_sent_again() {
    let mut host = Host::start().await;
    let (laptop, ada) = host.owner().await;
    drop(ada);
    let data = bytes(6 * MIB, 1);
    for (restarted, n) in [false, true].into_iter().zip(1..) {
        let id: [u8; 16] = random();
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        half(&mut ada, id, &data).await;
        ada.bye().await;
        let all_there = || matches!(partials(&host)[..], [(_, size)] if size == 3 << 20);
        eventually("what was sent is written", all_there).await;
        if restarted {
            host = host.restart(|_| ()).await;
        }
        flip(&partials(&host)[0].0, 12_345);
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        let accepted = ada.offer(put(id, "half", data.len() as u64)).await.unwrap();
        let mut damaged = data[..usize::try_from(accepted.offset).unwrap()].to_vec();
        damaged[12_345] ^= 1;
        assert_eq!(accepted.prefix_hash, hash(&damaged), "after a restart: {restarted}");
        // From the beginning, on the same transfer.
        ada.send_part(accepted.transfer, &data, 0, data.len()).await;
        assert_eq!(ada.end_file(accepted.transfer, &data).await.unwrap().n, n);
        let mut got = Vec::new();
        ada.download(n, &mut got).await.unwrap();
        assert!(got == data);
    }
    assert_eq!(blobs(&host).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__repeated_offer_aborts_the_earlier_transfer() {
    let host = Host::start().await;
    let (laptop, mut first) = host.owner().await;
    let mut second = host.connect(laptop.credential()).await.unwrap();
    let (id, data): ([u8; 16], _) = (random(), bytes(4 * MIB, 3));
    let one = first.offer(put(id, "x", data.len() as u64)).await.unwrap();
    first.send_part(one.transfer, &data, 0, 2 * MIB).await;
    eventually("it is written", || partials(&host)[0].1 == 2 << 20).await;
    let (_, sent) = second.upload(id, "x", &data).await.unwrap();
    assert_eq!(sent, 2 * MIB);
    first.line.session_mut().send_bulk(one.transfer, 2 << 20, &data[..100]).unwrap();
    assert_eq!(first.aborted(one.transfer).await, RefusalReason::Busy);
    // Data that is sent in the old transfer is dropped. Another size is another upload.
    first.line.session_mut().send_bulk(one.transfer, 77, &data[..100]).unwrap();
    assert_eq!(first.upload(id, "x", &data).await.unwrap().1, 0);
    let other = first.offer(put(random(), "x", 5)).await.unwrap();
    assert_eq!(other.offset, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download__resumes_only_after_matching_prefix() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let data = bytes(3 * MIB + 1, 5);
    ada.upload(random(), "x", &data).await.unwrap();
    let mut other = data[..MIB].to_vec();
    other[7] ^= 1;
    for (have, expected) in [
        (data[..1].to_vec(), 1),
        (data[..MIB].to_vec(), MIB),
        (data.clone(), data.len()),
        (other, 0),
        ([&data[..], b"more"].concat(), 0),
    ] {
        let mut got = have;
        assert_eq!(ada.download(1, &mut got).await.unwrap(), expected as u64);
        assert!(got == data);
    }
    let odd = proto::GetFile { offset: 5, prefix_hash: copy(&[1; 31]), ..get(1) };
    assert_eq!(ada.ask(Op::GetFile(odd)).await, Err(RefusalReason::Malformed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__recorded_id_returns_same_ack() {
    let host = Host::start_with(|config| config.limits.file = 100).await;
    let (_, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(100, 1));
    let (ack, sent) = ada.upload(id, "x", &data).await.unwrap();
    assert_eq!(sent, 100);
    assert_eq!(ada.upload(id, "x", &data).await.unwrap(), (ack.clone(), 0));
    assert_eq!(ada.upload(id, "another", &bytes(4000, 2)).await.unwrap(), (ack, 0));
    // The id of a text counts as used too.
    let text: [u8; 16] = random();
    let said = ada.ask(append_as(text, LOBBY, "text")).await.map(crate::common::ack).unwrap();
    assert_eq!(ada.upload(text, "x", &data).await.unwrap(), (said, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__invalid_metadata_is_refused_at_offer() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "a\nb", "\u{1b}[2J", &long] {
        assert_eq!(
            ada.offer(put(random(), name, 1)).await,
            Err(RefusalReason::NameBad),
            "{name:?}"
        );
    }
    let deep = "x/".repeat(512) + "x";
    for path in ["/", "a//b", "/etc", "a/", "..", "a/../b", "a/./b", "a\nb", &long, &deep] {
        let mut offer = put(random(), "x", 1);
        offer.file.as_mut().unwrap().path = path.to_owned();
        assert_eq!(ada.offer(offer).await, Err(RefusalReason::NameBad), "{path:?}");
    }
    let change = |change: fn(&mut proto::PutFile)| {
        let mut put = put(random(), "x", 1);
        change(&mut put);
        put
    };
    for (bad, why) in [
        (change(|p| p.file = None), RefusalReason::Malformed),
        (change(|p| p.message_id = copy(&[1; 15])), RefusalReason::Malformed),
        (change(|p| p.file.as_mut().unwrap().mime = "x".repeat(128)), RefusalReason::Malformed),
        (change(|p| p.file.as_mut().unwrap().mode = 0o4755), RefusalReason::Malformed),
        (change(|p| p.file.as_mut().unwrap().size = u64::MAX), RefusalReason::TooLarge),
        (change(|p| p.file.as_mut().unwrap().size = (16 << 30) + 1), RefusalReason::TooLarge),
        (change(|p| p.conversation = 77), RefusalReason::NotFound),
    ] {
        assert_eq!(ada.offer(bad).await, Err(why));
    }
    let room = proto::CreateRoom { name: "ops".to_owned(), topic: String::new() };
    let room = ada.ask(Op::CreateRoom(room)).await.map(conversation).unwrap().id;
    let there = proto::PutFile { conversation: room, ..put(random(), "x", 1) };
    assert_eq!(bob.offer(there.clone()).await, Err(RefusalReason::NotFound));
    let accepted = ada.offer(there).await.unwrap();
    ada.send_part(accepted.transfer, b"x", 0, 1).await;
    ada.end_file(accepted.transfer, b"x").await.unwrap();
    // A file in a room of others cannot be fetched either.
    let theirs = proto::GetFile { conversation: room, ..get(1) };
    assert_eq!(bob.ask(Op::GetFile(theirs)).await, Err(RefusalReason::NotFound));
    ada.append(LOBBY, "a text").await.unwrap();
    for n in [0, 1, 2, u64::MAX] {
        assert_eq!(bob.ask(Op::GetFile(get(n))).await, Err(RefusalReason::NotFound));
    }
    assert_eq!(blobs(&host).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__refused_without_device_session() {
    let host = Host::start().await;
    let mut invited = host.connect(host.owner_invite().credential()).await.unwrap();
    let refused = invited.ask(Op::PutFile(put(random(), "x", 1))).await;
    assert_eq!(refused, Err(RefusalReason::NotAllowed));
    invited.register("ada", Some("a password")).await.unwrap();
    let mut ada = host.connect(password("ada", "a password")).await.unwrap();
    for op in [
        Op::PutFile(put(random(), "x", 1)),
        Op::GetFile(get(1)),
        Op::EndFile(proto::EndFile::default()),
        Op::AbortFile(proto::AbortFile::default()),
    ] {
        assert_eq!(ada.ask(op).await, Err(RefusalReason::NotAllowed));
    }
    ada.line.session_mut().send_bulk(3, 0, b"x").unwrap();
    assert_eq!(ada.end().await.unwrap(), CloseCode::Protocol);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__wrong_offset_or_direction_closes_session() {
    let host = Host::start().await;
    let (laptop, mut bob) = host.owner().await;
    let data = bytes(12 * MIB, 1);
    let fetched = bob.upload(random(), "there", &data).await.unwrap().0.n;
    // Offsets and lengths of the frames, 10 bytes in all; the last one exceeds the window.
    let wrong: [&[(u64, usize)]; 6] = [
        &[(1, 1)],
        &[(0, 5), (6, 1)],
        &[(0, 5), (4, 1)],
        &[(0, 5), (0, 1)],
        &[(0, 5), (5, 6)],
        &[(0, 10), (u64::MAX, 10)],
    ];
    for frames in wrong {
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        let accepted = ada.offer(put(random(), "x", 10)).await.unwrap();
        for (offset, length) in frames {
            let session = ada.line.session_mut();
            session.send_bulk(accepted.transfer, *offset, &data[..*length]).unwrap();
        }
        assert_eq!(ada.end().await.unwrap(), CloseCode::Protocol, "{frames:?}");
    }
    // Transfers that do not exist, or that go in the other direction.
    for wrong in 0..4 {
        let mut ada = host.connect(laptop.credential()).await.unwrap();
        let accepted = ada.offer(put(random(), "x", 10)).await.unwrap();
        let coming = ada.ask(Op::GetFile(get(fetched))).await.map(coming).unwrap();
        match wrong {
            0 => ada.line.session_mut().send_bulk(coming.transfer, 0, b"x").unwrap(),
            1 => ada.line.session_mut().send_bulk(accepted.transfer + 64, 0, b"x").unwrap(),
            2 => ada.ack_file(accepted.transfer, 0),
            _ => ada.ack_file(coming.transfer, coming.size + 1),
        }
        assert_eq!(ada.end().await.unwrap(), CloseCode::Protocol, "{wrong}");
    }
    assert_eq!(blobs(&host).len(), 1);
    assert_eq!(bob.read(LOBBY, 0).await.unwrap().head, fetched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__wrong_hash_discards_data_and_allows_retry() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(2 * MIB, 1));
    let put = || put(id, "x", 2 << 20);
    for (sent, hash) in [(2 * MIB, hash(b"other")), (MIB, hash(&data[..MIB])), (0, hash(b""))] {
        let accepted = ada.offer(put()).await.unwrap();
        assert_eq!(accepted.offset, 0);
        ada.send_part(accepted.transfer, &data, 0, sent).await;
        let odd = proto::EndFile { transfer: accepted.transfer, hash: copy(&[1; 31]) };
        assert_eq!(ada.ask(Op::EndFile(odd)).await, Err(RefusalReason::Malformed));
        let end =
            || Op::EndFile(proto::EndFile { transfer: accepted.transfer, hash: hash.clone() });
        assert_eq!(ada.ask(end()).await, Err(RefusalReason::Hash));
        assert_eq!(ada.ask(end()).await, Err(RefusalReason::NotFound));
        assert_eq!((blobs(&host), partials(&host)), (vec![], vec![]));
    }
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 0);
    assert_eq!(ada.upload(id, "x", &data).await.unwrap().1, 2 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__abort_keeps_partial_and_drops_later_bytes() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(5 * MIB, 1));
    let accepted = ada.offer(put(id, "x", 5 << 20)).await.unwrap();
    let transfer = accepted.transfer;
    ada.send_part(transfer, &data, 0, 3 * MIB).await;
    let abort = |transfer| Op::AbortFile(proto::AbortFile { transfer });
    ada.ask(abort(transfer)).await.map(done).unwrap();
    ada.line.session_mut().send_bulk(transfer, 3 << 20, b"late").unwrap();
    assert_eq!(ada.end_file(transfer, &data).await, Err(RefusalReason::NotFound));
    assert_eq!(ada.ask(abort(transfer)).await.map(done), Ok(()));
    assert_eq!(ada.ask(abort(transfer + 64)).await, Err(RefusalReason::NotFound));
    // All data sent before the abort is kept, once it is written.
    eventually("the last bytes are written", || partials(&host)[0].1 == 3 << 20).await;
    let (ack, sent) = ada.upload(id, "x", &data).await.unwrap();
    assert_eq!((ack.n, sent), (1, 2 * MIB));
    // An aborted download ends.
    let coming = ada.ask(Op::GetFile(get(1))).await.map(coming).unwrap();
    ada.ask(abort(coming.transfer)).await.map(done).unwrap();
    let came = ada.bulk.len();
    ada.append(LOBBY, "between").await.unwrap();
    assert_eq!(ada.bulk.len(), came);
    ada.ack_file(coming.transfer, 1);
    assert!(ada.append(LOBBY, "still here").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__ninth_is_busy_until_one_ends() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(ada.offer(put(random(), "x", 9)).await.unwrap().transfer);
    }
    for ninth in [Op::PutFile(put(random(), "x", 9)), Op::GetFile(get(1))] {
        assert_eq!(
            told(&refused(&mut ada, ninth).await),
            (RefusalReason::Busy, Limit::Transfers, 8)
        );
    }
    let abort = proto::AbortFile { transfer: open[0] };
    ada.ask(Op::AbortFile(abort)).await.map(done).unwrap();
    let ninth = ada.offer(put(random(), "x", 9)).await.unwrap().transfer;
    assert!(!open.contains(&ninth));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_quota__counts_files_and_charges_whole_blocks() {
    let host = Host::start_with(|config| {
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
    assert!(host.server.erase(LOBBY, 1).await.unwrap());
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
    let host = Host::start_with(|config| {
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
    assert!(host.server.erase(LOBBY, 1).await.unwrap());
    ada.upload(random(), "x", &bytes(20_000, 3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_upload__discarded_when_new_upload_needs_quota() {
    let host = Host::start_with(|config| config.limits.files_per_user = 10 << 20).await;
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
    let host = Host::start_with(|config| config.limits.partial_files_per_user = 2).await;
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
    child.args(["--exact", "files_broken::disk__no_free_inodes_is_refused_at_offer"]);
    let child = child.env(ROLE, "1").env("TMPDIR", disk.path()).output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let ran = child.status.success() && said.contains("1 passed");
    assert!(ran, "{said}{}", String::from_utf8_lossy(&child.stderr));
}

async fn use_up_the_inodes() {
    let host = Host::start_with(|config| config.limits.disk_reserve = Some(0)).await;
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
    let host = Host::start_with(|config| config.limits.disk_reserve = Some(u64::MAX)).await;
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
        .args(["--exact", "files_broken::disk__write_failure_aborts_upload_and_later_one_passes"])
        .env(ROLE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    let ran = child.status.success() && said.contains("1 passed");
    assert!(ran, "{said}{}", String::from_utf8_lossy(&child.stderr));
}

async fn fill_the_disk() {
    let host = Host::start().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__stored_once_until_last_entry_is_erased() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let data = bytes(MIB + 5, 1);
    ada.upload(random(), "hers", &data).await.unwrap();
    bob.upload(random(), "his", &data).await.unwrap();
    bob.upload(random(), "another", &bytes(10, 2)).await.unwrap();
    let sizes = |host: &Host| {
        let mut sizes: Vec<_> = blobs(host).into_iter().map(|(_, size)| size).collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&host), [10, data.len() as u64]);
    assert!(host.server.erase(LOBBY, 1).await.unwrap());
    assert!(!host.server.erase(LOBBY, 1).await.unwrap());
    assert_eq!(ada.ask(Op::GetFile(get(1))).await, Err(RefusalReason::NotFound));
    let mut got = Vec::new();
    ada.download(2, &mut got).await.unwrap();
    assert!(got == data);
    // A download that has started receives all of it.
    let coming = ada.ask(Op::GetFile(get(2))).await.map(coming).unwrap();
    assert!(host.server.erase(LOBBY, 2).await.unwrap());
    assert_eq!(sizes(&host), [10]);
    let mut got = Vec::new();
    ada.receive(&coming, &mut got).await;
    assert!(got == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content__damaged_is_detected_and_repaired_by_upload() {
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    let data = bytes(2 * MIB, 1);
    ada.upload(random(), "x", &data).await.unwrap();
    let path = blobs(&host).remove(0).0;
    flip(&path, 1_500_000);
    let coming = ada.ask(Op::GetFile(get(1))).await.map(coming).unwrap();
    let mut got = Vec::new();
    ada.receive(&coming, &mut got).await;
    assert_ne!(hash(&got), coming.hash, "the client cannot have missed it");
    // A correct prefix is resumed; one that includes the damage is not.
    let again = |offset: usize| {
        let prefix_hash = hash(&data[..offset]);
        Op::GetFile(proto::GetFile { offset: offset as u64, prefix_hash, ..get(1) })
    };
    for (offset, expected) in [(MIB, 1 << 20), (1_600_000, 0)] {
        let answered = ada.ask(again(offset)).await.map(crate::common::files::coming).unwrap();
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
    let host = Host::start().await;
    let (_, mut ada) = host.owner().await;
    ada.upload(random(), "x", &bytes(20 * MIB, 1)).await.unwrap();
    let coming = ada.ask(Op::GetFile(get(1))).await.map(coming).unwrap();
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
    let host = Host::start().await;
    let (laptop, mut ada) = host.owner().await;
    let kept = bytes(MIB, 2);
    ada.upload(random(), "kept", &kept).await.unwrap();
    let (id, data): ([u8; 16], _) = (random(), bytes(4 * MIB, 1));
    half(&mut ada, id, &data).await;
    drop(ada);
    let orphan = host.dir.path().join("data/files/ab");
    fs::create_dir_all(&orphan).unwrap();
    let orphan = orphan.join("ab".repeat(32));
    fs::write(&orphan, b"never recorded").unwrap();
    // Less than a day has passed.
    let host = host.restart(|_| ()).await;
    eventually("the orphan goes", || !orphan.exists()).await;
    assert_eq!(partials(&host).len(), 1);
    // The retention time of unreferenced content has not passed either.
    let aside = host.dir.path().join("data/files/unreferenced").join("ab".repeat(32));
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
    let host = Host::start().await;
    let (laptop, mut ada) = host.owner().await;
    drop(ada);
    let host = host.restart(|_| ()).await;
    let data = host.dir.path().join("data");
    let older = fs::read(data.join("record.db")).unwrap();
    ada = host.connect(laptop.credential()).await.unwrap();
    let kept = bytes(MIB, 2);
    ada.upload(random(), "kept", &kept).await.unwrap();
    drop(ada);
    let Host { server, dir, .. } = host;
    soon("shutdown", server.shutdown()).await.unwrap();
    let newer = fs::read(data.join("record.db")).unwrap();
    fs::write(data.join("record.db"), older).unwrap();
    // Without the head file, which would detect the older record at the second start.
    fs::remove_file(data.join("heads")).unwrap();
    let host = Host::start_in(dir, |_| ()).await.restart(|_| ()).await;
    eventually("it is set aside", || blobs(&host).is_empty()).await;
    let Host { server, dir, .. } = host;
    soon("shutdown", server.shutdown()).await.unwrap();
    fs::write(data.join("record.db"), newer).unwrap();
    let host = Host::start_in(dir, |_| ()).await;
    eventually("it is back", || blobs(&host).len() == 1).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let mut got = Vec::new();
    ada.download(1, &mut got).await.unwrap();
    assert!(got == kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__accepted_end_is_recorded_despite_shutdown_or_cut() {
    let host = Host::start().await;
    let (laptop, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    bob.follow(LOBBY, 0).await.unwrap();
    let data = bytes(40 * MIB, 1);
    let accepted = ada.offer(put(random(), "x", data.len() as u64)).await.unwrap();
    ada.send_part(accepted.transfer, &data, 0, data.len()).await;
    ada.post_end(accepted.transfer, &data);
    // Requests are handled in order: after this answer, the previous one has started.
    ada.ask(Op::ListPeople(proto::ListPeople::default())).await.unwrap();
    drop(ada);
    assert_eq!(bob.entries(LOBBY, 1).await[0].kind, 3);
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let other = bytes(40 * MIB, 2);
    let accepted = ada.offer(put(random(), "x", other.len() as u64)).await.unwrap();
    ada.send_part(accepted.transfer, &other, 0, other.len()).await;
    let end = ada.post_end(accepted.transfer, &other);
    ada.ask(Op::ListPeople(proto::ListPeople::default())).await.unwrap();
    let (ended, ack) = tokio::join!(host.restart(|_| ()), async {
        let ack = ada.answer(end).await;
        assert_eq!(ada.end().await.unwrap(), CloseCode::Shutdown);
        ack
    });
    let Answered::Ack(ack) = ack else { panic!("{ack:?}") };
    let mut ada = ended.connect(laptop.credential()).await.unwrap();
    let mut got = Vec::new();
    ada.download(ack.n, &mut got).await.unwrap();
    assert!(got == other);
}
