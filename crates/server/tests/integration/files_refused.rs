//! Peers that violate the transfer protocol, and requests that the server refuses.

use crate::common::files::*;
use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, Limit, RefusalReason, request::Op};
use twinlock_testing::bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload__invalid_metadata_is_refused_at_offer() {
    let host = TestServer::start().await;
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
    let host = TestServer::start().await;
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
    ada.connection.session_mut().send_bulk(3, 0, b"x").unwrap();
    assert_eq!(ada.end().await.unwrap(), CloseCode::Protocol);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfer__wrong_offset_or_direction_closes_session() {
    let host = TestServer::start().await;
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
            let session = ada.connection.session_mut();
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
            0 => ada.connection.session_mut().send_bulk(coming.transfer, 0, b"x").unwrap(),
            1 => ada.connection.session_mut().send_bulk(accepted.transfer + 64, 0, b"x").unwrap(),
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
    let host = TestServer::start().await;
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
async fn transfer__ninth_is_busy_until_one_ends() {
    let host = TestServer::start().await;
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
