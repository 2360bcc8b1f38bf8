//! The client against a real server: lost connections, rekeys, slow consumers and a changed record.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{LONG, World, name, new_user, next, quick, text, until};
use tokio::time::timeout;
use twinlock_client::enrol;
use twinlock_client::error::{ClientError, Fault, Refusal};
use twinlock_client::model::{Event, Options, Rekeyed};
use twinlock_client::profile::Profile;
use twinlock_core::invite::InviteLink;
use twinlock_core::proto::RefusalReason;
use twinlock_testing::copy_dir;
use twinlock_testing::messages::LOBBY;

fn lines(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("line {n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rekey__under_load_loses_and_reorders_nothing() {
    let world = World::new(|config| config.timing.rekey_apart = Duration::ZERO).await;
    let ada = world.owner("ada").await;
    let mut options = quick();
    options.timing.rekey_after_frames = 3;
    options.timing.rekey_pause = Duration::ZERO;
    let (client, mut events) = ada.start(options);
    client.follow(LOBBY, 0).await.unwrap();
    let sent = lines(0, 3000);
    for some in sent.chunks(10) {
        ada.enqueue("lobby", some);
        client.notify_enqueued().await.unwrap();
    }
    let mut got = Vec::new();
    let mut acked = BTreeSet::new();
    until(&mut events, |event| {
        match event {
            Event::Entries { entries, .. } => got.extend(entries.iter().map(text)),
            Event::Recorded { ack, .. } => assert!(acked.insert(ack.n)),
            _ => {}
        }
        got.len() == sent.len() && acked.len() == sent.len()
    })
    .await;
    assert_eq!(got, sent);
    let facts = client.facts().await.unwrap();
    assert!(facts.session.rekeys >= 2, "{:?}", facts.session);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rekey__on_request_reports_epochs_and_loses_nothing() {
    const REKEYS: u32 = 10;
    let mut world = World::new(|config| config.timing.rekey_apart = Duration::ZERO).await;
    let ada = world.owner("ada").await;
    let mut options = quick();
    options.timing.rekey_pause = Duration::ZERO;
    options.reconnect = false;
    let (client, mut events) = ada.start(options);
    client.follow(LOBBY, 0).await.unwrap();
    let sent = lines(0, 1000);
    let forcing = async {
        for (before, some) in (0..REKEYS).zip(sent.chunks(100)) {
            ada.enqueue("lobby", some);
            client.notify_enqueued().await.unwrap();
            let rekeyed = timeout(LONG, client.rekey()).await.unwrap().unwrap();
            assert_eq!(rekeyed, Rekeyed { before, after: before + 1 });
        }
    };
    let mut got = Vec::new();
    let hearing = until(&mut events, |event| {
        if let Event::Entries { entries, .. } = event {
            got.extend(entries.iter().map(text));
        }
        got.len() == sent.len()
    });
    tokio::join!(forcing, hearing);
    assert_eq!(got, sent);
    let facts = client.facts().await.unwrap();
    assert_eq!((facts.session.rekeys, facts.session.epoch), (REKEYS, (REKEYS, REKEYS)));
    assert!(facts.since_rekey.is_some_and(|since| since < facts.age));
    // Without a connection, the rekey fails when the client ends.
    world.stop().await;
    let lost = timeout(LONG, client.rekey()).await.unwrap();
    assert!(lost.is_err(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn driver__stalled_consumer_gets_all_entries_in_order() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let sent = lines(0, 9000);
    ada.enqueue("lobby", &sent);
    let (writer, mut events) = ada.start(quick());
    let mut acked = 0;
    // The reader takes no events until everything is recorded.
    let bob = world.join("bob", &ada.invite(&writer).await).await;
    let (reader, mut read) = bob.start(Options { send: false, ..quick() });
    reader.follow(LOBBY, 0).await.unwrap();
    until(&mut events, |event| {
        acked += usize::from(matches!(event, Event::Recorded { .. }));
        acked == sent.len()
    })
    .await;
    let mut got = Vec::new();
    until(&mut read, |event| {
        if let Event::Entries { entries, .. } = event {
            got.extend(entries.iter().map(text));
        }
        got.len() >= sent.len()
    })
    .await;
    assert_eq!(got, sent);
    reader.close().await;
    writer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn driver__delivers_once_in_order_over_server_restarts() {
    let mut world = World::new(|config| config.come_back = Duration::ZERO).await;
    let ada = world.owner("ada").await;
    let (client, mut events) = ada.start(quick());
    client.follow(LOBBY, 0).await.unwrap();
    let sent = lines(0, 2000);
    let mut got: Vec<String> = Vec::new();
    for (round, some) in sent.chunks(400).enumerate() {
        ada.enqueue("lobby", some);
        client.notify_enqueued().await.unwrap();
        // The server stops in the middle of the batch.
        let half = round * 400 + 100;
        until(&mut events, |event| {
            if let Event::Entries { entries, .. } = event {
                got.extend(entries.iter().map(text));
            }
            got.len() >= half
        })
        .await;
        world.stop().await;
        world.start().await;
    }
    until(&mut events, |event| {
        if let Event::Entries { entries, .. } = event {
            got.extend(entries.iter().map(text));
        }
        got.len() >= sent.len()
    })
    .await;
    assert_eq!(got, sent);
    client.close().await;
    assert_eq!(ada.state().outbox().pending_count().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox__refused_messages_are_reported_and_kept() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    ada.enqueue("nowhere", &lines(0, 3));
    ada.enqueue("@nobody", &lines(3, 4));
    ada.enqueue("lobby", &lines(4, 5));
    let (client, mut events) = ada.start(quick());
    let (mut refused, mut recorded) = (Vec::new(), 0);
    until(&mut events, |event| {
        match event {
            Event::Refused { why, .. } => refused.push(*why),
            Event::Recorded { .. } => recorded += 1,
            _ => {}
        }
        refused.len() == 4 && recorded == 1
    })
    .await;
    assert_eq!(refused, [RefusalReason::NotFound; 4]);
    client.close().await;
    assert_eq!(ada.state().outbox().refused(10).unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence__lost_or_replaced_acked_entries_are_detected() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    ada.say("lobby", 3).await;
    world.stop().await;
    let old = world.dir.path().join("old");
    copy_dir(&world.data(), &old);
    world.start().await;
    ada.say("lobby", 2).await;
    world.stop().await;
    // An old backup is restored: the record is intact, but shorter.
    std::fs::remove_dir_all(world.data()).unwrap();
    copy_dir(&old, &world.data());
    world.start().await;

    let (client, mut events) = ada.start(Options { send: false, ..quick() });
    let truncated = ClientError::Truncated { conversation: LOBBY, head: 3, known: 5 };
    assert_eq!(client.read(LOBBY, 0, 10).await.unwrap_err(), truncated);
    client.follow(LOBBY, 3).await.unwrap();
    let error = loop {
        if let Event::Ended(error) = next(&mut events).await {
            break error.unwrap();
        }
    };
    assert_eq!(error, truncated);
    assert_eq!(error.fault(), Fault::Record);

    // Other entries take the numbers of the lost ones.
    let bob = {
        let (client, _events) = ada.start(Options { send: false, ..quick() });
        world.join("bob", &ada.invite(&client).await).await
    };
    bob.say("lobby", 5).await;
    let (client, _events) = ada.start(Options { send: false, ..quick() });
    let error = client.read(LOBBY, 0, 10).await.unwrap_err();
    assert!(matches!(error, ClientError::Tampered(broken) if broken.at() == 4), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolment__taken_name_leaves_no_profile_and_invite_unused() {
    let world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    let (client, _events) = ada.start(quick());
    let text = ada.invite(&client).await;
    let link = InviteLink::parse(&text).unwrap();
    let home = world.home("bob");
    let taken = enrol::join(&home, &name("default"), &link, new_user("ada")).await.unwrap_err();
    let expected = Refusal::from(RefusalReason::NameTaken);
    assert_eq!(taken, ClientError::Refused(expected));
    assert!(Profile::load(&home, &name("default")).is_err());
    world.join("bob", &text).await;
    let used = enrol::look(&link, false, &twinlock_client::Route::default()).await.unwrap_err();
    assert_eq!(used, ClientError::LoginRefused);
}

#[tokio::test(flavor = "multi_thread")]
async fn driver__without_server_request_fails_and_follow_waits() {
    let mut world = World::new(|config| config.come_back = Duration::ZERO).await;
    let ada = world.owner("ada").await;
    ada.say("lobby", 1).await;
    world.stop().await;
    let once = Options { reconnect: false, send: false, ..quick() };
    let (client, _events) = ada.start(once);
    let error = timeout(LONG, client.people(false)).await.unwrap().unwrap_err();
    assert_eq!(error.fault(), Fault::Network);

    let (client, mut events) = ada.start(quick());
    client.follow(LOBBY, 0).await.unwrap();
    until(&mut events, |event| matches!(event, Event::Down { .. })).await;
    world.start().await;
    until(&mut events, |event| matches!(event, Event::Entries { .. })).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pin__another_server_at_same_address_is_refused() {
    let mut world = World::new(|_| {}).await;
    let ada = world.owner("ada").await;
    world.stop().await;
    // Same address, other identity: the client knows neither its TLS key nor its server key.
    std::fs::remove_dir_all(world.data()).unwrap();
    world.start().await;
    let (client, _events) = ada.start(Options { reconnect: true, ..quick() });
    let error = client.people(false).await.unwrap_err();
    assert_eq!(error.fault(), Fault::ServerIdentity, "{error:?}");
}
