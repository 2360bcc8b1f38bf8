//! Memory does not grow with clients that do not read.

use std::sync::Mutex;
use std::time::Duration;

use crate::common::*;
use tokio::time::timeout;
use twinlock_core::proto::{self, request::Op};

/// The tests measure the memory of this process, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

#[test]
fn memory__stalled_followers_cost_only_a_cursor() {
    alone(async {
        let host = TestServer::start_with(|config| config.limits.text_rate = 0).await;
        let (laptop, mut ada) = host.owner().await;
        let (_, mut bob) = host.member(&mut ada, "bob").await;
        let mut stalled = Vec::new();
        for _ in 0..10 {
            let mut client = host.connect(laptop.credential()).await.unwrap();
            client.follow(LOBBY, 0).await.unwrap();
            client.set_stalled(true);
            stalled.push(client);
        }
        bob.follow(LOBBY, 0).await.unwrap();
        let before = resident(std::process::id());
        let (mut most, text) = (0, "x".repeat(32 * 1024));
        let mut seen = 0;
        for _ in 0..64 {
            // 64 x 32 x 32 KiB are 64 MiB for each of them.
            let ids = (0..32).map(|_| ada.post(append(LOBBY, &text))).collect::<Vec<_>>();
            for id in ids {
                ack(ada.answer(id).await);
            }
            seen += bob.entries(LOBBY, 32).await.len();
            most = most.max(resident(std::process::id()).saturating_sub(before));
        }
        assert_eq!(seen, 64 * 32);
        assert!(most < 40 * MIB, "{} MiB", most / MIB);
        // A client that reads again receives everything, in order.
        let mut late = stalled.pop().unwrap();
        late.set_stalled(false);
        let entries = late.entries(LOBBY, 64 * 32).await;
        assert!(entries.iter().map(|entry| entry.n).eq(1..=64 * 32));
    });
}

#[test]
fn memory__unread_answers_cause_backpressure() {
    alone(async {
        let host = TestServer::start().await;
        let (laptop, mut ada) = host.owner().await;
        for _ in 0..2 {
            ada.append(LOBBY, &"x".repeat(32 * 1000)).await.unwrap();
        }
        let mut greedy = host.connect(laptop.credential()).await.unwrap();
        greedy.set_stalled(true);
        let before = resident(std::process::id());
        // 32 KiB for each 14 bytes: 64 MiB of answers.
        let read = || Op::Read(proto::Read { conversation: LOBBY, ..proto::Read::default() });
        let ids = greedy.post_all((0..2000).map(|_| read()));
        greedy.push_out().await.unwrap();
        // Other clients are served during that time.
        for _ in 0..100 {
            assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 2);
        }
        let grown = resident(std::process::id()).saturating_sub(before);
        assert!(grown < 10 * MIB, "{} MiB", grown / MIB);
        greedy.set_stalled(false);
        for id in ids {
            assert_eq!(page(greedy.answer(id).await).head, 2);
        }
    });
}

#[test]
fn memory__unread_acks_cause_backpressure() {
    alone(async {
        let host = TestServer::start().await;
        let (laptop, mut ada) = host.owner().await;
        let mut sender = host.connect(laptop.credential()).await.unwrap();
        sender.set_stalled(true);
        let before = resident(std::process::id());
        let mut ids = Vec::new();
        // The kernel's buffers take a few MiB; then nothing moves.
        let stuck = async {
            loop {
                ids.extend(sender.post_all((0..500).map(|_| append(LOBBY, "x"))));
                let pushed = timeout(Duration::from_secs(1), sender.push_out()).await;
                match pushed {
                    Ok(pushed) => pushed.unwrap(),
                    Err(_) => return,
                }
            }
        };
        timeout(Duration::from_secs(60), stuck).await.unwrap();
        let grown = resident(std::process::id()).saturating_sub(before);
        assert!(grown < 40 * MIB, "{} MiB", grown / MIB);
        assert!(ada.append(LOBBY, "undisturbed").await.is_ok());
        sender.set_stalled(false);
        let mut last = 0;
        for id in ids {
            let n = ack(sender.answer(id).await).n;
            assert!(n > last);
            last = n;
        }
    });
}
