//! Changes of the record that a client must detect, and normal events that it must not report.

use crate::common::{World, name, new_user, next, quick, until};
use twinlock_client::Client;
use twinlock_client::audit;
use twinlock_client::enrol;
use twinlock_client::error::{ClientError, Fault};
use twinlock_client::model::{Event, Options};
use twinlock_client::profile::ProfileError;
use twinlock_core::id::Link;
use twinlock_core::invite::InviteLink;
use twinlock_testing::copy_dir;
use twinlock_testing::messages::LOBBY;
use twinlock_testing::record_files::{
    BODY_AT, LENGTH_AT, LINK_AT, LoggedEntry, SENDER_AT, TIME_AT,
};
use twinlock_transport::OsEntropy;

/// The links of the lobby's entries.
async fn links(client: &Client) -> Vec<Link> {
    let page = client.read(LOBBY, 0, 512).await.unwrap();
    page.entries.iter().map(|entry| entry.link.unwrap()).collect()
}

fn asking() -> Options {
    Options { send: false, ..quick() }
}

/// Changes an entry in the record's file, from its time on.
fn edit(world: &World, link: Link, change: impl FnOnce(&mut [u8])) {
    LoggedEntry::find(&world.data(), &link).change(change);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence__reading_during_own_sends_raises_no_alarm() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let (sender, mut sent) = ada.start(quick());
    let (reader, _events) = ada.start(asking());
    let mut told = 0;
    for round in 0..60 {
        let text = round.to_string();
        let outbox = ada.state().outbox();
        let lines = (0..20).map(|_| ("lobby", text.as_bytes()));
        outbox.enqueue_many(lines, 1, &mut OsEntropy).unwrap();
        sender.notify_enqueued().await.unwrap();
        // The acks are not awaited: they arrive during this read.
        let page = reader.read(LOBBY, 0, 512).await.unwrap();
        assert!(page.head >= page.entries.len() as u64);
        // A follow also starts during the appends.
        let (follower, mut events) = ada.start(asking());
        follower.follow(LOBBY, page.head).await.unwrap();
        until(&mut events, |event| matches!(event, Event::CaughtUp { .. })).await;
        follower.close().await;
        while let Ok(event) = sent.try_recv() {
            told += usize::from(matches!(event, Event::Recorded { .. }));
        }
    }
    until(&mut sent, |event| {
        told += usize::from(matches!(event, Event::Recorded { .. }));
        told == 60 * 20
    })
    .await;
    sender.close().await;
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit__reads_to_last_receipt_despite_lower_listed_head() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    ada.say("lobby", 10).await;
    let (client, _events) = ada.start(asking());
    let mut listed = client.target("lobby").await.unwrap();
    assert_eq!(audit::audit(&client, listed.clone()).await.unwrap().receipts, 10);
    let links = links(&client).await;
    // A listing with a lower head does not shorten the audit.
    listed.head = 5;
    listed.head_link = Some(Link([0; 32]));
    let audited = audit::audit(&client, listed.clone()).await.unwrap();
    assert_eq!(audited.broken_at(), Some(5), "{:?}", audited.fault);
    client.close().await;

    world.stop().await;
    edit(&world, links[7], |entry| entry[BODY_AT] ^= 1);
    world.start().await;
    let (client, _events) = ada.start(asking());
    let listed = client.target("lobby").await.unwrap();
    let audited = audit::audit(&client, listed).await.unwrap();
    assert_eq!(audited.broken_at(), Some(8), "{:?}", audited.fault);
    assert_eq!(audited.fault.unwrap().fault(), Fault::Record);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit__altered_entry_is_found_without_a_receipt() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    ada.say("lobby", 10).await;
    let (client, _events) = ada.start(asking());
    let bob = world.join("bob", &ada.invite(&client).await).await;
    let links = links(&client).await;
    client.close().await;
    let whole = tempfile::tempdir().unwrap();
    for (broken, at) in [(3, SENDER_AT), (10, TIME_AT), (7, LINK_AT), (6, LENGTH_AT)] {
        world.stop().await;
        copy_dir(&world.data().join("record"), whole.path());
        edit(&world, links[broken as usize - 1], |entry| entry[at] ^= 1);
        world.start().await;
        let (client, _events) = bob.start(asking());
        let listed = client.target("lobby").await.unwrap();
        let audited = audit::audit(&client, listed).await.unwrap();
        assert_eq!(audited.broken_at(), Some(broken), "{at}: {:?}", audited.fault);
        client.close().await;
        world.stop().await;
        copy_dir(whole.path(), &world.data().join("record"));
        world.start().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence__vanished_room_is_reported_unless_left() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let (client, _events) = ada.start(asking());
    let ops = client.create_room(&name("ops"), "").await.unwrap();
    let dev = client.create_room(&name("dev"), "").await.unwrap();
    ada.say("ops", 1).await;
    ada.say("dev", 1).await;
    client.leave_room(dev.id).await.unwrap();
    let receipts = client.state().receipts();
    assert_eq!(audit::unexplained(&receipts, &[LOBBY, ops.id]), Ok(vec![]));
    client.close().await;

    world.stop().await;
    let people = rusqlite::Connection::open(world.data().join("record/people.db")).unwrap();
    people.execute("DELETE FROM members WHERE conversation = 2", []).unwrap();
    drop(people);
    world.start().await;
    let (client, _events) = ada.start(asking());
    let listed: Vec<u64> =
        client.conversations(false).await.unwrap().iter().map(|c| c.id).collect();
    assert_eq!(audit::unexplained(&receipts, &listed), Ok(vec![ops.id]));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profile__replacement_ends_client_on_reconnect() {
    let mut world = World::new(|config| config.come_back = std::time::Duration::ZERO).await;
    let ada = world.owner("ada").await;
    let (client, mut events) = ada.start(quick());
    let link = InviteLink::parse(&ada.invite(&client).await).unwrap();
    // The same profile file, for another user.
    ada.profile().remove(&ada.home).unwrap();
    enrol::join(&ada.home, &name("default"), &link, new_user("bob")).await.unwrap();
    world.stop().await;
    world.start().await;
    let error = loop {
        if let Event::Ended(error) = next(&mut events).await {
            break error.unwrap();
        }
    };
    let replaced = ProfileError::Replaced { name: name("default") };
    assert_eq!(error, ClientError::Profile(replaced));
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox__disconnected_client_keeps_no_claim() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let (client, mut events) = ada.start(quick());
    until(&mut events, |event| matches!(event, Event::Up(_))).await;
    world.stop().await;
    until(&mut events, |event| matches!(event, Event::Down { .. })).await;
    let other = ada.state();
    other.outbox().enqueue("lobby", b"x", 1, &mut OsEntropy).unwrap();
    client.notify_enqueued().await.unwrap();
    assert_eq!(other.outbox().claim(10).unwrap().len(), 1);
    client.close().await;
}
