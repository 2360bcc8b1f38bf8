//! Queued and running requests when their connection ends.

use std::time::{Duration, Instant};

use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, request::Op};
use twinlock_core::session::SessionConfig;

/// Requests of a frame.
const FRAME: usize = 2000;

/// A request that writes twice and leaves an entry in the lobby, so that the head counts how many
/// were executed.
fn topic() -> Op {
    Op::SetTopic(proto::SetTopic { conversation: LOBBY, topic: "queued".to_owned() })
}

/// A server without a limit on such requests: a refusal would take no time.
async fn start() -> TestServer {
    TestServer::start_with(|config| config.limits.changes_per_minute = 0).await
}

async fn head(client: &mut RawClient) -> u64 {
    client.conversations().await[0].head
}

/// Asserts that a queue of `all` requests was dropped: some were executed, and no more follow.
async fn assert_dropped(bob: &mut RawClient, all: usize) {
    let before = head(bob).await;
    assert!(before > 0 && before < all as u64 / 2, "{before} of {all} requests were done");
    // One may be running; it writes its entry second.
    for _ in 0..20 {
        bob.ask(Op::Mark(proto::Mark { conversation: LOBBY, n: 1 })).await.map(done).unwrap();
    }
    let later = head(bob).await;
    assert!(later <= before + 1, "{later} requests were done, {before} when the session had ended");
}

#[derive(Debug, Clone, Copy)]
enum End {
    Cut,
    Close,
}

/// Queues `frames` full frames and ends the connection once the first request is answered.
async fn queue_and_end(frames: usize, end: End) {
    let host = start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    let mut first = None;
    for _ in 0..frames {
        first.get_or_insert(ada.post_all((0..FRAME).map(|_| topic()))[0]);
    }
    ada.answer(first.unwrap()).await;
    // The sockets' buffers are full. The server notices a peer that stopped reading only by its
    // end.
    match end {
        End::Cut => drop(ada),
        End::Close => ada.bye().await,
    }
    host.until_sessions(1).await;
    assert_dropped(&mut bob, frames * FRAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__dropped_on_disconnect() {
    queue_and_end(1, End::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__dropped_on_client_close() {
    queue_and_end(1, End::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__beyond_read_ahead_dropped_on_disconnect() {
    queue_and_end(12, End::Cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__beyond_read_ahead_dropped_on_client_close() {
    queue_and_end(12, End::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__dropped_at_maximum_session_age() {
    let host = TestServer::start_with(|config| {
        config.timing.max_age = Duration::from_secs(2);
        config.limits.changes_per_minute = 0;
    })
    .await;
    let (laptop, mut ada) = host.owner().await;
    let all = 6 * FRAME;
    let began = Instant::now();
    for _ in 0..6 {
        ada.post_all((0..FRAME).map(|_| topic()));
    }
    assert_eq!(ada.end().await.unwrap(), CloseCode::LogInAgain);
    assert!(began.elapsed() < SOON / 2);
    let mut ada = host.connect(laptop.credential()).await.unwrap();
    assert_dropped(&mut ada, all).await;
}

/// Locks the record as another program could: every write waits.
fn hold_record(host: &TestServer) -> rusqlite::Connection {
    let record = rusqlite::Connection::open(host.data().join("record/people.db")).unwrap();
    record.busy_timeout(SOON).unwrap();
    record.execute_batch("BEGIN IMMEDIATE").unwrap();
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn running_request__does_not_delay_session_end() {
    let host = start().await;
    let (laptop, mut ada) = host.owner().await;
    for end in [End::Cut, End::Close] {
        let held = hold_record(&host);
        ada.post(topic());
        ada.post_all((0..FRAME).map(|_| topic()));
        ada.push_out().await.unwrap();
        match end {
            End::Cut => drop(ada),
            End::Close => ada.bye().await,
        }
        // The record is still locked.
        host.until_sessions(0).await;
        held.execute_batch("ROLLBACK").unwrap();
        ada = host.connect(laptop.credential()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_request__does_not_block_keep_alive() {
    let host = start().await;
    let (laptop, ada) = host.owner().await;
    ada.bye().await;
    let often = |config: &mut SessionConfig| {
        config.timing.ping_idle = Duration::from_millis(100);
        config.timing.ping_following = Duration::from_millis(100);
        config.timing.ping_answer = Duration::from_secs(1);
    };
    let mut ada = host.connect_with(laptop.credential(), b"", often).await.unwrap();
    let held = hold_record(&host);
    let id = ada.post(topic());
    // Longer than a PING may go unanswered.
    let nothing = tokio::time::timeout(Duration::from_secs(3), ada.end());
    assert!(nothing.await.is_err());
    held.execute_batch("ROLLBACK").unwrap();
    ada.answer(id).await;
}

/// A revocation ends the device's sessions even if the session that requested it has ended.
#[tokio::test(flavor = "multi_thread")]
async fn revocation__completes_after_requester_disconnects() {
    let host = TestServer::start_with(|config| config.timing.rekey_apart = Duration::ZERO).await;
    let mut ada = host.connect(host.owner_invite().credential()).await.unwrap();
    let laptop = ada.register("ada", Some("correct horse battery")).await.unwrap();
    let mut stolen = host.connect(laptop.credential()).await.unwrap();
    let login = password("ada", "correct horse battery");
    let often = |config: &mut SessionConfig| config.timing.rekey_pause = Duration::ZERO;
    let mut ada = host.connect_with(login, b"", often).await.unwrap();
    let held = hold_record(&host);
    ada.post(Op::RevokeDevice(proto::RevokeDevice { device: copy(&laptop.id.0) }));
    // The answer to the later rekey shows that the request has started.
    assert!(ada.connection.start_rekey());
    while ada.connection.session().facts().rekeys == 0 {
        soon("a rekey", ada.pump()).await.unwrap();
    }
    let left = host.server().sessions() - 1;
    drop(ada);
    host.until_sessions(left).await;
    held.execute_batch("ROLLBACK").unwrap();
    assert_eq!(stolen.end().await.unwrap(), CloseCode::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_queue__appends_keep_order_beyond_read_ahead() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    // More than the read-ahead, alternating with requests that wait for the appends before them.
    let text = "x".repeat(8000);
    let mut ids = Vec::new();
    for _ in 0..40 {
        let read = Op::Read(proto::Read { conversation: LOBBY, limit: 1, ..Default::default() });
        ids.extend(ada.post_all([append(LOBBY, &text), append(LOBBY, &text), read]));
    }
    let mut n = 0;
    for three in ids.chunks(3) {
        for id in &three[..2] {
            n += 1;
            assert_eq!(ack(ada.answer(*id).await).n, n);
        }
        assert_eq!(page(ada.answer(three[2]).await).head, n);
    }
}
