//! A faulty network: every message arrives once and in order, and dead connections are detected.
//!
//! By default the main test runs for some seconds, with keep-alive times of a tenth or less.
//! `TWINLOCK_NETWORK=260` runs it for 260 seconds, with the keep-alive times of the protocol.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Person, World, text};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use twinlock_client::error::ClientError;
use twinlock_client::{Client, Event, Options};
use twinlock_core::invite::Address;
use twinlock_core::limits::Timing;
use twinlock_core::session::SessionFault;
use twinlock_testing::messages::LOBBY;
use twinlock_testing::{FaultyNetwork, Rng};
use twinlock_transport::OsEntropy;

/// Default duration of the main test, seconds.
const SECONDS: u64 = 8;
/// Margin for closing a dead connection: a busy machine, and the last frames of client or server.
const LATE: Duration = Duration::from_secs(3);

/// The duration of the main test, and the keep-alive times of both ends.
fn scale() -> (Duration, Timing) {
    let seconds = std::env::var("TWINLOCK_NETWORK").map(|seconds| seconds.parse().unwrap());
    let seconds = seconds.unwrap_or(SECONDS);
    let mut timing = Timing::default();
    if seconds < 60 {
        timing.ping_following /= 10;
        timing.ping_idle /= 30;
        timing.ping_answer /= 10;
    }
    (Duration::from_secs(seconds), timing)
}

struct Stage {
    world: World,
    network: FaultyNetwork,
    timing: Timing,
    people: Vec<Person>,
    rng: Mutex<Rng>,
    lasts: Duration,
}

impl Stage {
    async fn new() -> Self {
        let (lasts, timing) = scale();
        let of_server = timing.clone();
        let world = World::new(|config| {
            config.timing = of_server;
            // Logins that the network interrupts must not reach the rate limit.
            config.limits.logins_per_minute = 100_000;
        })
        .await;
        let mut rng = Rng::from_env();
        let of_network = Rng::from_seed(rng.draw());
        let network = FaultyNetwork::random(world.server.address(), of_network);
        let ada = world.owner("ada").await;
        let (client, _events) = ada.start(crate::common::quick());
        let mut people = Vec::new();
        for name in ["bob", "eve"] {
            people.push(world.join(name, &ada.invite(&client).await).await);
        }
        client.close().await;
        people.insert(0, ada);
        world.server.until_sessions(0).await;
        Self { world, network, timing, people, rng: Mutex::new(rng), lasts }
    }

    fn start(&self, who: usize) -> (Client, mpsc::Receiver<Event>) {
        let address = Address::new("127.0.0.1", self.network.address.port()).unwrap();
        let options = Options {
            address: Some(address),
            timing: self.timing.clone(),
            longest_delay: Duration::from_secs(2),
            ..Options::default()
        };
        self.people[who].start(options)
    }

    fn lines(&self) -> usize {
        self.world.server.server().sessions()
    }

    /// Time after which a silent connection is dead: one that follows or waits, and any other.
    fn dead_after(&self) -> (Duration, Duration) {
        let Timing { ping_following, ping_idle, ping_answer, .. } = self.timing;
        (ping_following + ping_answer, ping_idle + ping_answer)
    }

    /// Delays and cuts until `until`. Returns the number of single cuts, cuts of all, and delays.
    async fn blow(&self, until: Instant) -> [usize; 3] {
        let network = &self.network;
        let draw = |from, to| self.rng.lock().unwrap().within(from, to);
        let mut counts = [0; 3];
        while Instant::now() < until {
            match draw(0, 10) {
                0..3 => counts[0] += usize::from(network.cut_one()),
                3 => counts[1] += usize::from(network.cut()),
                _ => {
                    network.set_delay(Duration::from_millis(draw(0, 60)));
                    counts[2] += 1;
                }
            }
            sleep(Duration::from_millis(draw(20, 400))).await;
        }
        counts
    }

    /// Waits without cuts until every client is connected and `whole` connections are healthy.
    async fn calm(&self, seen: &Seen, whole: usize) {
        let until = Instant::now() + self.dead_after().1 + crate::common::LONG;
        while seen.standing() < self.people.len() || self.network.healthy() < whole {
            let now = (seen.standing(), self.network.healthy());
            assert!(Instant::now() < until, "lines that stand, and that are not silent: {now:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Connection events of all clients.
#[derive(Default)]
struct Seen {
    standing: AtomicUsize,
    downs: AtomicUsize,
    /// Connections that a client closed because no byte arrived.
    silent: AtomicUsize,
}

impl Seen {
    /// `up`: whether this client was connected before the event.
    fn take(&self, event: &Event, up: &mut bool) {
        match event {
            Event::Up(_) => {
                let new = !std::mem::replace(up, true);
                self.standing.fetch_add(usize::from(new), Ordering::Relaxed);
            }
            Event::Down { error, .. } => {
                let stood = std::mem::take(up);
                self.standing.fetch_sub(usize::from(stood), Ordering::Relaxed);
                self.downs.fetch_add(1, Ordering::Relaxed);
                let silent = *error == ClientError::Lost(SessionFault::Silent.to_string());
                self.silent.fetch_add(usize::from(silent), Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn standing(&self) -> usize {
        self.standing.load(Ordering::Relaxed)
    }

    fn silent(&self) -> usize {
        self.silent.load(Ordering::Relaxed)
    }
}

/// Sends messages until `stop`, then waits until all are recorded. Returns their number.
async fn writes(
    client: Client,
    mut events: mpsc::Receiver<Event>,
    name: &'static str,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
) -> usize {
    let outbox = client.state().clone();
    let (mut sent, mut recorded, mut up) = (0, 0, false);
    loop {
        if !stop.load(Ordering::Relaxed) {
            let lines: Vec<_> = (sent..sent + 3).map(|n| format!("{name} {n:06}")).collect();
            sent += lines.len();
            let messages = lines.iter().map(|line| ("lobby", line.as_bytes()));
            outbox.outbox().enqueue_many(messages, 1, &mut OsEntropy).unwrap();
            client.notify_enqueued().await.unwrap();
        } else if recorded == sent {
            client.close().await;
            return sent;
        }
        let pause = Instant::now() + Duration::from_millis(20);
        while let Ok(event) = tokio::time::timeout_at(pause, events.recv()).await {
            let event = event.unwrap();
            seen.take(&event, &mut up);
            match event {
                Event::Recorded { .. } => recorded += 1,
                Event::Ended(error) => panic!("{name}: {error:?}"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network__faulty_delivers_messages_once_and_in_order() {
    let stage = Stage::new().await;
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let mut writing = Vec::new();
    for (who, name) in [(0, "ada"), (1, "bob")] {
        let (client, events) = stage.start(who);
        let (stop, seen) = (stop.clone(), seen.clone());
        writing.push(tokio::spawn(writes(client, events, name, stop, seen)));
    }
    let (reader, mut events) = stage.start(2);
    reader.follow(LOBBY, 0).await.unwrap();
    let read = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (into, told) = (read.clone(), seen.clone());
    let reading = tokio::spawn(async move {
        let mut up = false;
        while let Some(event) = events.recv().await {
            told.take(&event, &mut up);
            match event {
                Event::Entries { entries, .. } => {
                    let entries = entries.iter().map(|entry| (entry.n, text(entry)));
                    into.lock().unwrap().extend(entries);
                }
                Event::Ended(error) => assert_eq!(error, None),
                _ => {}
            }
        }
    });

    let network = &stage.network;
    let began = Instant::now();
    let for_part = |part| Instant::now() + stage.lasts.mul_f64(part);
    let mut counts = Vec::new();
    // A silent connection is not cut, because its ends would notice. One direction, then the other,
    // then both.
    for (ends, lines) in [([true, false], 1), ([false, true], 1), ([true, true], 2)] {
        counts.push(stage.blow(for_part(0.1)).await);
        stage.calm(&seen, lines).await;
        network.silence(ends, lines);
    }
    counts.push(stage.blow(for_part(0.1)).await);
    // A partition, until both ends of every connection have detected it.
    let (followed, any) = stage.dead_after();
    let everybody = stage.people.len();
    stage.calm(&seen, everybody).await;
    let silent = seen.silent();
    let parting = Instant::now();
    network.partition(true);
    let none = stage.blow(Instant::now() + any.max(stage.lasts.mul_f64(0.47))).await;
    let until = Instant::now() + LATE;
    while (seen.standing(), stage.lines()) != (0, 0) {
        let now = (seen.standing(), stage.lines());
        assert!(Instant::now() < until, "lines that clients and server still have: {now:?}");
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(none[..2], [0, 0], "nothing is cut while nothing passes");
    assert_eq!(seen.silent() - silent, everybody, "each client noticed by itself");
    let parted = parting.elapsed();
    network.partition(false);
    counts.push(stage.blow(for_part(0.13)).await);
    network.set_delay(Duration::ZERO);
    stop.store(true, Ordering::Relaxed);
    let mut sent = Vec::new();
    for writing in writing {
        sent.push(timeout(crate::common::LONG, writing).await.unwrap().unwrap());
    }
    let all = sent.iter().sum::<usize>();
    let until = Instant::now() + crate::common::LONG;
    while read.lock().unwrap().len() < all {
        let read = read.lock().unwrap().len();
        assert!(Instant::now() < until, "{read} of {all} lines arrived");
        sleep(Duration::from_millis(5)).await;
    }
    // The last silent connections may still have to be detected.
    let until = Instant::now() + any + LATE;
    while network.silences().iter().any(|silence| silence.left.contains(&None)) {
        assert!(Instant::now() < until, "{:?}", network.silences());
        sleep(Duration::from_millis(5)).await;
    }
    reader.close().await;
    reading.await.unwrap();
    let silences = network.silences();
    let slowest = [0, 1].map(|end| silences.iter().filter_map(|s| s.left[end]).max().unwrap());
    let [one, every, delays] = [0, 1, 2].map(|n| counts.iter().map(|c| c[n]).sum::<usize>());
    eprintln!(
        "network: {:?}: {all} lines; {one} cuts of one line and {every} of all, {delays} delays, \
         a partition of {parted:?}; {} lines went silent, left by the client after {:?} at most, by \
         the server after {:?}; {} connections, {} lost",
        began.elapsed(),
        silences.len(),
        slowest[0],
        slowest[1],
        network.accepted(),
        seen.downs.load(Ordering::Relaxed)
    );
    assert_eq!(silences.len(), 1 + 1 + 2 + everybody, "{silences:?}");
    // Neither end gets an answer, and every client follows or waits for an ack.
    assert!(slowest[0] < followed + LATE && slowest[1] < any + LATE, "{silences:?}");
    // If no byte from the server arrives, the client detects the silence without it.
    assert!(seen.silent() >= 1 + 2 + everybody, "{} by themselves", seen.silent());
    let read = read.lock().unwrap();
    assert!(read.iter().map(|(n, _)| *n).eq(1..=all as u64), "no number twice or missing");
    for (name, sent) in ["ada", "bob"].into_iter().zip(sent) {
        let of: Vec<_> =
            read.iter().map(|(_, line)| line).filter(|l| l.starts_with(name)).collect();
        assert!(of.iter().map(|l| l.as_str()).eq((0..sent).map(|n| format!("{name} {n:06}"))));
        assert!(sent > 50, "{name} wrote {sent}");
    }
    assert!(every + one > 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network__silent_connection_is_detected_by_both_ends() {
    let stage = Stage::new().await;
    // The limit of the protocol, plus a margin for a busy machine.
    let (limit, _) = stage.dead_after();
    let late = Duration::from_millis(700);
    for ends in [[true, false], [false, true], [true, true]] {
        let (reader, mut events) = stage.start(2);
        reader.follow(LOBBY, 0).await.unwrap();
        crate::common::until(&mut events, |event| matches!(event, Event::CaughtUp { .. })).await;
        assert_eq!(stage.lines(), 1);
        let began = Instant::now();
        stage.network.silence(ends, 1);
        // New connections wait: a reconnect would count as a connection of the server.
        stage.network.pause(true);
        let server = async {
            while stage.lines() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
            began.elapsed()
        };
        let client = async {
            crate::common::until(&mut events, |event| matches!(event, Event::Down { .. })).await;
            began.elapsed()
        };
        let (client, server) = tokio::join!(client, server);
        eprintln!("network: silent {ends:?}: the client after {client:?}, the server {server:?}");
        assert!(client < limit + late && server < limit + late, "{client:?} {server:?}");
        stage.network.pause(false);
        reader.close().await;
        while stage.lines() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network__pending_ack_detects_dead_connection_like_follow() {
    let mut stage = Stage::new().await;
    // The client does not follow, and an idle connection may be silent for ten minutes.
    stage.timing.ping_idle = Duration::from_secs(600);
    let (client, mut events) = stage.start(0);
    crate::common::until(&mut events, |event| matches!(event, Event::Up(_))).await;
    stage.network.silence([true, true], 1);
    let outbox = stage.people[0].state();
    let message = [("lobby", &b"is anybody there?"[..])];
    outbox.outbox().enqueue_many(message, 1, &mut OsEntropy).unwrap();
    client.notify_enqueued().await.unwrap();
    let began = Instant::now();
    let (limit, _) = stage.dead_after();
    crate::common::until(&mut events, |event| matches!(event, Event::Down { .. })).await;
    let took = began.elapsed();
    eprintln!("network: whoever waited for an ack noticed after {took:?}");
    assert!(took < limit + Duration::from_millis(700), "{took:?}");
    crate::common::until(&mut events, |event| matches!(event, Event::Recorded { .. })).await;
    client.close().await;
}
