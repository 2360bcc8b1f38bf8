//! Whoever is slow on purpose, comes ten thousand times, never reads or never stops: each is ended
//! in its time or waits, costs what is said here and no more, and nobody else notices.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) has full sizes, waits for every deadline and asserts
//! when it came. Without it there are fewer of everything, and what is asserted needs no clock.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

mod common;
#[path = "common/raw.rs"]
mod raw;

use std::time::{Duration, Instant};

use common::*;
use raw::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_core::proto::{self, request::Op};
use twinlock_core::session::Session;
use twinlock_link::tls::{Alpn, ClientTls, Trust};

/// Places of those who are not logged in.
const PLACES: usize = 512;
/// Of them, of one address.
const PLACES_EACH: usize = 8;
/// What the server may keep for one: a message of TLS as long as one may be (64 KiB), a record each
/// way (18 KiB each), and what counts them.
const UNKNOWN: usize = 128 * 1024;
/// What a line may hold: 256 KiB sealed and a frame beyond it, what is being read (128 KiB) and
/// decoded of it, 1 MiB of appends, a buffer of TLS. Doubled for what the allocator keeps of it.
const LINE: usize = 4 * MIB;
/// And all lines together: the tails of followed conversations, 512 KiB each, here of one; what the
/// record keeps of its pages for writing and reading, 2 MiB for each of five connections; the
/// entries between recorder and followers.
const SHARED: usize = 24 * MIB;
/// What comes later than a deadline on a quiet machine.
const LATE: Duration = Duration::from_secs(5);

/// Reads to the end, which comes; a reset is one.
async fn ends(mut io: impl AsyncRead + Unpin) {
    let mut rest = Vec::new();
    let _reset = timeout(Duration::from_secs(120), io.read_to_end(&mut rest))
        .await
        .expect("the server drops it");
}

/// Sends a byte every 200 ms for as long as somebody takes it.
async fn drip(io: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) {
    let (read, mut write) = tokio::io::split(io);
    let dripping = async move {
        for byte in bytes {
            if !raw::write(&mut write, &[byte]).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ends(read) => {}
        () = dripping => {}
    }
}

/// What a slow one does, and how long the server waits for it.
fn slow(card: &Card, classic: u16, step: usize) -> (&'static str, u64, BoxFuture) {
    let card = card.clone();
    let from = neighbour(step as u32);
    let tcp = move |to: Card| async move { tcp_from(from, to.address).await.unwrap() };
    match step {
        0 => ("says nothing", 10, Box::pin(async move { ends(tcp(card).await).await })),
        1 => ("drips the first record of TLS", 10, {
            // A header that is right, of a record that never is whole.
            let record = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc][..], &[3; 500]].concat();
            Box::pin(async move { drip(tcp(card).await, record).await })
        }),
        2 => ("sends no HELLO", 5, {
            Box::pin(async move { ends(card.tls_from(from).await.unwrap()).await })
        }),
        3 => ("drips HELLO", 5, {
            Box::pin(async move { drip(card.tls_from(from).await.unwrap(), Card::hello()).await })
        }),
        4 => ("says nothing to a port for classic lines", 10, {
            Box::pin(async move {
                ends(tcp_from(from, ([127, 0, 0, 1], classic).into()).await.unwrap()).await;
            })
        }),
        5 => ("sends no name of a classic key", 10, {
            let tls = ClientTls::new(Trust::Learn, Alpn::Optional).unwrap();
            let card = Card { address: ([127, 0, 0, 1], classic).into(), tls, ..card };
            Box::pin(async move { ends(card.tls_from(from).await.unwrap()).await })
        }),
        6 => ("sends no PROOF", 30, {
            Box::pin(async move {
                let mut io = card.tls_from(from).await.unwrap();
                assert!(raw::write(&mut io, &Card::hello()).await);
                let mut challenge = [0; 4 + 1408];
                io.read_exact(&mut challenge).await.unwrap();
                ends(io).await;
            })
        }),
        7 => ("begins a frame and does not end it", 30, {
            Box::pin(async move {
                let mut io = card.connect().await.line.into_stream();
                assert!(raw::write(&mut io, &[0x10, 0, 1, 32, 7]).await);
                ends(io).await;
            })
        }),
        8 => ("drips a frame", 30, {
            Box::pin(async move {
                let io = card.connect().await.line.into_stream();
                drip(io, [&[0x10, 0, 1, 32][..], &[7; 288]].concat()).await;
            })
        }),
        step => panic!("{step}"),
    }
}

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[test]
fn who_is_slow_at_any_step_is_dropped_in_time() {
    let host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.owner();
    let card = Card::of(&ada);
    host.running().wait_lines(2);
    let said = host.running().out();
    let classic = said.lines().find_map(|line| line.strip_prefix("classic lines on ")).unwrap();
    let classic = classic.rsplit_once(':').unwrap().1.parse().unwrap();
    // The longest wait half a minute.
    let steps = if full() { 9 } else { 6 };
    here().block_on(async {
        let mut slow_ones = JoinSet::new();
        for step in 0..steps {
            let (what, deadline, one) = slow(&card, classic, step);
            slow_ones.spawn(async move {
                let began = Instant::now();
                one.await;
                (what, Duration::from_secs(deadline), began.elapsed())
            });
        }
        let mut line = card.connect().await;
        line.says("undisturbed").await;
        while let Some(dropped) = slow_ones.join_next().await {
            let (what, deadline, took) = dropped.unwrap();
            eprintln!("hostile: who {what}: dropped after {took:.1?}");
            assert!(!full() || took < deadline + LATE, "who {what}: {took:?}");
        }
        line.says("as before").await;
    });
}

#[test]
fn who_is_slow_behind_a_proxy_is_dropped_too() {
    let host = Host::start_with(&["--proxy", "127.0.0.1"]);
    let key = host.address();
    here().block_on(async {
        let began = Instant::now();
        let silent = async { ends(tcp_from([127, 0, 0, 1].into(), key).await.unwrap()).await };
        // Without its last byte.
        let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[1; 11]].concat();
        let dripping =
            async { drip(tcp_from([127, 0, 0, 1].into(), key).await.unwrap(), header).await };
        tokio::join!(silent, dripping);
        eprintln!(
            "hostile: a PROXY header that does not come: dropped after {:.1?}",
            began.elapsed()
        );
        assert!(!full() || began.elapsed() < Duration::from_secs(10) + LATE);
    });
}

/// Fills every place with somebody who has sent as much as is kept, and measures.
#[test]
fn every_place_taken_by_somebody_slow_costs_what_is_said_and_comes_back() {
    let (host, person, elsewhere) = (Host::start(), here(), elsewhere());
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let mut line = person.block_on(card.connect());
    let before = resident(pid);
    // Records of one message, almost as long as one may be, less its last byte.
    let message = [&[1, 0, 0xf0, 0][..], &[3; 0xefff]].concat();
    let records: Vec<u8> = message
        .chunks(16 * 1024)
        .flat_map(|part| [&[0x16, 3, 3], &(part.len() as u16).to_be_bytes()[..], part].concat())
        .collect();
    let held = elsewhere.block_on(async {
        let mut held = Vec::new();
        for n in 0..PLACES {
            let mut tcp = tcp_from(neighbour(n as u32), card.address).await.unwrap();
            raw::write(&mut tcp, &records).await;
            held.push(tcp);
        }
        held
    });
    let grown = person.block_on(async {
        // Until it has taken all it takes.
        let (mut grown, mut same) = (0, 0);
        let until = Instant::now() + LONG;
        while same < 50 {
            assert!(Instant::now() < until, "it grows without end: {grown}");
            line.says("undisturbed").await;
            let now = resident(pid).saturating_sub(before);
            same = if now > grown { 0 } else { same + 1 };
            grown = grown.max(now);
        }
        grown
    });
    let open = |tcp: &&tokio::net::TcpStream| {
        tcp.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let open = held.iter().filter(open).count();
    eprintln!("hostile: {open} slow ones: {:.1} KiB each", grown as f64 / 1024.0 / open as f64);
    assert!(!full() || open > PLACES / 2, "{open}");
    assert!(grown < PLACES * UNKNOWN, "{} MiB", grown / MIB);
    drop(held);
    // There is a place again.
    let there_is = async {
        loop {
            if let Ok(io) = card.tls_from([127, 0, 0, 1].into()).await {
                return Raw::over(io, card.credential(), card.key).await;
            }
        }
    };
    let mut phone = person
        .block_on(async { timeout(LONG, there_is).await.expect("a place once all are gone") });
    person.block_on(phone.says("back"));
}

#[test]
fn ten_thousand_connections_of_one_address_take_eight_places() {
    let many = if full() { 10_000 } else { 1000 };
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert!(hard.is_none_or(|hard| hard > many + 300), "too few open files: {hard:?}");
    let host = Host::start();
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let (person, elsewhere) = (here(), elsewhere());
    let mut line = person.block_on(card.connect());
    let before = resident(pid);
    let mut flood = JoinSet::new();
    let address = card.address;
    for _ in 0..many {
        let one = async move {
            // What the system refuses before the server sees it, it refuses.
            let mut tcp = tcp_from(neighbour(7), address).await.ok()?;
            // Who says nothing does not learn that the system has dropped it.
            raw::write(&mut tcp, &[0x16]).await;
            let mut byte = [0];
            let began = Instant::now();
            let _reset = timeout(LONG, tcp.read(&mut byte)).await.expect("it is dropped");
            // Not at once, but at the deadline of TLS.
            Some(began.elapsed() > Duration::from_secs(8))
        };
        flood.spawn_on(one, elsewhere.handle());
    }
    person.block_on(async {
        for n in 0..100 {
            line.says(&format!("undisturbed {n}")).await;
        }
    });
    let grown = resident(pid).saturating_sub(before);
    let (connected, waiting) = elsewhere.block_on(async {
        let (mut connected, mut waiting) = (0, 0);
        while let Some(one) = flood.join_next().await {
            let one = one.unwrap();
            connected += u64::from(one.is_some());
            waiting += usize::from(one == Some(true));
        }
        (connected, waiting)
    });
    eprintln!(
        "hostile: of {connected}: {waiting} were left to wait; the server grew by {} KiB",
        grown >> 10
    );
    assert!(connected > many / 2 && waiting > 0, "{connected} of {many}, {waiting} waited");
    // On a machine that does something else, others wait too.
    assert!(!full() || waiting <= 3 * PLACES_EACH, "{waiting}");
    // Those in the gate, and what is accepted and not yet looked at.
    assert!(grown < PLACES * UNKNOWN / 4, "{} MiB", grown / MIB);
    person.block_on(line.says("as before"));
}

/// Lines of one member each, which may be sixteen.
fn lines(card: &Card, count: usize) -> impl Future<Output = Vec<Raw>> {
    let card = card.clone();
    async move {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.push(card.connect().await);
        }
        lines
    }
}

#[test]
fn followers_that_never_read_cost_a_bounded_memory() {
    let (count, batches) = if full() { (15, 200) } else { (8, 30) };
    let host = Host::start();
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let bob = Card::of(&host.member(&ada, "bob"));
    here().block_on(async {
        let mut sender = card.connect().await;
        let before = resident(pid);
        let mut deaf = lines(&bob, count).await;
        for line in &mut deaf {
            let follow = proto::Follow { conversation: LOBBY, after: 0 };
            line.ask(Op::Follow(follow)).await;
            line.be_deaf(true);
        }
        let (text, mut most) = ("x".repeat(32 * 1024), 0);
        for _ in 0..batches {
            let ids: Vec<u64> = (0..32).map(|_| sender.post([append(LOBBY, &text)])).collect();
            sender.answer(ids[31]).await;
            most = most.max(resident(pid).saturating_sub(before));
        }
        eprintln!(
            "hostile: {count} followers that miss {} MiB each: the server grew by {} MiB",
            batches,
            most / MIB
        );
        assert!(most < SHARED + (count + 1) * LINE, "{} MiB", most / MIB);
    });
}

#[test]
fn senders_that_never_read_an_ack_cost_a_bounded_memory() {
    let count = if full() { 15 } else { 1 };
    let host = Host::start();
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let bob = Card::of(&host.member(&ada, "bob"));
    here().block_on(async {
        let mut person = card.connect().await;
        let before = resident(pid);
        let mut deaf = lines(&bob, count).await;
        let mut sent = 0;
        for line in &mut deaf {
            line.be_deaf(true);
            // Until the server takes no more of it: the acks fill what the kernel holds, then what
            // the server does, and then nothing is read.
            loop {
                line.post((0..500).map(|_| append(LOBBY, "x")));
                sent += 500;
                let out = |session: &Session| session.outgoing().len();
                let mut left = out(line.line.session());
                while left > 0 {
                    let pushed = line.line.wait(Some(left - 1));
                    if timeout(Duration::from_secs(2), pushed).await.is_err() {
                        break;
                    }
                    left = out(line.line.session());
                }
                if left > 0 {
                    break;
                }
            }
            person.says("undisturbed").await;
        }
        let grown = resident(pid).saturating_sub(before);
        eprintln!(
            "hostile: {count} senders, {sent} messages, no ack read: the server grew by {} MiB",
            grown / MIB
        );
        assert!(grown < SHARED + (count + 1) * LINE, "{} MiB", grown / MIB);
        // Who reads again gets every ack.
        let mut late = deaf.pop().unwrap();
        late.be_deaf(false);
        late.says("I am back").await;
    });
}
