//! Clients that never read, or never stop sending. The server makes each wait, and its memory stays
//! within the bounds below.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) uses full sizes.

use std::time::{Duration, Instant};

use crate::common::raw::*;
use crate::common::*;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::id::SessionId;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_transport::connection::Wake;

/// Memory of a session: 256 KiB sealed and one frame more, the read-ahead (208 KiB) and its decoded
/// form, 1 MiB of appends, and a TLS buffer. Doubled for what the allocator keeps.
const LINE: usize = 4 * MIB;
/// Memory of all sessions together: the tails of followed conversations, 512 KiB each, here of one;
/// SQLite's page caches for writing and reading; the entries between recorder and followers.
const SHARED: usize = 24 * MIB;
/// Interval between two checks of the server.
const PACE: Duration = Duration::from_millis(5);

/// Connections of one member, who may have sixteen.
fn lines(card: &Card, count: usize) -> impl Future<Output = Vec<RawClient>> {
    let card = card.clone();
    async move {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.push(card.connect().await);
        }
        lines
    }
}

fn names(lines: &[RawClient]) -> Vec<SessionId> {
    lines.iter().map(|line| line.connection.session().id()).collect()
}

/// How many of these sessions still exist: the server has logged their start but not their end.
fn alive(host: &Host, names: &[SessionId]) -> usize {
    let log = host.log();
    let alive = |name: &&SessionId| {
        let of_it = format!("sid={name}");
        let mut of_it = log.lines().filter(|line| line.contains(&of_it)).peekable();
        of_it.peek().is_some() && !of_it.any(|line| line.contains(" session ended "))
    };
    names.iter().filter(alive).count()
}

#[test]
fn memory__stalled_followers_are_bounded() {
    let (count, batches) = if full() { (15, 200) } else { (8, 30) };
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("settings");
    // One user writes more than the rate limit.
    std::fs::write(&config, "[limits]\ntext-rate-kib = 0\n").unwrap();
    let host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let bob = Card::of(&host.member(&ada, "bob"));
    here().block_on(async {
        let mut sender = card.connect().await;
        let before = resident(pid);
        let mut stalled = lines(&bob, count).await;
        for line in &mut stalled {
            let follow = proto::Follow { conversation: LOBBY, after: 0 };
            line.ask(Op::Follow(follow)).await.unwrap();
            line.set_stalled(true);
        }
        let (text, mut most) = ("x".repeat(32 * 1024), 0);
        for _ in 0..batches {
            let ids: Vec<u64> = (0..32).map(|_| sender.post(append(LOBBY, &text))).collect();
            sender.answer(ids[31]).await;
            most = most.max(resident(pid).saturating_sub(before));
        }
        eprintln!(
            "hostile: {count} followers that miss {} MiB each: the server grew by {} MiB",
            batches,
            most / MIB
        );
        assert!(most < SHARED + (count + 1) * LINE, "{} MiB", most / MIB);
        // A closed connection would cost nothing.
        assert_eq!(alive(&host, &names(&stalled)), count, "{}", host.log());
    });
}

/// Sends for as long as the server accepts data, and reads nothing.
async fn sends(mut line: RawClient, mut enough: watch::Receiver<bool>) -> RawClient {
    line.set_stalled(true);
    loop {
        line.post_all((0..500).map(|_| append(LOBBY, "x")));
        while let left @ 1.. = line.connection.backlog() {
            tokio::select! {
                wake = line.connection.wait(Some(left - 1)) => {
                    if wake.expect("the line stands") == Wake::Frame {
                        line.connection.open_frame().unwrap();
                    }
                }
                _ = enough.changed() => return line,
            }
        }
    }
}

#[test]
fn memory__senders_that_read_no_acks_are_bounded() {
    let count = if full() { 15 } else { 2 };
    let bound = SHARED + (count + 1) * LINE;
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("settings");
    // The text rate limit would block the senders before their acks do.
    std::fs::write(&config, "[limits]\ntext-rate-kib = 0\n").unwrap();
    let host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let bob = Card::of(&host.member(&ada, "bob"));
    here().block_on(async {
        let mut person = card.connect().await;
        let before = resident(pid);
        let stalled = lines(&bob, count).await;
        let stalled_names = names(&stalled);
        let (enough, told) = watch::channel(false);
        let mut senders = JoinSet::new();
        for line in stalled {
            senders.spawn(sends(line, told.clone()));
        }
        // Until the server reads from none of them: the acks fill the kernel's buffers, then the
        // server's, and then nothing is read.
        let (mut most, mut taken, mut since) = (0, 0, Instant::now());
        for said in 1.. {
            let now = person.append(LOBBY, "undisturbed").await.unwrap().n - said;
            most = resident(pid).saturating_sub(before).max(most);
            assert!(most < bound, "{} MiB after {now} messages", most / MIB);
            assert!(senders.try_join_next().is_none(), "a sender has ended");
            // More acks than could be buffered unread.
            assert!(now < count as u64 * 1_000_000, "{now} messages are taken");
            if now > taken {
                (taken, since) = (now, Instant::now());
            } else if taken > 0 && since.elapsed() > Duration::from_secs(2) {
                break;
            }
            tokio::time::sleep(PACE).await;
        }
        eprintln!(
            "hostile: {count} senders, {taken} messages, no ack read: the server grew by {} MiB",
            most / MIB
        );
        // A closed connection would cost nothing.
        assert_eq!(alive(&host, &stalled_names), count, "{}", host.log());
        enough.send_replace(true);
        let mut late = senders.join_next().await.unwrap().unwrap();
        // A client that reads again receives every ack.
        late.set_stalled(false);
        let last = late.post(append(LOBBY, "I am back"));
        let every_ack = async {
            let pick = |item: &What| match item {
                What::Answer(answer) => Some(answer.clone()),
                _ => None,
            };
            for id in 1..=last {
                let answer = late.pick("ack", pick).await;
                assert_eq!(answer.id, id);
                assert!(matches!(answer.result, Some(Answered::Ack(_))), "{answer:?}");
            }
        };
        timeout(LONG, every_ack).await.expect("every ack");
    });
}
