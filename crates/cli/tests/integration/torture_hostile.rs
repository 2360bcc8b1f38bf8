//! Clients that are deliberately slow, or open ten thousand connections. The server ends each at its
//! deadline. Each costs no more than the bounds below, and other clients are not affected.
//!
//! `TWINLOCK_TORTURE=full` (`make torture`) uses full sizes, waits for every deadline and asserts
//! its time. Otherwise all sizes are smaller, and the assertions also hold on a slow machine. In
//! both cases nothing may end before its deadline.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::raw::*;
use crate::common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust};

/// Connection slots of unauthenticated connections.
const PLACES: usize = 512;
/// Slots of one address.
const PLACES_EACH: usize = 8;
/// Memory for one slot: a TLS message of the maximum length (64 KiB), a record each way (18 KiB
/// each), and the bookkeeping.
const UNKNOWN: usize = 128 * 1024;
/// Memory for one slot over WebSocket: the fragments of a message of the maximum length (32 KiB),
/// another frame of that length, of which the last byte is missing, and the bookkeeping of TLS and
/// the login.
const UNKNOWN_WEB_SOCKET: usize = 160 * 1024;
/// From accept to the end of the TLS handshake.
const TLS: Duration = Duration::from_secs(10);
/// Longest delay after a deadline on a quiet machine.
const LATE: Duration = Duration::from_secs(1);
/// A deadline starts after our own clock, so nothing ends early; but clocks are coarse.
const EARLY: Duration = Duration::from_millis(100);
/// Interval between two checks of the server.
const PACE: Duration = Duration::from_millis(5);

/// Reads until the stream ends, which has to happen; a reset also ends it.
async fn ends(mut io: impl AsyncRead + Unpin) {
    let mut rest = Vec::new();
    let _reset = timeout(Duration::from_secs(120), io.read_to_end(&mut rest))
        .await
        .expect("the server drops it");
}

/// Sends a byte every 200 ms until the peer stops accepting them.
async fn drip(io: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) {
    let (read, mut write) = tokio::io::split(io);
    let dripping = async move {
        for byte in bytes {
            if !crate::common::raw::write(&mut write, &[byte]).await {
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

/// Sends these bytes and nothing more.
async fn stops(mut io: impl AsyncRead + AsyncWrite + Unpin, after: &[u8]) {
    assert!(crate::common::raw::write(&mut io, after).await);
    ends(io).await;
}

/// A connection that has sent HELLO and received CHALLENGE.
async fn challenged(card: &Card, from: Ipv4Addr) -> Io {
    let mut io = card.server.tls_from(from).await.unwrap();
    assert!(crate::common::raw::write(&mut io, &Card::hello()).await);
    io.read_exact(&mut [0; 4 + 1408]).await.unwrap();
    io
}

/// The number of steps at which a client can be slow; the first `SOON` have short deadlines.
const STEPS: usize = 15;
const SOON: usize = 9;

/// The behaviour of a slow client, and how long the server waits for it. No message is ever
/// complete.
fn slow(card: &Card, classic: SocketAddr, step: usize) -> (&'static str, u64, BoxFuture) {
    let card = card.clone();
    let from = neighbour(step as u32);
    let tcp = move |to| async move { tcp_from(from, to).await.unwrap() };
    let tls = move |server: Endpoint| async move { server.tls_from(from).await.unwrap() };
    let lines = || {
        let tls = ClientTls::new(ServerTrust::Learn, Alpn::Direct).unwrap();
        Endpoint { address: classic, tls, ..card.server.clone() }
    };
    let record = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc][..], &[3; 500]].concat();
    let hello = Card::hello();
    let proof = [&[3, 0, 0, 64][..], &[7; 63]].concat();
    let frame = [&[0x10, 0, 1, 32][..], &[7; 287]].concat();
    match step {
        0 => (
            "says nothing",
            10,
            Box::pin(async move { ends(tcp(card.server.address).await).await }),
        ),
        1 => ("drips the first record of TLS", 10, {
            Box::pin(async move { drip(tcp(card.server.address).await, record).await })
        }),
        2 => ("sends half the first record of TLS", 10, {
            Box::pin(async move { stops(tcp(card.server.address).await, &record[..250]).await })
        }),
        3 => ("sends no HELLO", 5, Box::pin(async move { ends(tls(card.server).await).await })),
        4 => ("drips HELLO", 5, Box::pin(async move { drip(tls(card.server).await, hello).await })),
        5 => ("sends half of HELLO", 5, {
            Box::pin(async move { stops(tls(card.server).await, &hello[..600]).await })
        }),
        6 => ("says nothing to a port for classic lines", 10, {
            Box::pin(async move { ends(tcp(classic).await).await })
        }),
        7 => ("sends no name of a classic key", 10, {
            let lines = lines();
            Box::pin(async move { ends(tls(lines).await).await })
        }),
        8 => ("drips the name of a classic key", 10, {
            let lines = lines();
            Box::pin(async move { drip(tls(lines).await, vec![b'a'; 32]).await })
        }),
        9 => ("sends no PROOF", 30, {
            Box::pin(async move { ends(challenged(&card, from).await).await })
        }),
        10 => ("drips PROOF", 30, {
            Box::pin(async move { drip(challenged(&card, from).await, proof).await })
        }),
        11 => ("sends half of PROOF", 30, {
            Box::pin(async move { stops(challenged(&card, from).await, &proof[..36]).await })
        }),
        12 => ("begins the header of a frame", 30, {
            Box::pin(async move {
                stops(card.connect().await.connection.into_stream(), &frame[..2]).await
            })
        }),
        13 => ("begins a frame and does not end it", 30, {
            Box::pin(async move {
                stops(card.connect().await.connection.into_stream(), &frame[..5]).await
            })
        }),
        14 => ("drips a frame", 30, {
            Box::pin(
                async move { drip(card.connect().await.connection.into_stream(), frame).await },
            )
        }),
        step => panic!("{step}"),
    }
}

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Asserts that the end came not before the deadline and not long after.
fn in_time(what: &str, deadline: Duration, took: Duration) {
    eprintln!("hostile: who {what}: dropped after {took:.2?}");
    assert!(took + EARLY > deadline, "who {what} is dropped at once: {took:?}");
    assert!(!full() || took < deadline + LATE, "who {what}: {took:?}");
}

#[test]
fn slow_client__is_dropped_at_the_deadline_of_each_step() {
    let host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.owner();
    let card = Card::of(&ada);
    let classic = host.printed_address("classic connections on ");
    // The other steps take half a minute.
    let steps = if full() { STEPS } else { SOON };
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
        line.append(LOBBY, "undisturbed").await.unwrap();
        while let Some(dropped) = slow_ones.join_next().await {
            let (what, deadline, took) = dropped.unwrap();
            in_time(what, deadline, took);
        }
        line.append(LOBBY, "as before").await.unwrap();
    });
}

#[test]
fn slow_client__is_dropped_at_the_proxy_header_deadline() {
    let host = Host::start_with(&["--proxy", "127.0.0.1"]);
    let key = host.address();
    here().block_on(async {
        let began = Instant::now();
        let silent = async {
            ends(tcp_from([127, 0, 0, 1].into(), key).await.unwrap()).await;
            in_time("sends no PROXY header", TLS, began.elapsed());
        };
        let mut header = proxy_header([1; 4]);
        // It is incomplete.
        header.pop();
        let dripping = async {
            drip(tcp_from([127, 0, 0, 1].into(), key).await.unwrap(), header).await;
            in_time("drips a PROXY header", TLS, began.elapsed());
        };
        tokio::join!(silent, dripping);
    });
}

/// Opens one connection from each of these addresses and sends the same bytes on each.
async fn fill(to: SocketAddr, from: Range<usize>, says: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for n in from {
        let mut tcp = tcp_from(neighbour(n as u32), to).await.unwrap();
        // Refused connections are counted later.
        crate::common::raw::write(&mut tcp, says).await;
        held.push(tcp);
    }
    held
}

/// Whether the server has not closed it.
fn is_open(tcp: &TcpStream) -> bool {
    tcp.try_read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

fn open(held: &[TcpStream]) -> usize {
    held.iter().filter(|tcp| is_open(tcp)).count()
}

/// Fills every slot with a client that has sent as much as the server buffers, and measures memory.
#[test]
fn connection_slot__slow_clients_are_bounded_and_slots_freed() {
    let (host, person, elsewhere) = (Host::start(), here(), elsewhere());
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let mut line = person.block_on(card.connect());
    let before = resident(pid);
    // Records of one message of nearly the maximum length, without its last byte.
    let message = [&[1, 0, 0xf0, 0][..], &[3; 0xefff]].concat();
    let records: Vec<u8> = message
        .chunks(16 * 1024)
        .flat_map(|part| [&[0x16, 3, 3], &(part.len() as u16).to_be_bytes()[..], part].concat())
        .collect();
    let held = elsewhere.block_on(fill(card.server.address, 0..PLACES, &records));
    let (grown, slow_ones) = person.block_on(async {
        // Until the server has buffered all that it accepts.
        let (mut grown, mut slow_ones, mut same) = (0, 0, 0);
        let until = Instant::now() + LONG;
        while same < 50 {
            assert!(Instant::now() < until, "it grows without end: {grown}");
            line.append(LOBBY, "undisturbed").await.unwrap();
            let now = resident(pid).saturating_sub(before);
            (grown, slow_ones, same) =
                if now > grown { (now, open(&held), 0) } else { (grown, slow_ones, same + 1) };
        }
        (grown, slow_ones)
    });
    eprintln!(
        "hostile: {slow_ones} slow ones: {:.1} KiB each",
        grown as f64 / 1024.0 / slow_ones as f64
    );
    assert!(grown < PLACES * UNKNOWN, "{} MiB", grown / MIB);
    if full() {
        // On a slower machine, the server may have closed the first ones before the last connected.
        assert!(slow_ones > PLACES * 9 / 10, "{slow_ones}");
        assert!(grown < slow_ones * UNKNOWN, "{grown} bytes of {slow_ones}");
    }
    drop(held);
    // Every slot is free again: as many connections are let in at once, and one more evicts one of
    // them.
    person.block_on(async {
        let (mut held, mut next, mut times) = (Vec::new(), PLACES, 0);
        let until = Instant::now() + LONG;
        loop {
            let missing = PLACES - held.len();
            held.extend(fill(card.server.address, next..next + missing, &[]).await);
            next += missing;
            let places = open(&held);
            let more = card.server.tls_from([127, 0, 0, 1].into()).await.is_ok();
            times = if more && places == PLACES { times + 1 } else { 0 };
            // A connection that was closed just now may not be seen at the first check. A slot is
            // not evicted before it is a second old.
            if times == 2 && open(&held) < PLACES {
                break;
            }
            assert!(Instant::now() < until, "{places} of {PLACES} have come back");
            held.retain(is_open);
        }
    });
    let there_is = async {
        loop {
            if let Ok(io) = card.server.tls_from([127, 0, 0, 1].into()).await {
                let login =
                    RawClient::over(io, card.device.credential(), card.server.key, b"", |_| ());
                return login.await.unwrap();
            }
        }
    };
    let mut phone = person
        .block_on(async { timeout(LONG, there_is).await.expect("a place once all are gone") });
    person.block_on(phone.append(LOBBY, "back")).unwrap();
}

/// A frame of a WebSocket client: its first byte, and a payload that the mask 0 leaves as it is.
fn web_socket_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[first, 0x80 | 126], &length[..], &[0; 4], payload].concat()
}

/// Logs in over WebSocket up to CHALLENGE, and then sends as much of a message as the server
/// buffers.
async fn fill_web_socket(server: Endpoint, from: Ipv4Addr) -> Io {
    const MOST: usize = 32 * 1024;
    let mut io = server.tls_from(from).await.unwrap();
    let request = "GET /twinlock HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                   Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n";
    let hello = web_socket_frame(0x82, &Card::hello());
    assert!(crate::common::raw::write(&mut io, &[request.as_bytes(), &hello].concat()).await);
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        assert!(io.read_buf(&mut answer).await.unwrap() > 0, "{}", answer.escape_ascii());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    let challenge = 4 + 1408;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    while answer.len() < end + 4 + challenge {
        assert!(io.read_buf(&mut answer).await.unwrap() > 0, "no CHALLENGE");
    }
    // The second fragment makes the buffer of the first grow, to twice its size.
    let fragments = [web_socket_frame(0x02, &[7; MOST - 1]), web_socket_frame(0x00, &[7])].concat();
    let mut last = web_socket_frame(0x80, &[7; MOST]);
    last.pop();
    assert!(crate::common::raw::write(&mut io, &[fragments, last].concat()).await);
    io
}

/// Unauthenticated WebSockets, each with as much as the server buffers, and their memory.
#[test]
fn connection_slot__web_socket_clients_are_bounded() {
    let count: u32 = if full() { 4096 } else { 256 };
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert!(hard.is_none_or(|hard| hard > u64::from(count) + 300), "too few open files: {hard:?}");
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("settings");
    let limits = format!("[limits]\nunauthenticated = {}\n", count as usize + PLACES_EACH);
    std::fs::write(&config, limits).unwrap();
    let host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let (person, elsewhere) = (here(), elsewhere());
    let mut line = person.block_on(card.connect());
    let before = resident(pid);
    let tls = ClientTls::new(ServerTrust::Learn, Alpn::Http).unwrap();
    let server = Endpoint { tls, ..card.server.clone() };
    let turns = Arc::new(Semaphore::new(16));
    let mut filling = JoinSet::new();
    for n in 0..count {
        let (server, turns) = (server.clone(), turns.clone());
        let one = async move {
            let _turn = turns.acquire().await;
            fill_web_socket(server, neighbour(n)).await
        };
        filling.spawn_on(one, elsewhere.handle());
    }
    let began = Instant::now();
    let mut held = elsewhere.block_on(filling.join_all());
    let took = began.elapsed();
    let grown = person.block_on(async {
        // Until the server has buffered all that it accepts.
        let (mut grown, mut same) = (0, 0);
        while same < 50 {
            line.append(LOBBY, "undisturbed").await.unwrap();
            let now = resident(pid).saturating_sub(before);
            (grown, same) = if now > grown { (now, 0) } else { (grown, same + 1) };
        }
        grown
    });
    let open = elsewhere.block_on(async {
        let mut open = 0;
        for io in &mut held {
            let ended = timeout(Duration::ZERO, io.read(&mut [0])).await;
            open += usize::from(ended.is_err());
        }
        open
    });
    eprintln!(
        "hostile: {open} of {count} half-open WebSockets after {took:.1?}: {:.1} KiB each",
        grown as f64 / 1024.0 / f64::from(count)
    );
    assert!(grown < count as usize * UNKNOWN_WEB_SOCKET, "{} MiB", grown / MIB);
    // They have half a minute for PROOF.
    assert!(!full() || open == count as usize, "{open} of {count}");
    person.block_on(line.append(LOBBY, "as before")).unwrap();
}

#[test]
fn connection_slot__one_address_flood_gets_eight_slots() {
    let many = if full() { 10_000 } else { 1000 };
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    assert!(hard.is_none_or(|hard| hard > many as u64 + 300), "too few open files: {hard:?}");
    let host = Host::start();
    let ada = host.owner();
    let (card, pid) = (Card::of(&ada), host.running().pid());
    let (person, elsewhere) = (here(), elsewhere());
    let mut line = person.block_on(card.connect());
    let before = resident(pid);
    let mut flood = JoinSet::new();
    let address = card.server.address;
    for _ in 0..many {
        let one = async move {
            let began = Instant::now();
            let mut tcp = tcp_from(neighbour(7), address).await.unwrap();
            // A client that sends nothing does not notice that the system has dropped it.
            crate::common::raw::write(&mut tcp, &[0x16]).await;
            let _reset = timeout(LONG, tcp.read(&mut [0])).await.expect("it is dropped");
            began.elapsed()
        };
        flood.spawn_on(one, elsewhere.handle());
    }
    let began = Instant::now();
    let ended = elsewhere.spawn(async move {
        let mut took = Vec::new();
        while let Some(one) = flood.join_next().await {
            took.push(one.unwrap());
        }
        (took, began.elapsed())
    });
    let (grown, ended) = person.block_on(async {
        let mut grown = 0;
        while !ended.is_finished() {
            line.append(LOBBY, "undisturbed").await.unwrap();
            grown = resident(pid).saturating_sub(before).max(grown);
            tokio::time::sleep(PACE).await;
        }
        (grown, ended.await)
    });
    let (took, lasted) = ended.unwrap();
    let waiting = took.iter().filter(|took| **took + EARLY > TLS).count();
    eprintln!(
        "hostile: of {}: {waiting} were left to wait, all in {lasted:.1?}; the server grew by {} \
         KiB at most",
        took.len(),
        grown >> 10
    );
    // Eight hold a slot until their deadline, then the next ones; connections without a slot are
    // closed at once. On a busy machine those wait too.
    assert!(waiting >= PLACES_EACH, "{waiting}");
    let turns = (lasted + EARLY).as_secs() / TLS.as_secs();
    assert!(!full() || waiting <= turns as usize * PLACES_EACH, "{waiting} in {lasted:?}");
    // Connections that hold a slot, and those accepted but not yet handled.
    assert!(grown < PLACES * UNKNOWN / 4, "{} MiB", grown / MIB);
    person.block_on(line.append(LOBBY, "as before")).unwrap();
}
