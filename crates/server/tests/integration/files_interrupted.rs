//! Interrupted transfers resume, and nothing is recorded twice.

use crate::common::files::*;
use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_testing::bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__resumes_after_disconnect_restart_and_crash() {
    let mut host = TestServer::start().await;
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
    let mut host = TestServer::start().await;
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
    let host = TestServer::start().await;
    let (laptop, mut first) = host.owner().await;
    let mut second = host.connect(laptop.credential()).await.unwrap();
    let (id, data): ([u8; 16], _) = (random(), bytes(4 * MIB, 3));
    let one = first.offer(put(id, "x", data.len() as u64)).await.unwrap();
    first.send_part(one.transfer, &data, 0, 2 * MIB).await;
    eventually("it is written", || partials(&host)[0].1 == 2 << 20).await;
    let (_, sent) = second.upload(id, "x", &data).await.unwrap();
    assert_eq!(sent, 2 * MIB);
    first.connection.session_mut().send_bulk(one.transfer, 2 << 20, &data[..100]).unwrap();
    assert_eq!(first.aborted(one.transfer).await, RefusalReason::Busy);
    // Data that is sent in the old transfer is dropped. Another size is another upload.
    first.connection.session_mut().send_bulk(one.transfer, 77, &data[..100]).unwrap();
    assert_eq!(first.upload(id, "x", &data).await.unwrap().1, 0);
    let other = first.offer(put(random(), "x", 5)).await.unwrap();
    assert_eq!(other.offset, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download__resumes_only_after_matching_prefix() {
    let host = TestServer::start().await;
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
    let host = TestServer::start_with(|config| config.limits.file = 100).await;
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
async fn transfer__abort_keeps_partial_and_drops_later_bytes() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (id, data): ([u8; 16], _) = (random(), bytes(5 * MIB, 1));
    let accepted = ada.offer(put(id, "x", 5 << 20)).await.unwrap();
    let transfer = accepted.transfer;
    ada.send_part(transfer, &data, 0, 3 * MIB).await;
    let abort = |transfer| Op::AbortFile(proto::AbortFile { transfer });
    ada.ask(abort(transfer)).await.map(done).unwrap();
    ada.connection.session_mut().send_bulk(transfer, 3 << 20, b"late").unwrap();
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
async fn upload__accepted_end_is_recorded_despite_shutdown_or_cut() {
    let host = TestServer::start().await;
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
