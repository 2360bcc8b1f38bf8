//! Sessions whose reads of the store wait, because all read turns are taken.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::Name;
use twinlock_core::proto::{self, item::What, request::Op};
use twinlock_core::session::SessionConfig;

use crate::common::*;
use crate::limits::fair::FairTurn;

/// All read turns, held by a user that does nothing else.
struct Held<'h> {
    host: &'h TestServer,
    turns: Vec<FairTurn>,
}

impl<'h> Held<'h> {
    async fn all(host: &'h TestServer) -> Self {
        let zoe = Name::new("zoe").unwrap();
        let mut turns = Vec::new();
        for _ in 0..3 {
            turns.push(host.server().services.record.reads().turn(&zoe).await);
        }
        Self { host, turns }
    }

    async fn until_a_read_waits(&self) {
        let waits = async {
            while self.host.server().services.record.reads().waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        soon("a read", waits).await;
    }

    /// Lets one waiting read run to its end, and no other.
    async fn let_one_read(&mut self) {
        self.until_a_read_waits().await;
        let zoe = Name::new("zoe").unwrap();
        let mut mine = pin!(self.host.server().services.record.reads().turn(&zoe));
        assert!(mine.as_mut().now_or_never().is_none());
        drop(self.turns.pop());
        self.turns.push(soon("a turn", mine).await);
    }
}

/// Simulates missed commits, so that every cursor reads from the store.
fn make_behind(host: &TestServer) {
    host.server().services.bus.missed();
}

fn has_entries(client: &RawClient) -> bool {
    client.items().any(|item| matches!(item, What::Entries(_)))
}

/// A session of ada that follows the lobby, and whose catch-up waits for a read turn.
async fn catching_up(host: &TestServer) -> (TestDevice, RawClient, Held<'_>) {
    let (device, mut ada) = host.owner().await;
    ada.follow(LOBBY, 0).await.unwrap();
    // The first page.
    ada.append(LOBBY, "first").await.unwrap();
    assert_eq!(texts(&ada.entries(LOBBY, 1).await), ["first"]);
    // Caches the name, so that the log's task does not wait for a turn as well.
    let record = &host.server().services.record;
    record.conversation_name(&Name::new("ada").unwrap(), LOBBY).await;
    let held = Held::all(host).await;
    make_behind(host);
    held.until_a_read_waits().await;
    (device, ada, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up__waiting_does_not_delay_appends() {
    let host = TestServer::start().await;
    let (_, mut ada, held) = catching_up(&host).await;
    for n in 2..5 {
        assert_eq!(ada.append(LOBBY, "while it waits").await.unwrap().n, n);
    }
    drop(held);
    assert_eq!(ada.entries(LOBBY, 3).await.last().unwrap().n, 4);
}

/// A hand-over that waits for the recorder's queue is next in it, so the appends of all other
/// sessions wait for this session to poll it.
#[tokio::test(flavor = "multi_thread")]
async fn catch_up__waiting_does_not_block_append_hand_over() {
    let host = TestServer::start_with(|config| {
        config.timing.rekey_apart = Duration::ZERO;
        config.limits.text_rate = 0;
        config.limits.in_flight = 10_000;
        config.limits.in_flight_bytes = 1 << 30;
    })
    .await;
    let (laptop, mut ada) = host.owner().await;
    let (phone, mut bob) = host.member(&mut ada, "bob").await;
    drop(ada);
    let often = |config: &mut SessionConfig| config.timing.rekey_pause = Duration::ZERO;
    let mut ada = host.connect_with(laptop.credential(), b"", often).await.unwrap();
    ada.follow(LOBBY, 0).await.unwrap();
    let record = rusqlite::Connection::open(host.data().join("record/people.db")).unwrap();
    record.busy_timeout(SOON).unwrap();
    record.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The recorder waits for this one, and the appends for the recorder.
    let topic = proto::SetTopic { conversation: LOBBY, topic: "first".to_owned() };
    let mut other = host.connect(laptop.credential()).await.unwrap();
    other.post(Op::SetTopic(topic));
    other.push_out().await.unwrap();
    // Its topic is in the recorder's hands before the first append.
    tokio::task::yield_now().await;
    // More than the queue and the sockets hold: bob's session waits for room.
    let text = "x".repeat(32 * 1024);
    let ids: Vec<_> = (0..1600).map(|_| bob.post(append(LOBBY, &text))).collect();
    loop {
        let less = bob.connection.backlog().saturating_sub(1);
        let wait = bob.connection.wait(Some(less));
        let Ok(wake) = tokio::time::timeout(Duration::from_millis(500), wait).await else { break };
        wake.unwrap();
    }
    assert!(bob.connection.backlog() > 0);
    let held = Held::all(&host).await;
    let waiting = ada.post(append(LOBBY, "waits for room"));
    assert!(ada.connection.start_rekey());
    // The rekey shows that the append before it is being handed over.
    while ada.connection.session().facts().rekeys == 0 {
        soon("a rekey", ada.pump()).await.unwrap();
    }
    make_behind(&host);
    held.until_a_read_waits().await;
    let mut carol = host.connect(phone.credential()).await.unwrap();
    record.execute_batch("ROLLBACK").unwrap();
    let others = async {
        carol.append(LOBBY, "another session").await.unwrap();
        ack(ada.answer(waiting).await);
    };
    tokio::join!(bob.answer(*ids.last().unwrap()), others);
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up__waiting_is_ended_by_revocation() {
    let host = TestServer::start().await;
    let (device, mut ada, _held) = catching_up(&host).await;
    host.server().services.bus.device_revoked(&device.id);
    assert_eq!(ada.end().await.unwrap(), CloseCode::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up__waiting_is_cancelled_on_disconnect() {
    let host = TestServer::start().await;
    let (_, ada, held) = catching_up(&host).await;
    drop(ada);
    host.until_sessions(0).await;
    let left = async {
        while host.server().services.record.reads().waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    soon("its read to leave the queue", left).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up__waiting_does_not_block_shutdown() {
    let mut host = TestServer::start().await;
    let (_, mut ada, held) = catching_up(&host).await;
    drop(held);
    let held = Held::all(&host).await;
    make_behind(&host);
    held.until_a_read_waits().await;
    let _turns = held.turns;
    let ((), end) = tokio::join!(host.stop(), ada.end());
    assert_eq!(end.unwrap(), CloseCode::Shutdown);
}

#[tokio::test(flavor = "multi_thread")]
async fn catch_up__keep_alive_is_answered_while_waiting() {
    let host = TestServer::start().await;
    let (device, ada, held) = catching_up(&host).await;
    drop((ada, held));
    let often = |config: &mut SessionConfig| {
        config.timing.ping_idle = Duration::from_millis(100);
        config.timing.ping_following = Duration::from_millis(100);
        config.timing.ping_answer = Duration::from_secs(1);
    };
    let mut ada = host.connect_with(device.credential(), b"", often).await.unwrap();
    ada.follow(LOBBY, 1).await.unwrap();
    let held = Held::all(&host).await;
    make_behind(&host);
    held.until_a_read_waits().await;
    // Longer than a PING may remain unanswered.
    let nothing = tokio::time::timeout(Duration::from_secs(3), ada.end());
    assert!(nothing.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn conversation_change__waiting_read_does_not_delay_appends() {
    let host = TestServer::start().await;
    let (device, mut ada) = host.owner().await;
    ada.follow(LOBBY, 0).await.unwrap();
    let held = Held::all(&host).await;
    let name = Name::new("ada").unwrap();
    host.server().services.bus.conversation_changed(std::slice::from_ref(&name), LOBBY);
    held.until_a_read_waits().await;
    assert_eq!(ada.append(LOBBY, "while it waits").await.unwrap().n, 1);
    // The request must wait, so that the change is sent before its answer.
    let list = ada.post(Op::ListPeople(proto::ListPeople::default()));
    drop(held);
    let pick = |item: &What| match item {
        What::Conversation(changed) => Some(changed.id),
        What::Answer(answer) if answer.id == list => panic!("the answer came first"),
        _ => None,
    };
    assert_eq!(ada.pick("the change", pick).await, LOBBY);
    ada.answer(list).await;
    let held = Held::all(&host).await;
    host.server().services.bus.conversation_changed(std::slice::from_ref(&name), LOBBY);
    held.until_a_read_waits().await;
    host.server().services.bus.device_revoked(&device.id);
    assert_eq!(ada.end().await.unwrap(), CloseCode::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn follow__delayed_read_delivers_each_entry_once() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    for n in 1..4 {
        assert_eq!(bob.append(LOBBY, "old").await.unwrap().n, n);
    }
    let mut held = Held::all(&host).await;
    let follow = ada.post(Op::Follow(proto::Follow { conversation: LOBBY, after: 0 }));
    ada.push_out().await.unwrap();
    for _ in 0..2 {
        held.let_one_read().await;
    }
    ada.answer(follow).await;
    held.until_a_read_waits().await;
    for n in 4..7 {
        assert_eq!(bob.append(LOBBY, "new").await.unwrap().n, n);
    }
    assert!(!has_entries(&ada));
    drop(held);
    bob.append(LOBBY, "last").await.unwrap();
    let numbers: Vec<_> = ada.entries(LOBBY, 7).await.iter().map(|entry| entry.n).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn follow__unfollow_drops_pending_page() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    for _ in 0..3 {
        ada.append(LOBBY, "old").await.unwrap();
    }
    let mut held = Held::all(&host).await;
    let follow = ada.post(Op::Follow(proto::Follow { conversation: LOBBY, after: 0 }));
    ada.push_out().await.unwrap();
    for _ in 0..2 {
        held.let_one_read().await;
    }
    ada.answer(follow).await;
    held.until_a_read_waits().await;
    let unfollow = Op::Unfollow(proto::Unfollow { conversation: LOBBY });
    done(ada.ask(unfollow).await.unwrap());
    assert_eq!(host.server().services.record.reads().waiting(), 0);
    drop(held);
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 3);
    assert!(!has_entries(&ada));
    // A follow from another position starts with the entry after it.
    ada.follow(LOBBY, 2).await.unwrap();
    assert_eq!(ada.entries(LOBBY, 1).await[0].n, 3);
}
