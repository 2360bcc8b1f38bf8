//! Resource limits of a user, and how the server reports them.

use std::time::{Duration, Instant};

use crate::common::*;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::{self, Limit, RefusalReason, Role, request::Op};

/// A search request.
fn search(conversation: u64, text: &str) -> Op {
    Op::Search(proto::Search { conversation, text: text.into(), ..Default::default() })
}

fn create(name: &str) -> Op {
    Op::CreateRoom(proto::CreateRoom { name: name.to_owned(), topic: String::new() })
}

/// Waits for the acks of these requests.
async fn acks(client: &mut RawClient, ids: Vec<u64>) -> Vec<u64> {
    let mut numbers = Vec::new();
    for id in ids {
        numbers.push(ack(client.answer(id).await).n);
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search__not_delayed_by_searches_of_another_user() {
    const LINES: usize = 12;
    let host = TestServer::start_with(|config| config.limits.text_rate = 0).await;
    let (device, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    // More words with one prefix than are looked up one by one. So the search reads the later
    // entries, whose words begin with the same letters.
    let words: Vec<_> = (0..100).map(|n| format!("commonab{n:03}")).collect();
    ada.append(LOBBY, &words.join(" ")).await.unwrap();
    let text = "comet lorem ipsum dolor sit amet ".repeat(980);
    for _ in 0..15 {
        let ids: Vec<_> = (0..20).map(|_| ada.post(append(LOBBY, &text))).collect();
        acks(&mut ada, ids).await;
    }
    let room = conversation(bob.ask(create("small")).await.unwrap()).id;
    bob.append(room, "a needle").await.unwrap();
    let mut attackers = Vec::new();
    for _ in 0..LINES {
        let mut client = host.connect(device.credential()).await.unwrap();
        let ids = client.post_all((0..200).map(|_| search(LOBBY, "commonab")));
        client.push_out().await.unwrap();
        attackers.push((client, ids));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let found = bob.ask(search(room, "needle")).await.map(page).unwrap();
        assert_eq!(found.entries.len(), 1);
        slowest = slowest.max(began.elapsed());
    }
    // A slice is 20 ms; a whole search of the other user takes some hundred.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let last = attackers.iter_mut().map(|(client, ids)| (client, *ids.last().unwrap()));
    for (client, last) in last {
        let done = tokio::time::timeout(Duration::from_millis(1), client.answer(last)).await;
        assert!(done.is_err(), "the other user's searches were done before");
    }
}

#[tokio::test]
async fn search__beyond_deadline_is_busy() {
    let host = TestServer::start_with(|config| config.limits.search = Duration::ZERO).await;
    let (_, mut ada) = host.owner().await;
    ada.append(LOBBY, "some words").await.unwrap();
    let no = refused(&mut ada, search(LOBBY, "words")).await;
    assert_eq!(told(&no), (RefusalReason::Busy, Limit::SearchSeconds, 0));
    assert!(no.retry_seconds > 0);
    // Other requests are not busy.
    ada.append(LOBBY, "some more").await.unwrap();
}

#[tokio::test]
async fn limits__refusal_reports_limit_and_value() {
    let host = TestServer::start_with(|config| {
        let limits = &mut config.limits;
        limits.bounds.rooms = 2;
        limits.bounds.memberships = 4;
        limits.bounds.invites = 3;
        limits.bounds.devices = 2;
        limits.bounds.classic_keys = 1;
        limits.follows_per_session = 2;
    })
    .await;
    let mut invited = host.connect(host.owner_invite().credential()).await.unwrap();
    let device = invited.register("ada", Some("correct horse")).await.unwrap();
    let mut ada = host.connect(device.credential()).await.unwrap();
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let mut rooms = Vec::new();
    for name in ["one", "two"] {
        rooms.push(conversation(ada.ask(create(name)).await.unwrap()).id);
    }
    let no = refused(&mut ada, create("three")).await;
    assert_eq!(told(&no), (RefusalReason::Limit, Limit::RoomsPerUser, 2));
    for name in ["four", "five"] {
        bob.ask(create(name)).await.unwrap();
    }
    ada.room("four").await.unwrap();
    let join = Op::JoinRoom(proto::JoinRoom { name: "five".to_owned() });
    let no = refused(&mut ada, join).await;
    assert_eq!(told(&no), (RefusalReason::Limit, Limit::MembershipsPerUser, 4));
    let direct = Op::OpenDirect(proto::OpenDirect { user: "bob".to_owned() });
    assert_eq!(refused(&mut ada, direct).await.limit(), Limit::MembershipsPerUser);

    ada.follow(LOBBY, 0).await.unwrap();
    ada.follow(rooms[0], 0).await.unwrap();
    // Following a conversation again does not count.
    ada.follow(LOBBY, 0).await.unwrap();
    let follow = |conversation| Op::Follow(proto::Follow { conversation, after: 0 });
    let no = refused(&mut ada, follow(rooms[1])).await;
    assert_eq!(told(&no), (RefusalReason::Limit, Limit::FollowsPerSession, 2));
    ada.ask(Op::Unfollow(proto::Unfollow { conversation: LOBBY })).await.unwrap();
    ada.follow(rooms[1], 0).await.unwrap();

    for _ in 0..3 {
        ada.invite(Role::Member, "").await.unwrap();
    }
    let invite =
        || Op::MakeInvite(proto::MakeInvite { role: Role::Member.into(), ..Default::default() });
    let no = refused(&mut ada, invite()).await;
    assert_eq!(told(&no), (RefusalReason::Limit, Limit::InvitesPerUser, 3));
    let no = refused(&mut bob, invite()).await;
    assert_eq!((no.why(), no.role()), (RefusalReason::NotAllowed, Role::Admin));

    let key = |name: &str| {
        let form = proto::ClassicForm::JweLines.into();
        Op::AddClassicKey(proto::AddClassicKey {
            name: name.to_owned(),
            conversation: LOBBY,
            form,
            ..Default::default()
        })
    };
    ada.ask(key("lamp")).await.unwrap();
    let no = refused(&mut ada, key("pump")).await;
    assert_eq!(told(&no), (RefusalReason::Limit, Limit::ClassicKeysPerUser, 1));

    let mut by_password = host.connect(password("ada", "correct horse")).await.unwrap();
    by_password.register("", None).await.unwrap();
    assert_eq!(by_password.register("", None).await.err(), Some(RefusalReason::Limit));
    let topic = "x".repeat(513);
    let topic = Op::SetTopic(proto::SetTopic { conversation: LOBBY, topic });
    let no = refused(&mut ada, topic).await;
    assert_eq!(told(&no), (RefusalReason::TooLarge, Limit::TopicBytes, 512));
}

#[tokio::test]
async fn changes__rate_limit_does_not_affect_appends() {
    let host = TestServer::start_with(|config| config.limits.changes_per_minute = 3).await;
    let (_, mut ada) = host.owner().await;
    let topic = || Op::SetTopic(proto::SetTopic { conversation: LOBBY, topic: "again".to_owned() });
    for _ in 0..3 {
        ada.ask(topic()).await.unwrap();
    }
    let no = refused(&mut ada, topic()).await;
    assert_eq!(told(&no), (RefusalReason::Busy, Limit::ChangesPerMinute, 3));
    assert!((1..=21).contains(&no.retry_seconds), "{}", no.retry_seconds);
    ada.append(LOBBY, "talks").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text__rate_limit_is_per_user_and_keeps_order() {
    const EACH: usize = 24;
    let host = TestServer::start_with(|config| {
        config.limits.text_rate = 128 * 1024;
        config.limits.text_burst = 64 * 1024;
        config.limits.in_flight_bytes = 16 * 1024;
    })
    .await;
    let (device, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let mut other = host.connect(device.credential()).await.unwrap();
    let text = "x".repeat(8 * 1024);
    let began = Instant::now();
    let mut sent = Vec::new();
    for client in [&mut ada, &mut other] {
        let ids: Vec<_> = (0..EACH).map(|_| client.post(append(LOBBY, &text))).collect();
        client.push_out().await.unwrap();
        sent.push(ids);
    }
    // Another user is not slowed down.
    let before = Instant::now();
    bob.append(LOBBY, "hello").await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
    let (first, second) = (sent.remove(0), sent.remove(0));
    let (first, second) = tokio::join!(acks(&mut ada, first), acks(&mut other, second));
    let took = began.elapsed();
    // 48 texts of 8.25 KiB, minus the burst and the excess of one batch.
    assert!(took > Duration::from_millis(2000), "{took:?}");
    assert!(first.is_sorted() && second.is_sorted(), "{first:?} {second:?}");
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 2 * EACH as u64 + 1);
}

#[tokio::test]
async fn text__quota_refusal_also_refuses_later_appends() {
    let host = TestServer::start_with(|config| config.limits.text_per_day = 20_000).await;
    let (device, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let large = "x".repeat(9_000);
    for _ in 0..2 {
        ada.append(LOBBY, &large).await.unwrap();
    }
    // The second append would fit.
    let ids = [append(LOBBY, &large), append(LOBBY, "small")].map(|op| ada.post(op));
    let mut answers = Vec::new();
    for id in ids {
        match ada.answer(id).await {
            Answered::Refusal(no) => answers.push(told(&no)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers[0], (RefusalReason::Storage, Limit::TextPerDay, 20_000));
    assert_eq!(answers[1].0, RefusalReason::Storage, "{answers:?}");
    // Another session has a separate order but the same quota.
    let mut other = host.connect(device.credential()).await.unwrap();
    other.append(LOBBY, "small").await.unwrap();
    let no = refused(&mut other, append(LOBBY, &large)).await;
    assert_eq!(told(&no), (RefusalReason::Storage, Limit::TextPerDay, 20_000));
    assert!(no.retry_seconds > 0 && no.retry_seconds <= 3600);
    bob.append(LOBBY, &large).await.unwrap();
    assert_eq!(bob.read(LOBBY, 0).await.unwrap().head, 4);
}

#[tokio::test]
async fn text__quota_refunds_only_charged_bytes() {
    let host = TestServer::start_with(|config| config.limits.text_per_day = 20_000).await;
    let (device, mut ada) = host.owner().await;
    let large = "x".repeat(9_000);
    for _ in 0..2 {
        ada.append(LOBBY, &large).await.unwrap();
    }
    // Each is refused, the later ones without a quota check: they follow a failed append.
    for _ in 0..5 {
        let no = refused(&mut ada, append(LOBBY, &large)).await;
        assert_eq!(told(&no), (RefusalReason::Storage, Limit::TextPerDay, 20_000));
    }
    let mut other = host.connect(device.credential()).await.unwrap();
    let no = refused(&mut other, append(LOBBY, &large)).await;
    assert_eq!(told(&no), (RefusalReason::Storage, Limit::TextPerDay, 20_000));
    assert_eq!(other.read(LOBBY, 0).await.unwrap().head, 2);
}

#[tokio::test]
async fn text__refused_at_reserve_while_control_writes_pass() {
    let host = TestServer::start().await;
    let mut invited = host.connect(host.owner_invite().credential()).await.unwrap();
    let device = invited.register("ada", Some("correct horse")).await.unwrap();
    let mut ada = host.connect(device.credential()).await.unwrap();
    ada.append(LOBBY, "before").await.unwrap();
    drop(ada);
    let host = host.restart(|config| config.limits.text_reserve = Some(1 << 50)).await;
    let mut ada = host.connect(device.credential()).await.unwrap();
    let no = refused(&mut ada, append(LOBBY, "no room")).await;
    assert_eq!(told(&no), (RefusalReason::Storage, Limit::TextReserve, 1 << 50));
    // The entry of a file counts as text.
    assert_eq!(ada.upload(random(), "x", b"abc").await.unwrap_err(), RefusalReason::Storage);
    // Requests that control access still work.
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    assert_eq!(bob.append(LOBBY, "nor here").await, Err(RefusalReason::Storage));
    let mut by_password = host.connect(password("ada", "correct horse")).await.unwrap();
    by_password.begin("", true, false).await.unwrap();
    by_password.enrol(Some(password("ada", "battery staple")), None).await.unwrap();
    let revoke = proto::RevokeDevice { device: copy(&device.id.0) };
    by_password.ask(Op::RevokeDevice(revoke)).await.map(done).unwrap();
    assert!(host.connect(device.credential()).await.is_err());
    assert_eq!(bob.read(LOBBY, 0).await.unwrap().entries.len(), 1);
}
