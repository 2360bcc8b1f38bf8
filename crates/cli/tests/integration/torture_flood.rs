//! A flood of logins from many addresses, while a logged-in client sends messages.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) lasts longer and asserts the latency of acks; this
//! needs an otherwise idle machine. Otherwise the flood is short, and no assertion depends on time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::raw::*;
use crate::common::*;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_transport::tls::TlsFault;

/// Concurrent connections of the flood: more than the unauthenticated slots.
const ATTACKERS: usize = 600;
/// Those that send only the first TLS message, which costs them nothing.
const CHEAP: usize = 200;
/// The threads of the handshake runtime.
const HANDSHAKE_THREADS: &str = "twinlock-login";
/// Memory for an unauthenticated connection: a TLS message of the maximum length (64 KiB), a record
/// each way, and the bookkeeping. There are 512 of them at most.
const EACH: usize = 128 * 1024;
const PLACES: usize = 512;
/// An ack takes longer than this on a busy machine.
const QUIET: Duration = Duration::from_millis(10);
/// Least share of a core that the flood must use in the handshake runtime in each second. A machine
/// of two cores, shared with the attackers and the client, leaves about one.
const LEAST: f64 = 0.5;
/// The server's deadline for TLS.
const TLS: Duration = Duration::from_secs(10);
/// Pause between two messages of the client.
const PACE: Duration = Duration::from_millis(5);

/// Results of the flood.
#[derive(Default)]
struct Got {
    stop: AtomicBool,
    next: AtomicU32,
    challenges: AtomicUsize,
    busy: AtomicUsize,
    /// No slot was free.
    turned_away: AtomicUsize,
    /// At a deadline, or after TLS.
    dropped: AtomicUsize,
    cheap: AtomicUsize,
}

impl Got {
    /// The counter for a connection that ended before TLS was established.
    fn left(&self, began: Instant) -> &AtomicUsize {
        if began.elapsed() < TLS { &self.turned_away } else { &self.dropped }
    }
}

/// Whether the server closed the connection, as opposed to never being reached.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Logs in with an unknown device repeatedly, each time from another address.
async fn attack(card: Card, got: Arc<Got>, hello: Arc<Vec<u8>>) {
    while !got.stop.load(Ordering::Relaxed) {
        let from = neighbour(got.next.fetch_add(1, Ordering::Relaxed));
        let one = async {
            let began = Instant::now();
            let mut io = match card.server.tls_from(from).await {
                Ok(io) => io,
                Err(TlsFault::Io(error)) if is_end(&error) => return got.left(began),
                // Otherwise the flood would be thinner than it looks.
                Err(error) => panic!("{error}"),
            };
            let mut header = [0; 4];
            if !write(&mut io, &hello).await || io.read_exact(&mut header).await.is_err() {
                return &got.dropped;
            }
            if header[0] == 2 { &got.challenges } else { &got.busy }
        };
        timeout(LONG, one).await.expect("an end").fetch_add(1, Ordering::Relaxed);
    }
}

/// The first TLS message of our client.
async fn client_hello(card: &Card) -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Endpoint { address: listener.local_addr().unwrap(), ..card.server.clone() };
    let client =
        tokio::spawn(async move { server.tls_from([127, 0, 0, 1].into()).await.map(drop) });
    let (mut tcp, _) = listener.accept().await.unwrap();
    let mut header = [0; 5];
    tcp.read_exact(&mut header).await.unwrap();
    let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    tcp.read_exact(&mut record).await.unwrap();
    drop(tcp);
    client.await.unwrap().unwrap_err();
    [&header[..], &record].concat()
}

/// Sends the same first message repeatedly, and disconnects once it is answered.
async fn attack_tls(card: Card, got: Arc<Got>, first: Arc<Vec<u8>>) {
    while !got.stop.load(Ordering::Relaxed) {
        let from = neighbour(got.next.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        let mut tcp = tcp_from(from, card.server.address).await.unwrap();
        let answered = async {
            let mut answer = [0; 1024];
            write(&mut tcp, &first).await && tcp.read(&mut answer).await.is_ok_and(|n| n > 0)
        };
        let answered = timeout(LONG, answered).await.expect("an end");
        let what = if answered { &got.cheap } else { got.left(began) };
        what.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends messages for `lasts` and calls `look` after each ack; returns the latencies, sorted.
fn talk(
    person: &tokio::runtime::Runtime,
    line: &mut RawClient,
    lasts: Duration,
    mut look: impl FnMut(),
) -> Vec<Duration> {
    person.block_on(async {
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < lasts {
            let asked = Instant::now();
            line.append(LOBBY, "anybody there?").await.unwrap();
            took.push(asked.elapsed());
            look();
            tokio::time::sleep(PACE).await;
        }
        took.sort();
        took
    })
}

fn at(took: &[Duration], part: f64) -> Duration {
    took[((took.len() - 1) as f64 * part) as usize]
}

#[test]
fn login_flood__session_is_served_and_memory_is_bounded() {
    let lasts = Duration::from_secs(if full() { 20 } else { 3 });
    let host = Host::start();
    let ada = host.owner();
    let card = Card::of(&ada);
    let pid = host.running().pid();
    let (person, elsewhere) = (here(), elsewhere());
    let mut line = person.block_on(card.connect());

    let quiet = talk(&person, &mut line, lasts / 4, || ());
    let before = resident(pid);
    let (got, hello) = (Arc::new(Got::default()), Arc::new(Card::hello()));
    let first = Arc::new(elsewhere.block_on(client_hello(&card)));
    let mut flood = JoinSet::new();
    for n in 0..ATTACKERS {
        let (card, got) = (card.clone(), got.clone());
        if n < CHEAP {
            flood.spawn_on(attack_tls(card, got, first.clone()), elsewhere.handle());
        } else {
            flood.spawn_on(attack(card, got, hello.clone()), elsewhere.handle());
        }
    }
    // Once the first were turned away, every slot is taken.
    let full_house = async {
        while got.turned_away.load(Ordering::Relaxed) < 20 {
            tokio::time::sleep(PACE).await;
        }
    };
    person.block_on(async { timeout(LONG, full_house).await }).expect("a full house");
    let (cpu_before, began) = (cpu(pid, HANDSHAKE_THREADS), Instant::now());
    let counts = || {
        [&got.challenges, &got.busy, &got.turned_away, &got.dropped, &got.cheap]
            .map(|n| n.load(Ordering::Relaxed))
    };
    let at_first = counts();
    // The flood must not thin out while the acks are measured.
    let (mut seconds, mut last, mut second) = (Vec::new(), (cpu_before[0], at_first), began);
    let flooded = talk(&person, &mut line, lasts, || {
        let took = second.elapsed();
        if took >= Duration::from_secs(1) {
            let now = (cpu(pid, HANDSHAKE_THREADS)[0], counts());
            let share = now.0.saturating_sub(last.0).as_secs_f64() / took.as_secs_f64();
            seconds.push((share, now.1[0] - last.1[0], now.1[2] - last.1[2]));
            (last, second) = (now, Instant::now());
        }
    });
    let (cpu_after, took) = (cpu(pid, HANDSHAKE_THREADS), began.elapsed());
    let [handshakes, all] = [0, 1].map(|i| (cpu_after[i] - cpu_before[i]).as_secs_f64());
    let grown = resident(pid).saturating_sub(before);
    let done: Vec<_> = counts().iter().zip(at_first).map(|(now, then)| now - then).collect();
    got.stop.store(true, Ordering::Relaxed);
    elsewhere.block_on(async {
        while let Some(attacker) = flood.join_next().await {
            attacker.unwrap();
        }
    });

    let each = |n: usize| n as f64 / took.as_secs_f64();
    eprintln!(
        "flood: {:.0} CHALLENGE, {:.0} ERROR busy, {:.0} turned away, {:.0} dropped later, \
         {:.0} of TLS alone a second; the server took {:.0} % of a core, {:.0} % of that in \
         handshakes, and grew by {:.1} MiB",
        each(done[0]),
        each(done[1]),
        each(done[2]),
        each(done[3]),
        each(done[4]),
        100.0 * all / took.as_secs_f64(),
        100.0 * handshakes / all,
        grown as f64 / MIB as f64,
    );
    for (what, took) in [("quiet", &quiet), ("flooded", &flooded)] {
        eprintln!(
            "flood: {what}: {} acks, p50 {:?}, p99 {:?}, worst {:?}",
            took.len(),
            at(took, 0.5),
            at(took, 0.99),
            at(took, 1.0)
        );
    }
    assert!(done[0] > 0, "nobody got as far as a handshake");
    assert!(done[2] > 0, "there were places");
    eprintln!(
        "flood: of a core at the doors, CHALLENGE, turned away, in each second: {seconds:.2?}"
    );
    if full() {
        // On a busy machine, other processes take that share.
        let thin =
            |(share, challenges, _): &(f64, usize, usize)| *share < LEAST || *challenges == 0;
        assert!(!seconds.is_empty() && !seconds.iter().any(thin), "{seconds:.2?}");
        // Most connections wait in the kernel's queue, and there may be free slots for a moment.
        let crowded = seconds.iter().filter(|(_, _, turned_away)| *turned_away > 0).count();
        assert!(crowded > seconds.len() * 3 / 4, "{seconds:.2?}");
    }
    assert!(grown < PLACES * EACH, "{} MiB", grown / MIB);
    // The flood uses mostly the handshake runtime, where it delays only itself.
    assert!(handshakes > all / 2.0, "{handshakes} of {all} s of CPU");
    if full() {
        let (before, now) = (at(&quiet, 0.99), at(&flooded, 0.99));
        let quiet = if before < QUIET { "" } else { "; but the machine is not a quiet one" };
        assert!(
            now < Duration::from_millis(50),
            "{before:?} without a flood, {now:?} in it{quiet}"
        );
    }
}
