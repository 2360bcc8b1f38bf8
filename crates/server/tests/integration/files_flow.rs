//! Concurrent transfers and messages, and their memory use.

use std::sync::Mutex;
use std::time::Duration;

use crate::common::*;
use tokio::time::timeout;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_testing::bytes;

/// The tests measure the memory of this process, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// Uploads and downloads at once over one connection, as fast as possible. Each round calls `watch`
/// with the progress of both; it may send requests.
async fn both_ways(
    client: &mut RawClient,
    up: (u32, &[u8]),
    down: &proto::FileComing,
    mut watch: impl FnMut(&mut RawClient, usize, usize),
) -> Vec<u8> {
    let (mut sent, mut taken, mut got, mut acked) = (0, 0, Vec::new(), 0);
    while sent < up.1.len() || (got.len() as u64) < down.size {
        watch(client, sent, got.len());
        for item in client.items() {
            if let What::FileAck(ack) = item {
                taken = usize::try_from(ack.offset).unwrap().max(taken);
            }
        }
        while let Some((transfer, offset, data)) = client.bulk.pop_front() {
            assert_eq!((transfer, offset), (down.transfer, got.len() as u64));
            got.extend_from_slice(&data);
        }
        if got.len() - acked >= MIB / 2 {
            acked = got.len();
            client.ack_file(down.transfer, acked as u64);
        }
        let end = up.1.len().min(sent + 64 * 1024);
        let may_send =
            end > sent && end - taken <= 8 * MIB && client.connection.backlog() < 64 * 1024;
        if may_send {
            client.connection.session_mut().send_bulk(up.0, sent as u64, &up.1[sent..end]).unwrap();
            sent = end;
        }
        let room = (sent < up.1.len() && sent - taken < 7 * MIB).then_some(0);
        if soon("progress", client.connection.wait(room)).await.unwrap()
            == twinlock_transport::connection::Wake::Frame
        {
            client.pump().await.unwrap();
        }
    }
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__append_is_acked_during_upload_and_download() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let (theirs, ours) = (bytes(64 * MIB, 1), bytes(64 * MIB, 2));
    bob.upload(random(), "theirs", &theirs).await.unwrap();
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    ada.follow(LOBBY, 1).await.unwrap();
    let up = ada.offer(put(random(), "ours", ours.len() as u64)).await.unwrap();
    let down = ada.ask(Op::GetFile(get(1))).await.map(coming).unwrap();
    let (mut asked, mut spread) = (None, None);
    let got = both_ways(&mut ada, (up.transfer, &ours), &down, |ada, sent, got| match asked {
        None if sent > 8 * MIB && got > 8 * MIB => {
            asked = Some((ada.post(append(LOBBY, "quick")), sent, got));
        }
        Some((id, sent_then, got_then)) if spread.is_none() => {
            let answered =
                ada.items().any(|item| matches!(item, What::Answer(answer) if answer.id == id));
            if answered {
                spread = Some((sent - sent_then, got - got_then));
            }
        }
        _ => {}
    })
    .await;
    assert!(got == theirs);
    // The answer overtook data that was not in flight yet: at most the two windows passed before
    // it.
    let (up_meanwhile, down_meanwhile) = spread.expect("an answer before the end");
    assert!(
        up_meanwhile <= 16 * MIB && down_meanwhile <= 16 * MIB,
        "{} MiB went up and {} MiB came down before the answer",
        up_meanwhile / MIB,
        down_meanwhile / MIB
    );
    assert_eq!(ada.end_file(up.transfer, &ours).await.unwrap().n, 3);
    let entries = ada.entries(LOBBY, 2).await;
    assert_eq!(
        entries.iter().map(|entry| (entry.n, entry.kind)).collect::<Vec<_>>(),
        [(2, 1), (3, 3)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__concurrent_transfers_are_interleaved() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (one, two) = (bytes(6 * MIB + 1, 1), bytes(6 * MIB + 2, 2));
    let a = ada.offer(put(random(), "one", one.len() as u64)).await.unwrap().transfer;
    let b = ada.offer(put(random(), "two", two.len() as u64)).await.unwrap().transfer;
    assert_ne!(a, b);
    for (at, end) in (0..6).map(|n| (n * MIB, (n + 1) * MIB)) {
        ada.send_part(a, &one, at, end).await;
        ada.send_part(b, &two, at, end).await;
    }
    ada.send_part(a, &one, 6 * MIB, one.len()).await;
    ada.send_part(b, &two, 6 * MIB, two.len()).await;
    let ends = [ada.post_end(a, &one), ada.post_end(b, &two)];
    let mut numbers = Vec::new();
    for end in ends {
        numbers.push(ack(ada.answer(end).await).n);
    }
    let ids: Vec<_> = numbers.iter().map(|n| ada.post(Op::GetFile(get(*n)))).collect();
    let mut comings = Vec::new();
    for id in ids {
        comings.push(coming(ada.answer(id).await));
    }
    // Neither waits for the end of the other.
    let both = |ada: &RawClient| {
        comings.iter().all(|c| ada.bulk.iter().any(|(transfer, ..)| *transfer == c.transfer))
    };
    while !both(&ada) {
        soon("both", ada.pump()).await.unwrap();
    }
    let first = |transfer| ada.bulk.iter().filter(|(t, ..)| *t == transfer).count();
    let frames = comings.iter().map(|c| first(c.transfer)).max().unwrap();
    assert!(frames < 40, "{frames} frames of one before the first of the other");
    for (coming, data) in comings.iter().zip([&one, &two]) {
        let mut got = Vec::new();
        ada.receive(coming, &mut got).await;
        assert!(got == *data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download__unacknowledged_is_bounded_and_appends_continue() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let data = bytes(20 * MIB, 1);
    ada.upload(random(), "x", &data).await.unwrap();
    let coming = ada.ask(Op::GetFile(get(1))).await.map(coming).unwrap();
    let came = |ada: &RawClient| ada.bulk.iter().map(|(_, _, data)| data.len()).sum::<usize>();
    // The largest interval between acknowledgements.
    while came(&ada) < MIB {
        soon("the first MiB", ada.pump()).await.unwrap();
    }
    for n in 0..20 {
        ada.append(LOBBY, &n.to_string()).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(300), ada.pump()).await.is_err());
    assert!(came(&ada) < 2 * MIB, "{}", came(&ada));
    let mut got = Vec::new();
    ada.receive(&coming, &mut got).await;
    assert!(got == data);
}

#[test]
fn transfer__memory_is_bounded_with_stalled_peers() {
    alone(async {
        let host = TestServer::start().await;
        let (laptop, mut ada) = host.owner().await;
        let data = bytes(64 * MIB, 1);
        ada.upload(random(), "x", &data).await.unwrap();
        let mut stalled = Vec::new();
        let before = resident(std::process::id());
        for _ in 0..4 {
            let mut client = host.connect(laptop.credential()).await.unwrap();
            let ids: Vec<_> = (0..8).map(|_| client.post(Op::GetFile(get(1)))).collect();
            for id in ids {
                assert!(matches!(client.answer(id).await, Answered::FileComing(_)));
            }
            client.set_stalled(true);
            client.bulk.clear();
            stalled.push(client);
        }
        let mut most = 0;
        for seed in 2..6 {
            let id: [u8; 16] = random();
            let accepted = ada.offer(put(id, "y", 64 << 20)).await.unwrap();
            for part in 0..64 {
                ada.send_part(accepted.transfer, &data, part * MIB, (part + 1) * MIB).await;
                most = most.max(resident(std::process::id()).saturating_sub(before));
            }
            assert_eq!(ada.end_file(accepted.transfer, &data).await.unwrap().n, seed);
        }
        // 32 downloads of 64 MiB that no client reads, and 256 MiB of uploads in parallel: a MiB
        // and a connection's backlog for each download, and the memory of the client itself.
        assert!(most < 64 * MIB, "{} MiB", most / MIB);
        drop(stalled);
        ada.append(LOBBY, "undisturbed").await.unwrap();
    });
}
