//! The origin bridge over a real TLS socket: unchanged origin clients, and hostile ones.

use std::time::{Duration, Instant};

use crate::common::classic::*;
use crate::common::log::Log;
use crate::common::*;
use data_encoding::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::Level;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::classic::origin::Bridge;
use twinlock_core::proto::{ClassicForm, RefusalReason};
use twinlock_transport::OsEntropy;

struct Stage {
    host: TestServer,
    ada: RawClient,
    plain: [u8; 32],
    mac: [u8; 32],
}

/// The owner, and a key of each form for the lobby.
async fn stage(change: impl FnOnce(&mut twinlock_server::Config)) -> Stage {
    let host = TestServer::start_with(|config| {
        both_ports(config);
        config.classic.tarpit_delay = Duration::from_millis(1);
        change(config);
    })
    .await;
    let (_, mut ada) = host.owner().await;
    let plain = add_key(&mut ada, "old", LOBBY, ClassicForm::Origin).await.unwrap();
    let mac = add_key(&mut ada, "oldmac", LOBBY, ClassicForm::OriginHmac).await.unwrap();
    Stage { host, ada, plain, mac }
}

fn sealed(bridge: &Bridge, text: &str) -> Vec<u8> {
    bridge.seal(text, &mut OsEntropy).into_bytes()
}

/// A single read, as the origin's client reads its answer.
async fn answer(io: &mut Stream, bridge: &Bridge) -> (String, bool) {
    let mut answer = vec![0; 4096];
    let n = soon("an answer", io.read(&mut answer)).await.unwrap();
    assert!(n > 0, "the connection was closed");
    let lf = answer[n - 1] == b'\n';
    (bridge.open(&answer[..n - usize::from(lf)]).unwrap(), lf)
}

fn is_receipt(text: &str) {
    // Message received at YYYY-MM-DD HH:MM:SS
    let time = text.strip_prefix("Message received at ").unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00");
}

#[tokio::test]
async fn bridge__messages_pass_with_or_without_newline_and_split() {
    // Tolerates any pause of the machine between two pieces.
    let patient = |config: &mut twinlock_server::Config| config.classic.pause = SOON;
    let Stage { host, mut ada, plain, mac } = stage(patient).await;
    let mut expected = Vec::new();
    for (form, key, name) in
        [(ClassicScheme::Origin, &plain, "old"), (ClassicScheme::OriginHmac, &mac, "oldmac")]
    {
        let bridge = bridge(form, key);
        let mut io = try_bridge(&host).await.unwrap();
        let long = "x".repeat(6000);
        for text in ["hello", "", "exactly 16 bytes", "Grüße ☃", &long] {
            send(&mut io, sealed(&bridge, text)).await;
            let (receipt, lf) = answer(&mut io, &bridge).await;
            is_receipt(&receipt);
            assert!(!lf);
            // In pieces that are not whole blocks.
            for piece in sealed(&bridge, text).chunks(31) {
                send(&mut io, piece).await;
            }
            assert!(!answer(&mut io, &bridge).await.1);
            for _ in 0..2 {
                expected.push((5, format!("ada:{name}"), text.to_owned()));
            }
        }
        // The line end alone, then lines, and lines in pieces.
        send(&mut io, sealed(&bridge, "line end later")).await;
        assert!(!answer(&mut io, &bridge).await.1);
        send(&mut io, b"\n").await;
        expected.push((5, format!("ada:{name}"), "line end later".to_owned()));
        for text in ["a", "b", &long] {
            let line = [&sealed(&bridge, text)[..], b"\n"].concat();
            for piece in line.chunks(97) {
                send(&mut io, piece).await;
            }
            let (receipt, lf) = answer(&mut io, &bridge).await;
            is_receipt(&receipt);
            assert!(lf, "{text}");
            expected.push((5, format!("ada:{name}"), text.to_owned()));
        }
        // Several lines at once are answered one after the other.
        let lines = [&sealed(&bridge, "1")[..], b"\n", &sealed(&bridge, "2")[..], b"\n"].concat();
        send(&mut io, lines).await;
        for text in ["1", "2"] {
            let line = read_line(&mut io).await;
            is_receipt(&bridge.open(line.trim_end().as_bytes()).unwrap());
            expected.push((5, format!("ada:{name}"), text.to_owned()));
        }
    }
    let mut all = Vec::new();
    while all.len() < expected.len() {
        let after = all.len() as u64;
        all.extend(recorded(&mut ada, LOBBY, after).await);
    }
    assert_eq!(all, expected);
}

#[tokio::test]
async fn bridge__message_followed_by_disconnect_is_recorded() {
    let Stage { host, mut ada, plain, .. } = stage(|_| ()).await;
    let bridge = bridge(ClassicScheme::Origin, &plain);
    for (text, end) in [("cut", ""), ("cut after its line", "\n")] {
        let mut io = try_bridge(&host).await.unwrap();
        send(&mut io, [&sealed(&bridge, text)[..], end.as_bytes()].concat()).await;
        // Ends the TCP stream without a TLS close_notify.
        let (tcp, _tls) = io.get_mut().get_mut();
        tcp.shutdown().await.unwrap();
        let come = async {
            loop {
                if recorded(&mut ada, LOBBY, 0).await.iter().any(|entry| entry.2 == text) {
                    break;
                }
            }
        };
        soon("the entry", come).await;
    }
}

/// Messages that do not open, with and without a line end.
fn broken(plain: &Bridge, mac: &Bridge) -> Vec<(&'static str, Vec<u8>)> {
    let sealed_bytes = |bridge: &Bridge, text: &str| {
        BASE64.decode(bridge.seal(text, &mut OsEntropy).as_bytes()).unwrap()
    };
    let encode = |bytes: &[u8]| BASE64.encode(bytes).into_bytes();
    let changed = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        encode(&bytes)
    };
    let good = sealed_bytes(plain, "two blocks of text ....");
    // A flipped bit in the block before flips the same bit of the padding, 9 bytes of 09.
    let padding = changed(good.clone(), good.len() - 17);
    // "hello" and 11 bytes of padding: the first byte becomes 0xe8, an incomplete UTF-8 sequence.
    let mut utf8 = sealed_bytes(plain, "hello");
    utf8[0] ^= 0x80;
    vec![
        ("wrong padding", padding),
        ("wrong UTF-8", encode(&utf8)),
        ("a MAC that is changed", changed(sealed_bytes(mac, "hello"), 60)),
        ("an IV that is changed", changed(sealed_bytes(mac, "hello"), 0)),
        ("half a message", encode(&good)[..40].to_vec()),
        ("no whole block", encode(&good[..good.len() - 1])),
        ("an IV alone", encode(&good[..16])),
        ("no base64", b"this is no base64!".to_vec()),
        ("base64 without its padding", encode(&good[..32]).trim_ascii_end()[..43].to_vec()),
        ("too long", vec![b'A'; 8193]),
        ("a web request", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a kid line", b"lamp AAAAAAAAAAAAAAAAAAAAAA".to_vec()),
        ("our own HELLO", vec![1, 0, 5, 36, 1, 0, 2, 16]),
        ("an empty line", Vec::new()),
    ]
}

#[tokio::test]
async fn bridge__invalid_message_closes_silently_unrecorded() {
    let Stage { host, mut ada, plain, mac } = stage(|_| ()).await;
    let (plain, mac) =
        (bridge(ClassicScheme::Origin, &plain), bridge(ClassicScheme::OriginHmac, &mac));
    for (what, message) in broken(&plain, &mac) {
        for end in ["\n", ""] {
            let nothing = message.is_empty() && end.is_empty();
            let changed_mac = what.starts_with("a MAC") || what.starts_with("an IV that");
            if nothing {
                continue;
            }
            let mut io = try_bridge(&host).await.unwrap();
            if changed_mac {
                // Otherwise it might, rarely, open under the key without a MAC, which detects no
                // change.
                send(&mut io, sealed(&mac, "whose connection this is")).await;
                answer(&mut io, &mac).await;
            }
            send(&mut io, [&message[..], end.as_bytes()].concat()).await;
            assert_eq!(to_end(io).await, b"", "{what} {end:?}");
        }
    }
    let texts: Vec<_> = recorded(&mut ada, LOBBY, 0).await.into_iter().map(|e| e.2).collect();
    assert_eq!(texts, ["whose connection this is"; 4]);
    // A connection is bound to one key.
    let mut io = try_bridge(&host).await.unwrap();
    send(&mut io, sealed(&mac, "mac")).await;
    answer(&mut io, &mac).await;
    send(&mut io, sealed(&plain, "plain")).await;
    assert_eq!(to_end(io).await, b"");
    // With a MAC, a reflected answer is not a valid message.
    let mut io = try_bridge(&host).await.unwrap();
    send(&mut io, [&sealed(&mac, "mac")[..], b"\n"].concat()).await;
    let reflected = read_line(&mut io).await;
    send(&mut io, reflected).await;
    assert_eq!(to_end(io).await, b"");
}

#[tokio::test]
async fn bridge__tarpit_delays_few_failures_at_a_time() {
    let hold = Duration::from_secs(1);
    let Stage { host, plain, .. } = stage(|config| {
        config.classic.tarpit_delay = hold;
        config.classic.tarpit_slots = 2;
    })
    .await;
    let began = Instant::now();
    let mut failed = Vec::new();
    let block = BASE64.encode(&[7; 32]);
    for n in 0..8 {
        let mut io = try_bridge(&host).await.unwrap();
        if n % 2 == 0 {
            send(&mut io, b"no message\n").await;
        } else {
            // A connection that the client ends first is delayed as well.
            send(&mut io, block.as_bytes()).await;
            io.shutdown().await.unwrap();
        }
        failed.push(io);
    }
    // Other connections are served during that time.
    let bridge = bridge(ClassicScheme::Origin, &plain);
    let mut io = try_bridge(&host).await.unwrap();
    send(&mut io, sealed(&bridge, "hello")).await;
    answer(&mut io, &bridge).await;
    assert!(began.elapsed() < 4 * hold);
    for io in failed {
        assert_eq!(to_end(io).await, b"");
    }
    // Eight delays, two at a time.
    assert!(began.elapsed() >= 4 * hold, "{:?}", began.elapsed());
}

#[tokio::test]
async fn bridge__idle_and_partial_message_time_out() {
    let limit = Duration::from_secs(2);
    let Stage { host, plain, .. } = stage(|config| config.classic.silence = limit).await;
    for first in [false, true] {
        let began = Instant::now();
        let mut io = try_bridge(&host).await.unwrap();
        if first {
            let bridge = bridge(ClassicScheme::Origin, &plain);
            send(&mut io, sealed(&bridge, "hello")).await;
            answer(&mut io, &bridge).await;
        }
        assert_eq!(to_end(io).await, b"");
        assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
    }
    // Here the silence limit is half an hour.
    let Stage { host, plain, .. } = stage(|_| ()).await;
    let mut io = try_bridge(&host).await.unwrap();
    let began = Instant::now();
    send(&mut io, &sealed(&bridge(ClassicScheme::Origin, &plain), "hello")[..20]).await;
    assert_eq!(to_end(io).await, b"");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
}

/// Even at a steady pace: once a client has sent data, no other connection can displace it.
#[tokio::test]
async fn bridge__byte_by_byte_message_times_out() {
    let limit = Duration::from_millis(500);
    let Stage { host, .. } = stage(|config| config.classic.half_line = limit).await;
    let began = Instant::now();
    let (mut from, mut to) = tokio::io::split(try_bridge(&host).await.unwrap());
    let drips = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while to.write_all(b"A").await.is_ok() && to.flush().await.is_ok() {
            pace.tick().await;
        }
        std::future::pending::<()>().await;
    };
    let mut word = Vec::new();
    tokio::select! {
        // A reset is an end as well.
        _ended = soon("its end", from.read_to_end(&mut word)) => {}
        () = drips => unreachable!(),
    }
    assert!(word.is_empty() && began.elapsed() >= limit);
}

#[tokio::test]
async fn bridge__silent_connection_is_evicted_and_failed_is_not() {
    let few = |config: &mut twinlock_server::Config| {
        config.classic.connections = 3;
        config.classic.tarpit_delay = 10 * SOON;
    };
    let log = Log::of(Level::DEBUG);
    let Stage { host, plain, .. } = stage(few).await;
    let mut known = try_bridge(&host).await.unwrap();
    let bridge = bridge(ClassicScheme::Origin, &plain);
    send(&mut known, sealed(&bridge, "here")).await;
    answer(&mut known, &bridge).await;
    // A failed message is delayed, and no other connection displaces it.
    let mut failed = try_bridge(&host).await.unwrap();
    send(&mut failed, "no message\n").await;
    log.wait(&["the close is delayed"], 1).await;
    let silent = try_bridge(&host).await.unwrap();
    let mut later = try_bridge(&host).await.unwrap();
    assert_eq!(to_end(silent).await, b"");
    send(&mut later, sealed(&bridge, "in its place")).await;
    answer(&mut later, &bridge).await;
    assert!(try_bridge(&host).await.is_none());
    let held = tokio::time::timeout(Duration::from_millis(100), failed.read_u8()).await;
    assert!(held.is_err());
}

#[tokio::test]
async fn bridge__revoked_key_closes_connections_and_opens_none() {
    let Stage { host, mut ada, plain, mac } = stage(|_| ()).await;
    let (old, oldmac) =
        (bridge(ClassicScheme::Origin, &plain), bridge(ClassicScheme::OriginHmac, &mac));
    let mut one = try_bridge(&host).await.unwrap();
    send(&mut one, sealed(&old, "one")).await;
    answer(&mut one, &old).await;
    let mut other = try_bridge(&host).await.unwrap();
    send(&mut other, sealed(&oldmac, "other")).await;
    answer(&mut other, &oldmac).await;
    let mut fresh = try_bridge(&host).await.unwrap();
    revoke_key(&mut ada, "old").await.unwrap();
    assert_eq!(to_end(one).await, b"");
    send(&mut other, sealed(&oldmac, "still here")).await;
    answer(&mut other, &oldmac).await;
    // A connection without a message has not revealed the revoked key.
    send(&mut fresh, sealed(&old, "late")).await;
    assert_eq!(to_end(fresh).await, b"");
    revoke_key(&mut ada, "oldmac").await.unwrap();
    assert_eq!(to_end(other).await, b"");
    let mut io = try_bridge(&host).await.unwrap();
    send(&mut io, sealed(&oldmac, "late")).await;
    assert_eq!(to_end(io).await, b"");
    let texts: Vec<_> = recorded(&mut ada, LOBBY, 0).await.into_iter().map(|e| e.2).collect();
    assert_eq!(texts, ["one", "other", "still here"]);
}

#[tokio::test]
async fn bridge__concurrent_clients_get_their_answers() {
    let Stage { host, mut ada, plain, .. } = stage(|_| ()).await;
    let host = std::sync::Arc::new(host);
    let clients: Vec<_> = (0..100)
        .map(|client| {
            let (host, bridge) = (host.clone(), bridge(ClassicScheme::Origin, &plain));
            tokio::spawn(async move {
                let mut io = try_bridge(&host).await.unwrap();
                for i in 0..10 {
                    send(&mut io, sealed(&bridge, &format!("{client} {i}"))).await;
                    is_receipt(&answer(&mut io, &bridge).await.0);
                }
            })
        })
        .collect();
    for client in clients {
        soon("a client", client).await.unwrap();
    }
    assert_eq!(ada.read(LOBBY, 0).await.unwrap().head, 1000);
}

#[tokio::test]
async fn classic__listeners_are_off_by_default() {
    let host = TestServer::start().await;
    assert_eq!((host.server().classic_addr(), host.server().origin_addr()), (None, None));
    let (_, mut ada) = host.owner().await;
    // A key can still be created.
    assert!(add_key(&mut ada, "lamp", LOBBY, ClassicForm::JweLines).await.is_ok());
}

#[tokio::test]
async fn bridge__imported_key_serves_unchanged_client() {
    let host = TestServer::start_with(both_ports).await;
    let (_, mut ada) = host.owner().await;
    let mut expected = Vec::new();
    for (form, wanted, called) in [
        (ClassicScheme::Origin, ClassicForm::Origin, "old"),
        (ClassicScheme::OriginHmac, ClassicForm::OriginHmac, "oldmac"),
    ] {
        // The key that is built into the program, which has no other.
        let built_in = [wanted as u8; 32];
        assert_eq!(import_key(&mut ada, called, LOBBY, wanted, &built_in).await, Ok(Vec::new()));
        let bridge = bridge(form, &built_in);
        let mut io = try_bridge(&host).await.unwrap();
        send(&mut io, sealed(&bridge, "hello")).await;
        is_receipt(&answer(&mut io, &bridge).await.0);
        expected.push((5, format!("ada:{called}"), "hello".to_owned()));
    }
    assert_eq!(recorded(&mut ada, LOBBY, 0).await, expected);
    // Keys of classic connections come from the server only, and a key has 32 bytes.
    for (form, key) in [
        (ClassicForm::JweLines, &[7; 32][..]),
        (ClassicForm::Origin, &[7; 31]),
        (ClassicForm::Origin, &[7; 33]),
    ] {
        let refused = import_key(&mut ada, "other", LOBBY, form, key).await;
        assert_eq!(refused, Err(RefusalReason::Malformed));
    }
}
