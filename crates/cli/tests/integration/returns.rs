//! A server with thousands of connections is restarted: all reconnect soon, and nothing that was
//! sent before, during or after the restart is lost.
//!
//! `TWINLOCK_RETURNS=5000` sets the number of connections.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::lines::{Connected, PER_USER, members};
use crate::common::raw::{Card, LOBBY};
use crate::common::*;
use bytes::Bytes;
use prost::Message as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio::time::sleep;
use twinlock_core::proto::{self, answer::Result as Answered, item::What, request::Op};
use twinlock_core::session::SessionEvent;

/// All have reconnected within this time.
const BACK: Duration = Duration::from_secs(30);
/// All clients write here, and no one follows it; they follow ada's messages in the lobby.
const ROOM: &str = "back";
/// Request ids of every connection.
const FOLLOW: u64 = 1;
const JOIN: u64 = 2;
/// How long the server stays away.
const AWAY: Duration = Duration::from_secs(1);

/// The shared state of all clients.
struct Fleet {
    members: Vec<Card>,
    rng: Mutex<Rng>,
    up: AtomicUsize,
    /// Failed attempts.
    failed: AtomicUsize,
    /// Each client writes one message in each round.
    round: AtomicU64,
    /// Totals of all clients: received entries, and acknowledged messages.
    heard: AtomicU64,
    wrote: AtomicU64,
    over: AtomicBool,
}

impl Fleet {
    fn rng(&self) -> f64 {
        self.rng.lock().unwrap().within(0, 1_000) as f64 / 1_000.0
    }

    /// Keeps a connection up with the back-off of a client: the first attempt within a tenth of a
    /// second, the next after half a second, then doubling.
    async fn live(self: Arc<Self>, n: usize) {
        let mut one = One { n, heard: 0, wrote: 0, room: None, asked: None };
        let mut pause = Duration::from_millis(100).mul_f64(self.rng());
        let mut next = Duration::from_millis(500);
        while !self.over.load(Ordering::Relaxed) {
            sleep(pause).await;
            // Each from a different address, like separate users.
            let from = Ipv4Addr::from(0x7f01_0000 + n as u32 + 1);
            let member = &self.members[n / PER_USER];
            match member.try_connect_from(Some(from), &(n as u64).to_be_bytes()).await {
                Ok(client) => {
                    self.up.fetch_add(1, Ordering::Relaxed);
                    one.serve(client.connection, &self).await;
                    self.up.fetch_sub(1, Ordering::Relaxed);
                    pause = Duration::from_millis(100).mul_f64(self.rng());
                    next = Duration::from_millis(500);
                }
                Err(_) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    pause = next.mul_f64(1.0 + self.rng());
                    next = (next * 2).min(Duration::from_secs(30));
                }
            }
        }
    }
}

/// The state that one client keeps across connections.
struct One {
    n: usize,
    heard: u64,
    wrote: u64,
    room: Option<u64>,
    /// The outstanding request of this connection.
    asked: Option<u64>,
}

impl One {
    async fn serve(&mut self, mut line: Connected, fleet: &Fleet) {
        self.asked = None;
        let follow = Op::Follow(proto::Follow { conversation: LOBBY, after: self.heard });
        line.session_mut().set_following(true);
        ask(&mut line, FOLLOW, follow);
        ask(&mut line, JOIN, Op::JoinRoom(proto::JoinRoom { name: ROOM.to_owned() }));
        loop {
            if let Some(room) = self.room
                && self.asked.is_none()
                && self.wrote < fleet.round.load(Ordering::Relaxed)
            {
                // Resend the same message until it is acknowledged, across reconnects.
                let round = self.wrote + 1;
                let mut id = [0; 16];
                id[..8].copy_from_slice(&round.to_be_bytes());
                id[8..].copy_from_slice(&(self.n as u64).to_be_bytes());
                let append = proto::Append {
                    conversation: room,
                    message_id: Bytes::copy_from_slice(&id),
                    body: written(self.n, round).into(),
                };
                ask(&mut line, JOIN + round, Op::Append(append));
                self.asked = Some(JOIN + round);
            }
            let wake = tokio::time::timeout(Duration::from_millis(500), line.wait(None)).await;
            match wake {
                // Check for new work.
                Err(_) if fleet.over.load(Ordering::Relaxed) => {
                    return line.close(twinlock_core::frame::CloseCode::Bye).await;
                }
                Err(_) => continue,
                Ok(Err(_)) => return,
                Ok(Ok(_)) => {}
            }
            match line.open_frame() {
                Ok(SessionEvent::App(body)) => {
                    for item in proto::ToClient::decode(body).unwrap().items {
                        self.take(item, fleet);
                    }
                }
                Ok(SessionEvent::Closed(_)) | Err(_) => return line.finish().await,
                Ok(_) => {}
            }
        }
    }

    fn take(&mut self, item: proto::Item, fleet: &Fleet) {
        match item.what {
            Some(What::Entries(entries)) => {
                for entry in entries.entries {
                    assert_eq!(entry.n, self.heard + 1, "line {}", self.n);
                    self.heard = entry.n;
                    fleet.heard.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(What::Answer(answer)) if Some(answer.id) == self.asked => {
                assert!(matches!(answer.result, Some(Answered::Ack(_))), "{answer:?}");
                self.asked = None;
                self.wrote += 1;
                fleet.wrote.fetch_add(1, Ordering::Relaxed);
            }
            Some(What::Answer(proto::Answer { id: JOIN, result })) => {
                let Some(Answered::Conversation(room)) = result else { panic!("{result:?}") };
                self.room = Some(room.id);
            }
            _ => {}
        }
    }
}

/// The text of a client in a round.
fn written(n: usize, round: u64) -> String {
    format!("line {n:05} in round {round}")
}

fn ask(line: &mut Connected, id: u64, op: Op) {
    let requests = vec![proto::Request { id, op: Some(op) }];
    let frame = proto::ToServer { requests, ..Default::default() };
    line.send_app(&frame.encode_to_vec()).unwrap();
}

/// Waits until this many connections are up; returns the time since `began`.
fn wait_up(fleet: &Fleet, lines: usize, began: Instant, limit: Duration) -> Duration {
    while fleet.up.load(Ordering::Relaxed) < lines {
        let up = fleet.up.load(Ordering::Relaxed);
        assert!(began.elapsed() < limit, "{up} of {lines} lines after {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    began.elapsed()
}

#[test]
fn reconnect__all_return_after_restart_without_loss() {
    let lines = scale("TWINLOCK_RETURNS", 400);
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert!(hard.is_none_or(|hard| hard > lines as u64 + 300), "too few open files: {hard:?}");
    let rng = Mutex::new(Rng::from_env());
    let mut host = Host::start();
    let ada = host.owner();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let members = runtime.block_on(members(&ada, host.root(), lines.div_ceil(PER_USER)));
    ada.run(&["room", "create", ROOM]).exits(0);
    let fleet = Arc::new(Fleet {
        members,
        rng,
        up: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        round: AtomicU64::new(0),
        heard: AtomicU64::new(0),
        wrote: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let began = Instant::now();
    let mut living = JoinSet::new();
    for n in 0..lines {
        living.spawn_on(fleet.clone().live(n), runtime.handle());
    }
    let took = wait_up(&fleet, lines, began, LONG);
    eprintln!("return: {lines} lines in {took:.1?}");

    let mut sending = ada.start(&["send", "--json", "lobby"]);
    let mut stdin = sending.stdin.take().unwrap();
    let mut said = 0;
    let mut say = |count: usize| {
        for _ in 0..count {
            said += 1;
            writeln!(stdin, "{said}").unwrap();
        }
        said
    };
    let head = say(3);
    sending.wait_lines(head);
    for (round, what) in [(1, "killed"), (2, "ended")] {
        // Each client has a message in flight, and ada a few, when it happens.
        fleet.round.store(round, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        let failed = fleet.failed.load(Ordering::Relaxed);
        say(300);
        if what == "killed" {
            host.kill();
        } else {
            host.terminate().exits(0);
        }
        // A connection that still counted as up would count as reconnected.
        let until = Instant::now() + LONG;
        while fleet.up.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < until, "{} are still up", fleet.up.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(5));
        }
        // Messages are also sent while there is no server.
        let head = say(3);
        std::thread::sleep(AWAY);
        let began = Instant::now();
        host.restart();
        let took = wait_up(&fleet, lines, began, BACK);
        sending.wait_lines(head);
        let failed = fleet.failed.load(Ordering::Relaxed) - failed;
        eprintln!(
            "return: {what}: {lines} lines are back {took:.1?} after it began, {failed} vain attempts"
        );
    }
    let head = say(1);
    drop(stdin);
    sending.ended(LONG).exits(0);
    // Wait for messages in flight.
    let all = lines as u64;
    let wanted = (all * head as u64, all * 2);
    let until = Instant::now() + LONG;
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    while (of(&fleet.heard), of(&fleet.wrote)) != wanted {
        let now = (of(&fleet.heard), of(&fleet.wrote));
        assert!(Instant::now() < until, "heard and wrote {now:?} of {wanted:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    fleet.over.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        while let Some(ended) = living.join_next().await {
            ended.unwrap();
        }
    });
    let heard: Vec<_> = (1..=head).map(|n| n.to_string()).collect();
    assert_eq!(texts(&ada.reads("lobby")), heard);
    let record = ada.reads(ROOM);
    let wrote = record.iter().filter_map(|entry| entry["text"].as_str());
    let mut wrote: Vec<_> = wrote.filter(|text| text.starts_with("line ")).collect();
    wrote.sort_unstable();
    let each = (0..lines).flat_map(|n| [1, 2].map(|round| written(n, round)));
    let each: Vec<_> = each.collect();
    // Not `assert_eq`, which would print all of them.
    assert_eq!(wrote.len(), each.len(), "what everybody wrote is recorded");
    let other = wrote.iter().zip(&each).find(|(wrote, each)| *wrote != each);
    assert_eq!(other, None, "each line is recorded once");
    ada.run(&["audit", "verify"]).exits(0);
}
