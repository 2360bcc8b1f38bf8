//! What users do on a server: register, log in, send, follow, read, search, see presence.

use crate::common::*;
use twinlock_core::chain::link_0;
use twinlock_core::id::ServerKey;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::{self, RefusalReason, Role, item::What, request::Op};
use twinlock_core::session::Binding;
use twinlock_testing::links::verify_sent;

#[tokio::test]
async fn login__owner_by_invite_then_device_and_password() {
    let host = TestServer::start().await;
    let mut session = host.connect(host.owner_invite().credential()).await.unwrap();
    assert_eq!(session.info.role(), Role::None);
    assert_eq!(session.info.invite.as_ref().unwrap().role(), Role::Owner);
    let device = session.register("ada", Some("correct horse")).await.unwrap();

    let client = host.connect(device.credential()).await.unwrap();
    assert_eq!((client.info.user.as_str(), client.info.role()), ("ada", Role::Owner));
    assert_eq!(client.info.device, device.id.0.as_slice());
    assert_eq!(client.info.tls_pins, [host.pin().0.as_slice()]);
    assert!(client.info.password);
    assert_eq!(client.binding, Binding::Bound);

    // A password session enrols another device and changes the password.
    let mut by_password = host.connect(password("ada", "correct horse")).await.unwrap();
    assert_eq!(by_password.info.user, "ada");
    let phone = by_password.register("", None).await.unwrap();
    assert_eq!(host.connect(phone.credential()).await.unwrap().info.user, "ada");
    by_password.begin("", true, false).await.unwrap();
    by_password.enrol(Some(password("ada", "battery staple")), None).await.unwrap();
    let old = host.connect(password("ada", "correct horse")).await;
    assert!(old.is_err());
    assert!(host.connect(password("ada", "battery staple")).await.is_ok());
}

#[tokio::test]
async fn append__acked_entries_are_read_followed_and_found() {
    let host = TestServer::start().await;
    let (device, mut ada) = host.owner().await;
    let lobby = ada.conversations().await;
    assert_eq!((lobby[0].name.as_str(), lobby[0].id, lobby.len()), ("lobby", LOBBY, 1));
    let start = link_0(&ServerKey::from_slice(&lobby[0].server_key).unwrap(), LOBBY);

    let following = ada.follow(LOBBY, 0).await.unwrap();
    assert_eq!(following.link_after, start.0.as_slice());
    let mut acks = Vec::new();
    for n in 1..=5u64 {
        let ack = ada.append(LOBBY, &format!("line {n}")).await.unwrap();
        assert_eq!((ack.conversation, ack.n), (LOBBY, n));
        acks.push(ack);
    }
    let entries = ada.entries(LOBBY, 5).await;
    assert_eq!(texts(&entries), ["line 1", "line 2", "line 3", "line 4", "line 5"]);
    assert_eq!(entries[0].sender, format!("ada/{}", &device.id.to_string()[..8]).as_bytes());
    assert_eq!(verify_sent(LOBBY, (0, &following.link_after), &entries).0.as_slice(), acks[4].link);

    let page = ada.read(LOBBY, 2).await.unwrap();
    assert_eq!(page.link_after, acks[1].link);
    assert_eq!((page.head, page.entries.as_slice()), (5, &entries[2..]));
    let search = proto::Search { conversation: LOBBY, text: "lin 4".into(), ..Default::default() };
    assert_eq!(ada.ask(Op::Search(search)).await.map(crate::common::page).unwrap().entries, []);
    let search = proto::Search { conversation: LOBBY, text: "4 lin".into(), ..Default::default() };
    let found = ada.ask(Op::Search(search)).await.map(crate::common::page).unwrap();
    assert_eq!(found.entries, entries[3..4]);
    let links = proto::Read { conversation: LOBBY, links: true, ..Default::default() };
    let links = ada.ask(Op::Read(links)).await.map(crate::common::page).unwrap();
    let links: Vec<_> = links.entries.into_iter().map(|entry| entry.link).collect();
    assert!(links.iter().eq(acks.iter().map(|ack| &ack.link)));
    assert_eq!(ada.read(LOBBY, 6).await, Err(RefusalReason::Ahead));
    assert_eq!(ada.follow(LOBBY, 6).await.map(drop), Err(RefusalReason::Ahead));
    assert_eq!(ada.read(99, 0).await, Err(RefusalReason::NotFound));
}

#[tokio::test]
async fn append__retry_with_same_id_is_recorded_once() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let id = random();
    let ids = ada.post_all([append_as(id, LOBBY, "once"), append_as(id, LOBBY, "once")]);
    let first = ack(ada.answer(ids[0]).await);
    assert_eq!(ack(ada.answer(ids[1]).await), first);
    assert_eq!(ack(ada.ask(append_as(id, LOBBY, "once")).await.unwrap()), first);
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 1);
}

#[tokio::test]
async fn requests__read_sees_earlier_appends() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let read = || Op::Read(proto::Read { conversation: LOBBY, ..proto::Read::default() });
    for round in 1..=20u64 {
        let ids = ada.post_all([append(LOBBY, "a"), read(), append(LOBBY, "b"), read()]);
        let heads = [page(ada.answer(ids[1]).await).head, page(ada.answer(ids[3]).await).head];
        assert_eq!(heads, [2 * round - 1, 2 * round]);
    }
}

#[tokio::test]
async fn conversation__lobby_room_and_direct_between_two_users() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    assert_eq!(bob.info.role(), Role::Member);
    bob.follow(LOBBY, 0).await.unwrap();
    ada.append(LOBBY, "hello").await.unwrap();
    assert_eq!(texts(&bob.entries(LOBBY, 1).await), ["hello"]);

    // A room is invisible to users who are not members.
    let create = proto::CreateRoom { name: "ops".into(), topic: "machines".into() };
    let ops = ada.ask(Op::CreateRoom(create.clone())).await.map(conversation).unwrap();
    assert_eq!(ada.ask(Op::CreateRoom(create)).await, Err(RefusalReason::NameTaken));
    assert_eq!(bob.append(ops.id, "let me in").await, Err(RefusalReason::NotFound));
    assert_eq!(bob.read(ops.id, 0).await, Err(RefusalReason::NotFound));
    assert_eq!(bob.follow(ops.id, 0).await.map(drop), Err(RefusalReason::NotFound));
    let find = || Op::FindRoom(proto::FindRoom { name: "ops".into() });
    assert_eq!(bob.ask(find()).await, Err(RefusalReason::NotFound));
    let joinable = proto::ListConversations { joinable: true, after: 0 };
    let joinable = bob.ask(Op::ListConversations(joinable)).await.unwrap();
    let Answered::Conversations(joinable) = joinable else { panic!("{joinable:?}") };
    assert_eq!(joinable.conversations[0].name, "ops");
    assert!(!joinable.conversations[0].joined);

    let joined = bob.room("ops").await.unwrap();
    assert_eq!((joined.id, joined.members, joined.topic.as_str()), (ops.id, 2, "machines"));
    assert_eq!(bob.ask(find()).await.map(conversation).unwrap().id, ops.id);
    bob.follow(ops.id, 0).await.unwrap();
    ada.append(ops.id, "welcome").await.unwrap();
    let entries = bob.entries(ops.id, 2).await;
    assert_eq!(texts(&entries), ["bob joined", "welcome"]);
    assert_eq!((entries[0].kind, entries[0].sender.len()), (2, 0));
    // Joining again is neither an error nor an entry.
    assert_eq!(bob.room("ops").await.unwrap().head, 2);
    assert_eq!(bob.room("nowhere").await, Err(RefusalReason::NotFound));
    assert_eq!(bob.room("#ops").await, Err(RefusalReason::NameBad));

    let topic = proto::SetTopic { conversation: ops.id, topic: "quiet".into() };
    assert_eq!(bob.ask(Op::SetTopic(topic)).await.map(conversation).unwrap().topic, "quiet");
    let changed = |item: &What| match item {
        What::Conversation(c) if c.topic == "quiet" => Some(c.clone()),
        _ => None,
    };
    assert_eq!(ada.pick("new topic", changed).await.id, ops.id);
    let members = proto::ListMembers { conversation: ops.id, after: String::new() };
    let members = ada.ask(Op::ListMembers(members)).await.unwrap();
    let Answered::Members(members) = members else { panic!("{members:?}") };
    assert_eq!(members.users, ["ada", "bob"]);

    bob.ask(Op::LeaveRoom(proto::LeaveRoom { conversation: ops.id })).await.map(done).unwrap();
    let left = |item: &What| match item {
        What::Conversation(c) if c.id == ops.id && !c.joined => Some(()),
        _ => None,
    };
    bob.pick("leaving", left).await;
    assert_eq!(bob.read(ops.id, 0).await, Err(RefusalReason::NotFound));
    let lobby = proto::LeaveRoom { conversation: LOBBY };
    assert_eq!(bob.ask(Op::LeaveRoom(lobby)).await, Err(RefusalReason::NotAllowed));

    let direct = |user: &str| Op::OpenDirect(proto::OpenDirect { user: user.to_owned() });
    let alone = ada.ask(direct("bob")).await.map(conversation).unwrap();
    assert_eq!(bob.ask(direct("ada")).await.map(conversation).unwrap().id, alone.id);
    assert_eq!(ada.ask(direct("nobody")).await, Err(RefusalReason::NotFound));
    let (_, mut eve) = host.member(&mut ada, "eve").await;
    assert_eq!(eve.read(alone.id, 0).await, Err(RefusalReason::NotFound));
    ada.append(alone.id, "only you").await.unwrap();
    assert_eq!(texts(&bob.read(alone.id, 0).await.unwrap().entries), ["only you"]);
}

#[tokio::test]
async fn presence__online_state_and_read_marker_are_reported() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (bobs, bob) = host.member(&mut ada, "bob").await;
    bob.bye().await;
    let online = |user: &'static str, online: bool| {
        move |item: &What| match item {
            What::Presence(p) if p.user == user && p.online == online => Some(()),
            _ => None,
        }
    };
    let people = Op::ListPeople(proto::ListPeople { watch: true, after: String::new() });
    let Answered::People(people) = ada.ask(people).await.unwrap() else { panic!() };
    let names: Vec<_> = people.people.iter().map(|p| (p.user.as_str(), p.role())).collect();
    assert_eq!(names, [("ada", Role::Owner), ("bob", Role::Member)]);
    assert!(people.people[0].online);
    let mut bob = host.connect(bobs.credential()).await.unwrap();
    ada.pick("bob coming", online("bob", true)).await;

    for _ in 0..3 {
        ada.append(LOBBY, "x").await.unwrap();
    }
    let mut other = host.connect(bobs.credential()).await.unwrap();
    let mark = |n| Op::Mark(proto::Mark { conversation: LOBBY, n });
    bob.ask(mark(2)).await.map(done).unwrap();
    let read_to = |n| {
        move |item: &What| match item {
            What::Conversation(c) if c.id == LOBBY && c.read == n => Some(()),
            _ => None,
        }
    };
    other.pick("read marker", read_to(2)).await;
    bob.ask(mark(1)).await.map(done).unwrap();
    bob.ask(mark(99)).await.map(done).unwrap();
    other.pick("read marker at the head", read_to(3)).await;
    assert_eq!(bob.conversations().await[0].read, 3);
    assert_eq!(ada.conversations().await[0].read, 0);

    bob.bye().await;
    // One session of bob is left.
    let Ok(Answered::People(people)) = ada.ask(Op::ListPeople(proto::ListPeople::default())).await
    else {
        panic!()
    };
    assert!(people.people[1].online);
    other.bye().await;
    ada.pick("bob going", online("bob", false)).await;
}

#[tokio::test]
async fn append__invalid_text_is_refused_and_session_stays_open() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let raw = |message_id: &[u8], body: &[u8]| {
        Op::Append(proto::Append {
            conversation: LOBBY,
            message_id: copy(message_id),
            body: copy(body),
        })
    };
    let id = [1; 16];
    for (op, why) in [
        (raw(&id[..15], b"x"), RefusalReason::Malformed),
        (raw(&id, b""), RefusalReason::Malformed),
        (raw(&id, b"\xff"), RefusalReason::Malformed),
        (raw(&id, &vec![b'x'; 32 * 1024 + 1]), RefusalReason::TooLarge),
    ] {
        assert_eq!(ada.ask(op).await, Err(why));
    }
    let long = "x".repeat(32 * 1024);
    assert_eq!(ada.append(LOBBY, &long).await.unwrap().n, 1);
    let topic = proto::SetTopic { conversation: LOBBY, topic: "x".repeat(513) };
    assert_eq!(ada.ask(Op::SetTopic(topic)).await, Err(RefusalReason::TooLarge));
    // A request that this server does not know, and one without an id.
    let unknown = [0x0a, 0x05, 0x08, 0x63, 0x82, 0x32, 0x00];
    ada.connection.send_app(&unknown).unwrap();
    let Answered::Refusal(refusal) = ada.answer(0x63).await else { panic!() };
    assert_eq!(refusal.why(), RefusalReason::Unsupported);
}

#[tokio::test]
async fn conversation__long_list_is_paginated() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    for n in 0..100 {
        let room = proto::CreateRoom { name: format!("{n:0>32}"), topic: "t".repeat(512) };
        ada.ask(Op::CreateRoom(room)).await.unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let after = seen.last().copied().unwrap_or(0);
        let list = proto::ListConversations { joinable: false, after };
        let Ok(Answered::Conversations(list)) = ada.ask(Op::ListConversations(list)).await else {
            panic!()
        };
        seen.extend(list.conversations.iter().map(|c| c.id));
        if !list.more {
            break;
        }
    }
    assert_eq!(seen, (1..=101).collect::<Vec<_>>());
}

#[tokio::test]
async fn invite__permitted_by_role() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    assert_eq!(bob.invite(Role::Member, "").await.map(drop), Err(RefusalReason::NotAllowed));
    let admin = ada.invite(Role::Admin, "carol").await.unwrap();
    let carol = host.join(&admin, "carol").await;
    let mut carol = host.connect(carol.credential()).await.unwrap();
    assert_eq!(carol.info.role(), Role::Admin);
    assert_eq!(carol.invite(Role::Owner, "").await.map(drop), Err(RefusalReason::NotAllowed));
    assert!(carol.invite(Role::Member, "").await.is_ok());
    assert_eq!(carol.invite(Role::Member, "bob").await.map(drop), Err(RefusalReason::NameTaken));
    assert_eq!(carol.invite(Role::Member, "Bob!").await.map(drop), Err(RefusalReason::NameBad));
}
