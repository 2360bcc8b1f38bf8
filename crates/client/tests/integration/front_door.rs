//! The front door of the SDK: whole conversations against a real server.

use std::time::Duration;

use tokio::time::timeout;
use twinlock_client::outbox::Ack;
use twinlock_client::{Client, ClientError, Conversation, Message, Messages};
use twinlock_core::id::{Link, Salt};

use crate::common::{LONG, World};

async fn next(messages: &mut Messages) -> Message {
    timeout(LONG, messages.next()).await.unwrap().unwrap()
}

async fn say(conversation: &Conversation, text: &str) -> u64 {
    let sent = conversation.send(text).await.unwrap();
    timeout(LONG, sent.recorded()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn front_door__messages_resume_after_the_handled_one() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let link = {
        let (client, _events) = ada.start(crate::common::quick());
        let link = ada.invite(&client).await;
        client.close().await;
        link
    };
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
