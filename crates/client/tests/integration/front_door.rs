//! The front door of the SDK: whole conversations against a real server.

use std::time::Duration;

use tokio::time::timeout;
use twinlock_client::outbox::Ack;
use twinlock_client::transfer::TransferError;
use twinlock_client::{
    Client, ClientError, ConnectionEvent, Conversation, InboxEvent, InboxOptions, Message, Messages,
};
use twinlock_core::id::{Link, Salt};

use crate::common::{LONG, Person, World};

async fn next(messages: &mut Messages) -> Message {
    timeout(LONG, messages.next()).await.unwrap().unwrap()
}

/// An invite link that a user makes.
async fn link_by(person: &Person) -> String {
    let (client, _events) = person.start(crate::common::quick());
    let link = person.invite(&client).await;
    client.close().await;
    link
}

async fn say(conversation: &Conversation, text: &str) -> u64 {
    let sent = conversation.send(text).await.unwrap();
    timeout(LONG, sent.recorded()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__messages_resume_after_the_handled_one() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let link = link_by(&ada).await;
    let ada = Client::open_in(&ada.home, "default").await.unwrap();
    let lobby = ada.conversation("lobby").await.unwrap();

    let home = world.home("bob");
    let bob = Client::join_in(&home, "default", &link, "bob").await.unwrap();
    let mut messages = bob.conversation("lobby").await.unwrap().messages().resume("bot");
    // The first call stores where the bot began; nothing has been said yet.
    let nothing = timeout(Duration::from_millis(500), messages.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");

    let first = say(&lobby, "one").await;
    let second = say(&lobby, "two").await;
    assert!(second > first);
    let message = next(&mut messages).await;
    assert_eq!((message.number(), message.text(), message.sender()), (first, "one", Some("ada")));
    assert!(!message.is_own());
    message.handled().await.unwrap();
    // Received, and not handled.
    assert_eq!(next(&mut messages).await.number(), second);
    drop(messages);
    bob.close().await;

    let third = say(&lobby, "three").await;
    let bob = Client::open_in(&home, "default").await.unwrap();
    let mut messages = bob.conversation("lobby").await.unwrap().messages().resume("bot");
    for expected in [second, third] {
        let message = next(&mut messages).await;
        assert_eq!(message.number(), expected);
        message.handled().await.unwrap();
    }

    // The other direction, in a direct conversation.
    let mut to_ada = ada.conversation("@bob").await.unwrap().messages();
    let direct = bob.conversation("@ada").await.unwrap();
    let (received, recorded) = tokio::join!(next(&mut to_ada), say(&direct, "thanks"));
    assert_eq!((received.text(), received.number()), ("thanks", recorded));
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__unknown_target_and_profile_are_named() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let missing = client.conversation("nowhere").await.unwrap_err();
    assert_eq!(missing, ClientError::NoTarget("nowhere".to_owned()));
    client.close().await;
    let missing = Client::open_in(&ada.home, "other").await.unwrap_err();
    assert!(missing.to_string().contains("'other'"), "{missing}");

    // A client that gives its events to its caller has none for conversations.
    let (client, _events) = ada.start(crate::common::quick());
    assert_eq!(client.conversation("lobby").await.unwrap_err(), ClientError::EventsTaken);
}

/// Another process of the profile may send a message, or remove it from the outbox. The program
/// that waits gets no event for either.
#[tokio::test(flavor = "multi_thread")]
async fn front_door__result_of_another_process_is_found() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let lobby = client.conversation("lobby").await.unwrap();
    world.stop().await;
    let outbox = ada.state().outbox();
    let sent = lobby.send("recorded by another").await.unwrap();
    let id = outbox.pending(1).unwrap()[0].message_id;
    let (time_ms, salt, link) = (1, Some(Salt([1; 16])), Link([2; 32]));
    let ack = Ack { conversation: 1, n: 77, time_ms, salt, link };
    let (recorded, ()) = tokio::join!(timeout(LONG, sent.recorded()), async {
        outbox.mark_recorded(&id, &ack).unwrap();
    });
    assert_eq!(recorded.unwrap(), Ok(77));

    let sent = lobby.send("removed by another").await.unwrap();
    let id = outbox.pending(1).unwrap()[0].message_id;
    let (recorded, ()) = tokio::join!(timeout(LONG, sent.recorded()), async {
        assert!(outbox.discard(&id).unwrap());
    });
    assert_eq!(recorded.unwrap(), Err(ClientError::Discarded));
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__leaving_ends_the_messages() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let room = client.create_room(&crate::common::name("ops"), "").await.unwrap();
    let ops = client.conversation("ops").await.unwrap();
    let mut messages = ops.messages();
    say(&ops, "one").await;
    assert_eq!(next(&mut messages).await.text(), "one");
    let (other, _events) = ada.start(crate::common::quick());
    other.leave_room(room.id).await.unwrap();
    let left = timeout(LONG, messages.next()).await.unwrap();
    assert_eq!(left.unwrap_err(), ClientError::Left);
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__message_sent_without_server_is_recorded() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    world.stop().await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let mut connection = client.connection_events().unwrap();
    let down = timeout(LONG, connection.next()).await.unwrap();
    assert!(matches!(down, Some(ConnectionEvent::Down { .. })), "{down:?}");
    let sent = client.send("lobby", "later").await.unwrap();
    world.start().await;
    client.reconnect_now().await.unwrap();
    assert_eq!(timeout(LONG, sent.recorded()).await.unwrap(), Ok(1));
    loop {
        match timeout(LONG, connection.next()).await.unwrap() {
            Some(ConnectionEvent::Up(_)) => break,
            Some(ConnectionEvent::Down { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    client.close().await;
    let ended = timeout(LONG, connection.next()).await.unwrap();
    assert!(matches!(ended, Some(ConnectionEvent::Ended(None))), "{ended:?}");
    assert!(connection.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__file_arrives_whole_and_replaces_nothing() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let lobby = client.conversation("lobby").await.unwrap();
    let mut messages = lobby.messages();
    let source = world.dir.path().join("report.txt");
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&source, &content).unwrap();
    let sent = lobby.send_file(&source).await.unwrap();
    assert_eq!(timeout(LONG, sent.recorded()).await.unwrap().unwrap(), 1);
    let message = next(&mut messages).await;
    let file = message.file().unwrap();
    assert_eq!((file.name.expose_raw(), file.size), ("report.txt", content.len() as u64));
    let into = world.dir.path().join("into");
    std::fs::create_dir(&into).unwrap();
    let path = timeout(LONG, message.save_file(&into)).await.unwrap().unwrap();
    assert_eq!(path, into.join("report.txt"));
    assert_eq!(std::fs::read(&path).unwrap(), content);
    let again = timeout(LONG, message.save_file(&into)).await.unwrap().unwrap_err();
    assert_eq!(again, TransferError::Exists(path));

    say(&lobby, "no file").await;
    let text = next(&mut messages).await.save_file(&into).await.unwrap_err();
    assert_eq!(text, TransferError::NoFile);
    let missing = lobby.send_file(world.dir.path().join("missing")).await.unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__second_reader_takes_the_conversation_over() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let lobby = client.conversation("lobby").await.unwrap();
    let (mut first, mut second) = (lobby.messages(), lobby.messages());
    say(&lobby, "one").await;
    assert_eq!(next(&mut first).await.text(), "one");
    assert_eq!(next(&mut second).await.text(), "one");
    let lost = timeout(LONG, first.next()).await.unwrap();
    assert_eq!(lost.unwrap_err(), ClientError::Superseded);
    say(&lobby, "two").await;
    assert_eq!(next(&mut second).await.text(), "two");
}

/// More messages than wait in a subscription: its reader gets each of them once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn front_door__slow_reader_gets_every_message_once() {
    const MESSAGES: u64 = 9_000;
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let lobby = client.conversation("lobby").await.unwrap();
    let mut messages = lobby.messages();
    let mut deliveries = client.deliveries().unwrap();
    let texts = (1..=MESSAGES).map(|n| n.to_string()).collect();
    deliveries.send("lobby", texts).await.unwrap();
    // The reader begins, and takes nothing until all are recorded.
    assert_eq!(next(&mut messages).await.text(), "1");
    while deliveries.pending_count() > 0 {
        timeout(LONG, deliveries.next()).await.unwrap().unwrap();
    }
    for n in 2..=MESSAGES {
        let message = next(&mut messages).await;
        assert_eq!((message.number(), message.text()), (n, n.to_string().as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__inbox_of_everything_finds_new_conversations() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let link = link_by(&ada).await;
    let ada = Client::open_in(&ada.home, "default").await.unwrap();
    let bob = Client::join_in(&world.home("bob"), "default", &link, "bob").await.unwrap();
    let options = || InboxOptions { position: Some("sdk:all".to_owned()), ..Default::default() };
    let mut inbox = ada.inbox(options()).unwrap();
    assert!(!inbox.is_caught_up());
    while !inbox.is_caught_up() {
        timeout(LONG, inbox.next()).await.unwrap().unwrap();
    }
    // The conversation did not exist when the inbox began.
    let to_ada = bob.conversation("@ada").await.unwrap();
    let (recorded, ()) = tokio::join!(say(&to_ada, "hello"), async {
        let (conversation, target, n) = loop {
            if let InboxEvent::Entries { conversation, target, entries } =
                timeout(LONG, inbox.next()).await.unwrap().unwrap()
            {
                break (conversation, target, entries[0].n);
            }
        };
        assert_eq!((target.as_str(), n), ("@bob", 1));
        inbox.handled(conversation, n).await.unwrap();
    });
    assert_eq!(recorded, 1);
    // Another program has the conversation to itself, also after a change of it.
    let mut messages = ada.conversation("@bob").await.unwrap().messages();
    say(&to_ada, "again").await;
    assert_eq!(next(&mut messages).await.text(), "again");
    let lost = loop {
        match timeout(LONG, inbox.next()).await.unwrap().unwrap() {
            InboxEvent::Superseded { target } => break target,
            InboxEvent::Entries { entries, .. } => assert_eq!(entries[0].n, 2),
            _ => {}
        }
    };
    assert_eq!(lost, "@bob");
    let direct = ada.conversation("@bob").await.unwrap().info().id;
    ada.mark_read(direct, 2).await.unwrap();
    say(&to_ada, "to the program").await;
    say(&bob.conversation("lobby").await.unwrap(), "to the inbox").await;
    assert_eq!(next(&mut messages).await.text(), "to the program");
    let target = loop {
        if let InboxEvent::Entries { target, .. } =
            timeout(LONG, inbox.next()).await.unwrap().unwrap()
        {
            break target;
        }
    };
    assert_eq!(target, "lobby");
    drop((inbox, messages));
    // The next inbox continues after what was handled.
    let mut inbox = ada.inbox(options()).unwrap();
    let mut from_bob = Vec::new();
    while from_bob.len() < 2 {
        if let InboxEvent::Entries { target, entries, .. } =
            timeout(LONG, inbox.next()).await.unwrap().unwrap()
            && target == "@bob"
        {
            from_bob.extend(entries.iter().map(|entry| entry.n));
        }
    }
    assert_eq!(from_bob, [2, 3]);
}

/// A user leaves a room and joins it again before the program looks.
#[tokio::test(flavor = "multi_thread")]
async fn front_door__inbox_reports_leaving_and_follows_again() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let client = Client::open_in(&ada.home, "default").await.unwrap();
    let ops = crate::common::name("ops");
    let room = client.create_room(&ops, "").await.unwrap();
    let mut inbox = client.inbox(InboxOptions::default()).unwrap();
    while !inbox.is_caught_up() {
        timeout(LONG, inbox.next()).await.unwrap().unwrap();
    }
    client.leave_room(room.id).await.unwrap();
    client.join_room(&ops).await.unwrap();
    let conversation = client.conversation("ops").await.unwrap();
    let said = say(&conversation, "back").await;
    let mut has_left = false;
    loop {
        match timeout(LONG, inbox.next()).await.unwrap().unwrap() {
            InboxEvent::Left { target } => {
                assert_eq!(target, "ops");
                has_left = true;
            }
            // The entry about the leaving may arrive before the event.
            InboxEvent::Entries { target, entries, .. }
                if target == "ops" && entries.iter().any(|entry| entry.n == said) =>
            {
                assert!(has_left);
                break;
            }
            _ => {}
        }
    }
}
