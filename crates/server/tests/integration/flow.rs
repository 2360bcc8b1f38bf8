//! Flow of requests and entries: bounded, in order, fair.

use std::time::Duration;

use crate::common::*;
use prost::Message as _;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, RefusalReason, item::What, request::Op};
use twinlock_core::session::SessionConfig;

#[tokio::test]
async fn append__beyond_in_flight_limit_is_acked_in_order() {
    let host = TestServer::start_with(|config| config.limits.in_flight = 4).await;
    let (laptop, mut ada) = host.owner().await;
    assert_eq!(ada.info.max_in_flight, 4);
    let ids = ada.post_all((0..300).map(|n| append(LOBBY, &n.to_string())));
    for (id, n) in ids.into_iter().zip(1..) {
        assert_eq!(ack(ada.answer(id).await).n, n);
    }
    let host = host.restart(|config| config.limits.in_flight_bytes = 1).await;
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    let ids = ada.post_all((0..100).map(|n| append(LOBBY, &n.to_string())));
    for (id, n) in ids.into_iter().zip(301..) {
        assert_eq!(ack(ada.answer(id).await).n, n);
    }
}

#[tokio::test]
async fn append__later_ones_fail_after_a_failed_append() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (one, two) = (append(LOBBY, "one"), append(LOBBY, "two"));
    // Nothing can be written, as on a full disk.
    let _caught = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap();
    let limit = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), ..limit }).unwrap();
    assert_eq!(ada.ask(one.clone()).await, Err(RefusalReason::Storage));
    // For the server, this was sent before the client received the refusal.
    setrlimit(Resource::Fsize, limit).unwrap();
    assert_eq!(ada.ask(two.clone()).await, Err(RefusalReason::Storage));
    // Other sessions are not affected.
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    assert_eq!(bob.append(LOBBY, "beside").await.unwrap().n, 1);
    // Resend both in order after the delay that the server requested.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(ada.ask(one).await.map(ack).unwrap().n, 2);
    assert_eq!(ada.ask(two).await.map(ack).unwrap().n, 3);
}

#[tokio::test]
async fn frame__malformed_or_oversized_closes_session() {
    let host = TestServer::start().await;
    let (laptop, _ada) = host.owner().await;
    let empty =
        |n| proto::ToServer { requests: vec![proto::Request::default(); n], ..Default::default() };
    for body in [empty(2049).encode_to_vec(), vec![0xff; 40], vec![0x0a, 0x40]] {
        let mut client = host.connect(laptop.credential()).await.unwrap();
        client.connection.send_app(&body).unwrap();
        assert_eq!(client.end().await.unwrap(), CloseCode::Protocol);
    }
    let mut bulk = host.connect(laptop.credential()).await.unwrap();
    bulk.connection.session_mut().send_bulk(1, 0, b"nothing was offered").unwrap();
    assert_eq!(bulk.end().await.unwrap(), CloseCode::Protocol);
}

#[tokio::test]
async fn rekey__frequent_loses_no_entry_and_overdue_closes() {
    let host = TestServer::start_with(|config| {
        config.timing.rekey_apart = Duration::ZERO;
        config.timing.rekey_overdue_frames = 50;
    })
    .await;
    let (laptop, mut ada) = host.owner().await;
    let often = |config: &mut SessionConfig| {
        config.timing.rekey_pause = Duration::ZERO;
        config.timing.rekey_after_frames = 10;
    };
    let mut often = host.connect_with(laptop.credential(), b"often", often).await.unwrap();
    often.follow(LOBBY, 0).await.unwrap();
    for n in 1..=200 {
        assert_eq!(often.append(LOBBY, &n.to_string()).await.unwrap().n, n);
    }
    let entries = often.entries(LOBBY, 200).await;
    assert!(entries.iter().map(|entry| entry.n).eq(1..=200));
    let rekeys = often.connection.session().facts().rekeys;
    assert!(rekeys >= 10, "{rekeys}");

    let ids: Vec<_> = (0..60).map(|n| ada.post(append(LOBBY, &n.to_string()))).collect();
    assert_eq!(ids.len(), 60);
    assert_eq!(ada.end().await.unwrap(), CloseCode::RekeyOverdue);
}

#[tokio::test(flavor = "multi_thread")]
async fn follow__requests_are_answered_during_catch_up() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let (text, count) = ("x".repeat(1000), 20_000);
    for some in (0..count).collect::<Vec<_>>().chunks(50) {
        let ids = ada.post_all(some.iter().map(|_| append(LOBBY, &text)));
        for id in ids {
            ack(ada.answer(id).await);
        }
    }
    bob.follow(LOBBY, 0).await.unwrap();
    // While it catches up.
    bob.pick("entries", |item| matches!(item, What::Entries(_)).then_some(())).await;
    bob.ask(Op::ListPeople(proto::ListPeople::default())).await.unwrap();
    let before: usize = bob
        .items()
        .map(|item| match item {
            What::Entries(some) => some.entries.len(),
            _ => 0,
        })
        .sum();
    assert!(before < count / 2, "{before} of {count} entries came before the answer");
}

#[tokio::test]
async fn follow__busy_conversation_does_not_starve_others() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let text = "x".repeat(32 * 1024);
    for _ in 0..40 {
        let ids: Vec<_> = (0..8).map(|_| ada.post(append(LOBBY, &text))).collect();
        for id in ids {
            ack(ada.answer(id).await);
        }
    }
    let alone = Op::OpenDirect(proto::OpenDirect { user: "bob".to_owned() });
    let alone = ada.ask(alone).await.map(conversation).unwrap();
    ada.append(alone.id, "are you there?").await.unwrap();
    let follow = |conversation| Op::Follow(proto::Follow { conversation, after: 0 });
    let in_lobby = |bob: &RawClient| -> usize {
        bob.items()
            .map(|item| match item {
                What::Entries(entries) if entries.conversation == LOBBY => entries.entries.len(),
                _ => 0,
            })
            .sum()
    };
    let follows = bob.post_all([follow(LOBBY), follow(alone.id)]);
    // Until then the server looks up the second follow and serves the first.
    bob.answer(follows[1]).await;
    let begun = in_lobby(&bob);
    assert_eq!(texts(&bob.entries(alone.id, 1).await), ["are you there?"]);
    let before = in_lobby(&bob) - begun;
    assert!(begun < 320 && before < 20, "{begun} and {before} of 320 came before it");
}
