//! A network that delays, reorders, cuts, goes silent and parts: what is said over it arrives once
//! and in order, and a line that is dead is noticed.
//!
//! The test alone takes keep-alive at a tenth of its time and seconds of weather;
//! `TWINLOCK_WEATHER=150` makes it so many seconds, with the keep-alive of the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::weather::{Chance, Weather};
use common::{Person, World, text};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use twinlock_client::client::{Client, Event, Options};
use twinlock_core::id::ConversationId;
use twinlock_core::invite::Address;
use twinlock_core::limits::Timing;
use twinlock_link::OsEntropy;

/// The room everybody is in.
const LOBBY: ConversationId = 1;
/// How long the weather lasts by default, seconds.
const SECONDS: u64 = 8;

/// How long the weather lasts, and the keep-alive of both ends.
fn scale() -> (Duration, Timing) {
    let seconds = std::env::var("TWINLOCK_WEATHER").map(|seconds| seconds.parse().unwrap());
    let seconds = seconds.unwrap_or(SECONDS);
    let mut timing = Timing::default();
    if seconds < 60 {
        for time in [&mut timing.ping_following, &mut timing.ping_idle, &mut timing.ping_answer] {
            *time /= 10;
        }
    }
    (Duration::from_secs(seconds), timing)
}

struct Stage {
    world: World,
    weather: Weather,
    timing: Timing,
    people: Vec<Person>,
    chance: Chance,
    lasts: Duration,
}

impl Stage {
    async fn new() -> Self {
        let (lasts, timing) = scale();
        let of_server = timing.clone();
        let world = World::new(|config| {
            config.timing = of_server;
            // A login that the weather takes is no guess.
            config.limits.logins_per_minute = 100_000;
        })
        .await;
        let chance = Chance::new();
        let weather = Weather::before(world.config.listen, &chance).await;
        let ada = world.owner("ada").await;
        let (client, _events) = ada.start(common::quick());
        let mut people = Vec::new();
        for name in ["bob", "eve"] {
            people.push(world.join(name, &ada.invite(&client).await).await);
        }
        client.close().await;
        people.insert(0, ada);
        while world.server.as_ref().unwrap().lines() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        Self { world, weather, timing, people, chance, lasts }
    }

    fn start(&self, who: usize) -> (Client, mpsc::Receiver<Event>) {
        let address = Address::new("127.0.0.1", self.weather.address.port()).unwrap();
        let options = Options {
            address: Some(address),
            timing: self.timing.clone(),
            longest_delay: Duration::from_secs(2),
            ..Options::default()
        };
        self.people[who].start(options)
    }

    fn lines(&self) -> usize {
        self.world.server.as_ref().unwrap().lines()
    }
}

/// Writes and sends lines until told to stop, then waits until all are recorded; says how many.
async fn writes(
    client: Client,
    mut events: mpsc::Receiver<Event>,
    name: &'static str,
    stop: Arc<AtomicBool>,
    downs: Arc<AtomicUsize>,
) -> usize {
    let outbox = client.state().clone();
    let (mut sent, mut recorded) = (0, 0);
    loop {
        if !stop.load(Ordering::Relaxed) {
            let lines: Vec<_> = (sent..sent + 3).map(|n| format!("{name} {n:06}")).collect();
            sent += lines.len();
            let messages = lines.iter().map(|line| ("lobby", line.as_bytes()));
            outbox.outbox().enqueue_many(messages, 1, &mut OsEntropy).unwrap();
            client.written().await.unwrap();
        } else if recorded == sent {
            client.close().await;
            return sent;
        }
        let pause = Instant::now() + Duration::from_millis(20);
        while let Ok(event) = tokio::time::timeout_at(pause, events.recv()).await {
            match event.unwrap() {
                Event::Recorded { .. } => recorded += 1,
                Event::Down { .. } => drop(downs.fetch_add(1, Ordering::Relaxed)),
                Event::Ended(error) => panic!("{name}: {error:?}"),
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_weather_every_line_arrives_once_and_in_order() {
    let stage = Stage::new().await;
    let (stop, downs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut writing = Vec::new();
    for (who, name) in [(0, "ada"), (1, "bob")] {
        let (client, events) = stage.start(who);
        let (stop, downs) = (stop.clone(), downs.clone());
        writing.push(tokio::spawn(writes(client, events, name, stop, downs)));
    }
    let (reader, mut events) = stage.start(2);
    reader.follow(LOBBY, 0).await.unwrap();
    let read = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (into, counted) = (read.clone(), downs.clone());
    let reading = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                Event::Entries { entries, .. } => {
                    let entries = entries.iter().map(|entry| (entry.n, text(entry)));
                    into.lock().unwrap().extend(entries);
                }
                Event::Down { .. } => drop(counted.fetch_add(1, Ordering::Relaxed)),
                Event::Ended(error) => assert_eq!(error, None),
                _ => {}
            }
        }
    });

    let (weather, chance) = (&stage.weather, &stage.chance);
    let began = Instant::now();
    let mut counts = [0; 5];
    // In the middle of it nobody hears of anybody for a good part of the time.
    let mut parting = [(0.4, true), (0.65, false)].into_iter().peekable();
    // One way or the other, or both.
    let mut silence =
        [(0.1, [true, false]), (0.25, [false, true]), (0.8, [true, true])].into_iter().peekable();
    while began.elapsed() < stage.lasts {
        let part = began.elapsed().as_secs_f64() / stage.lasts.as_secs_f64();
        if let Some((_, parted)) = parting.next_if(|(from, _)| part > *from) {
            weather.part(parted);
            counts[4] += usize::from(parted);
        }
        if let Some((_, ends)) = silence.next_if(|(from, _)| part > *from) {
            weather.swallow(ends);
            counts[2] += 1;
        }
        let what = chance.within(0, 10) as usize;
        match what {
            0..3 => weather.cut_one(),
            3 => weather.cut(),
            _ => weather.set_delay(Duration::from_millis(chance.within(0, 60))),
        }
        counts[[0, 0, 0, 1, 3, 3, 3, 3, 3, 3][what]] += 1;
        sleep(Duration::from_millis(chance.within(20, 400))).await;
    }
    weather.part(false);
    weather.set_delay(Duration::ZERO);
    stop.store(true, Ordering::Relaxed);
    let mut sent = Vec::new();
    for writing in writing {
        sent.push(timeout(common::LONG, writing).await.unwrap().unwrap());
    }
    let all = sent.iter().sum::<usize>();
    let until = Instant::now() + common::LONG;
    while read.lock().unwrap().len() < all {
        let read = read.lock().unwrap().len();
        assert!(Instant::now() < until, "{read} of {all} lines arrived");
        sleep(Duration::from_millis(5)).await;
    }
    reader.close().await;
    reading.await.unwrap();
    let [one, every, silent, delays, parted] = counts;
    eprintln!(
        "network: {:?}: {all} lines; {one} cuts of one line and {every} of all, {silent} times \
         silence, {delays} delays, {parted} partition; {} connections, {} lost",
        began.elapsed(),
        stage.weather.taken.load(Ordering::Relaxed),
        downs.load(Ordering::Relaxed)
    );
    let read = read.lock().unwrap();
    assert!(read.iter().map(|(n, _)| *n).eq(1..=all as u64), "no number twice or missing");
    for (name, sent) in ["ada", "bob"].into_iter().zip(sent) {
        let of: Vec<_> =
            read.iter().map(|(_, line)| line).filter(|l| l.starts_with(name)).collect();
        assert!(of.iter().map(|l| l.as_str()).eq((0..sent).map(|n| format!("{name} {n:06}"))));
        assert!(sent > 50, "{name} wrote {sent}");
    }
    assert!(parted == 1 && silent == 3 && every + one > 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_went_silent_is_noticed_by_both_ends_in_time() {
    let stage = Stage::new().await;
    // What the protocol says, and a little for a busy machine.
    let limit = stage.timing.ping_following + stage.timing.ping_answer;
    let late = Duration::from_millis(700);
    for ends in [[true, false], [false, true], [true, true]] {
        let (reader, mut events) = stage.start(2);
        reader.follow(LOBBY, 0).await.unwrap();
        common::until(&mut events, |event| matches!(event, Event::CaughtUp { .. })).await;
        assert_eq!(stage.lines(), 1);
        let began = Instant::now();
        stage.weather.swallow(ends);
        // It must not come back, or the server counts it anew.
        stage.weather.part(true);
        let server = async {
            while stage.lines() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
            began.elapsed()
        };
        let client = async {
            common::until(&mut events, |event| matches!(event, Event::Down { .. })).await;
            began.elapsed()
        };
        let (client, server) = tokio::join!(client, server);
        eprintln!("network: silent {ends:?}: the client after {client:?}, the server {server:?}");
        assert!(client < limit + late && server < limit + late, "{client:?} {server:?}");
        stage.weather.part(false);
        reader.close().await;
        while stage.lines() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_an_ack_notices_a_dead_line_as_soon_as_whoever_follows() {
    let mut stage = Stage::new().await;
    // Nobody follows, and an idle line may be silent for long.
    stage.timing.ping_idle = Duration::from_secs(600);
    let (client, mut events) = stage.start(0);
    common::until(&mut events, |event| matches!(event, Event::Up(_))).await;
    stage.weather.swallow([true, true]);
    let outbox = stage.people[0].state();
    let message = [("lobby", &b"is anybody there?"[..])];
    outbox.outbox().enqueue_many(message, 1, &mut OsEntropy).unwrap();
    client.written().await.unwrap();
    let began = Instant::now();
    let limit = stage.timing.ping_following + stage.timing.ping_answer;
    common::until(&mut events, |event| matches!(event, Event::Down { .. })).await;
    let took = began.elapsed();
    eprintln!("network: whoever waited for an ack noticed after {took:?}");
    assert!(took < limit + Duration::from_millis(700), "{took:?}");
    common::until(&mut events, |event| matches!(event, Event::Recorded { .. })).await;
    client.close().await;
}
