use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use twinlock_core::invite::DEFAULT_PATH;

use super::serve::{HttpFault, Site, Upgraded, serve};
use super::*;

const UPGRADE: &str = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// FIN and binary.
const BINARY: u8 = 0x82;

#[test]
fn websocket__accept_value_is_that_of_rfc_6455() {
    assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

/// The vectors of docs/protocol.md, section 12; the request is tested where it is made.
#[tokio::test]
async fn websocket__answer_and_frame_match_vectors() {
    assert_eq!(accept_value(b"AAECAwQFBgcICQoLDA0ODw=="), "Bz3qJYTGdOe8gUSpLosEdiLKDrk=");
    let first = [0x82, 0xfe, 0x05, 0x18, 0x37, 0xfa, 0x21, 0x3d];
    let masked = [0x36, 0xfa, 0x24, 0x29, 0x36, 0xfa, 0x23, 0x2d, 0x37, 0xfb, 0x23, 0x3e];
    let (mut near, mut server) = raw().await;
    near.write_all(&[&first[..], &masked, &[0; 1304 - 12]].concat()).await.unwrap();
    let mut read = [0; 12];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(read, [1, 0, 5, 0x14, 1, 0, 2, 16, 0, 1, 2, 3]);
    server.write_all(&read).await.unwrap();
    server.flush().await.unwrap();
    let mut sent = [0; 14];
    near.read_exact(&mut sent).await.unwrap();
    assert_eq!(sent, [0x82, 12, 1, 0, 5, 0x14, 1, 0, 2, 16, 0, 1, 2, 3]);
}

#[test]
fn websocket__header_list_contains_token_in_any_case() {
    assert!(lists(b"keep-alive , upgrade", "Upgrade") && lists(b"Upgrade", "Upgrade"));
    assert!(!lists(b"upgraded, keep", "Upgrade") && !lists(b"", "Upgrade"));
}

type Serving = JoinHandle<Result<Upgraded<DuplexStream>, HttpFault>>;

fn serving(io: DuplexStream) -> Serving {
    let proxies = vec!["192.0.2.1".parse().unwrap()];
    let site = Arc::new(Site::new(DEFAULT_PATH.to_owned()));
    tokio::spawn(async move { serve(io, site, Some(proxies)).await })
}

/// Sends a request and returns the answer, up to the end of the connection or to a 101.
async fn ask(request: &[u8]) -> (String, Serving) {
    let (mut near, far) = duplex(256 * 1024);
    let serving = serving(far);
    near.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while near.read_buf(&mut answer).await.unwrap() > 0 {
        if answer.starts_with(b"HTTP/1.1 101") && answer.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    (String::from_utf8(answer).unwrap(), serving)
}

async fn status(request: &str) -> u16 {
    let (answer, _) = ask(request.as_bytes()).await;
    answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Both ends after the handshake; the client's as raw bytes.
async fn raw() -> (DuplexStream, WebSocket<DuplexStream>) {
    let (mut near, far) = duplex(256 * 1024);
    let serving = serving(far);
    near.write_all(format!("GET /twinlock HTTP/1.1\r\n{UPGRADE}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(near.read_u8().await.unwrap());
    }
    (near, serving.await.unwrap().unwrap().stream)
}

/// A frame of a client, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ ..126 => frame.push(0x80 | n as u8),
        n => {
            frame.push(0x80 | 127);
            frame.extend((n as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn websocket__carries_bytes_both_ways_and_ends() {
    let (near, far) = duplex(4096);
    let serving = serving(far);
    let mut client = connect::connect(near, "a.example:1", "/twinlock").await.unwrap();
    let Upgraded { stream: mut server, client: address } = serving.await.unwrap().unwrap();
    assert_eq!(address, None);
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let sent = bytes.clone();
    let sender = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.flush().await.unwrap();
        let mut echo = vec![0; 5];
        client.read_exact(&mut echo).await.unwrap();
        client.shutdown().await.unwrap();
        (echo, client)
    });
    let mut received = vec![0; bytes.len()];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == bytes);
    server.write_all(b"hello").await.unwrap();
    server.flush().await.unwrap();
    let (echo, mut client) = sender.await.unwrap();
    assert_eq!(echo, b"hello");
    assert_eq!(server.read(&mut received).await.unwrap(), 0);
    server.shutdown().await.unwrap();
    drop(server);
    assert_eq!(client.read(&mut received).await.unwrap(), 0);
}

#[tokio::test]
async fn websocket__request_is_answered_by_its_form() {
    let ws = |fields: &str| format!("GET /twinlock HTTP/1.1\r\n{fields}\r\n");
    for (request, expected) in [
        (ws(UPGRADE), 101),
        (ws(&UPGRADE.replace("Upgrade: websocket", "uPgRaDe: WebSocket")), 101),
        (ws(&format!("{UPGRADE}X-Forwarded-For: 198.51.100.7\r\n")), 101),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 200),
        ("HEAD / HTTP/1.0\r\n\r\n".to_owned(), 200),
        ("GET /twinlock HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
        ("GET /other HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 404),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".to_owned(), 404),
        (ws(UPGRADE).replace("/twinlock", "/twinlock?a"), 404),
        (ws(UPGRADE).replace("/twinlock", "/Twinlock"), 404),
        (ws(UPGRADE).replace("GET", "POST"), 404),
        (ws(UPGRADE).replace("HTTP/1.1", "HTTP/1.0"), 400),
        (ws(UPGRADE).replace("/twinlock", "http://a/twinlock"), 400),
        (ws(&format!("{UPGRADE}Origin: https://evil.example\r\n")), 403),
        ("GET / HTTP/1.1\r\nHost: a\r\nOrigin: null\r\n\r\n".to_owned(), 403),
        (ws(&UPGRADE.replace("Version: 13", "Version: 8")), 426),
        (ws(&UPGRADE.replace("websocket", "h2c")), 400),
        (ws(&UPGRADE.replace("Connection: Upgrade", "Connection: close")), 400),
        (ws(&UPGRADE.replace("Host: a\r\n", "")), 400),
        (ws(&format!("Host: b\r\n{UPGRADE}")), 400),
        (ws(&UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl")), 400),
        (ws(&format!("{UPGRADE}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")), 400),
        (ws(&format!("{UPGRADE}Content-Length: 4\r\n")), 400),
        (ws(&format!("{UPGRADE}Transfer-Encoding: chunked\r\n")), 400),
        (ws(&format!("{UPGRADE}X-Forwarded-For: a\r\n")), 400),
        (ws(&format!("{UPGRADE}Forwarded: for=1.2.3.4\r\nForwarded: for=1.2.3.4\r\n")), 400),
        // What a proxy might read as two requests.
        (ws(&format!("{UPGRADE}Content-Length: 4\r\nContent-Length: 5\r\n")), 400),
        (ws(&format!("{UPGRADE}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")), 400),
        (ws(&format!("{UPGRADE}Transfer-Encoding: identity, chunked\r\n")), 400),
        (ws(&format!("{UPGRADE} folded: line\r\n")), 400),
        (ws(&format!("{UPGRADE}Space : before\r\n")), 400),
        (ws(&format!("{UPGRADE}Nul: \0\r\n")), 400),
        (ws(&format!("{UPGRADE}Long: {}\r\n", "x".repeat(2 * MAX_HTTP_HEADER))), 431),
        (ws(&format!("{UPGRADE}{}", "A: b\r\n".repeat(MAX_FIELDS))), 431),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * MAX_HTTP_HEADER)), 431),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 0),
        ("\u{1}\0\u{5}\u{5}".to_owned(), 400),
    ] {
        assert_eq!(status(&request).await, expected, "{request:.600}");
    }
}

#[tokio::test]
async fn websocket__answers_reveal_no_version_or_name() {
    for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let (answer, serving) = ask(request.as_bytes()).await;
        let lower = answer.to_lowercase();
        for word in ["twinlock", "hyper", "server:", env!("CARGO_PKG_VERSION")] {
            assert!(!lower.contains(word), "{word}: {answer}");
        }
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert!(matches!(serving.await.unwrap(), Err(HttpFault::Answered(..))));
    }
}

#[tokio::test]
async fn websocket__trusted_proxy_names_the_client() {
    let fields = format!("{UPGRADE}X-Forwarded-For: 1.1.1.1, 198.51.100.7, 192.0.2.1\r\n");
    let (_, serving) = ask(format!("GET /twinlock HTTP/1.1\r\n{fields}\r\n").as_bytes()).await;
    let address = serving.await.unwrap().unwrap().client;
    assert_eq!(address, Some("198.51.100.7".parse().unwrap()));
}

#[tokio::test]
async fn websocket__frames_sent_with_the_request_are_kept() {
    let (mut near, far) = duplex(4096);
    let serving = serving(far);
    let mut bytes = format!("GET /twinlock HTTP/1.1\r\n{UPGRADE}\r\n").into_bytes();
    bytes.extend(frame(BINARY, b"early"));
    near.write_all(&bytes).await.unwrap();
    let mut server = serving.await.unwrap().unwrap().stream;
    let mut read = [0; 5];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"early");
}

#[tokio::test]
async fn websocket__ping_gets_pong_and_fragments_are_joined() {
    let (mut near, mut server) = raw().await;
    near.write_all(&frame(0x89, b"are you there")).await.unwrap();
    near.write_all(&frame(0x02, b"ab")).await.unwrap();
    near.write_all(&frame(0x00, b"")).await.unwrap();
    near.write_all(&frame(0x8a, b"")).await.unwrap();
    near.write_all(&frame(0x80, b"cd")).await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"abcd");
    let mut pong = [0; 15];
    near.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong[..2], &[0x8a, 13]);
    assert_eq!(&pong[2..], b"are you there");
}

#[tokio::test]
async fn websocket__invalid_frame_is_an_error_of_the_read() {
    let unmasked = [BINARY, 2, 1, 2].to_vec();
    let huge = [&[BINARY, 0x80 | 127][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
    let top = [&[BINARY, 0x80 | 127][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    let mut fragments = frame(0x02, &[0; MAX_MESSAGE]);
    fragments.extend(frame(0x00, b"x"));
    for (name, bytes) in [
        ("text", frame(0x81, b"text")),
        ("first RSV bit", frame(BINARY | 0x40, b"x")),
        ("second RSV bit", frame(BINARY | 0x20, b"x")),
        ("third RSV bit", frame(BINARY | 0x10, b"x")),
        ("reserved type", frame(0x83, b"x")),
        ("reserved control type", frame(0x8b, b"x")),
        ("fragmented ping", frame(0x09, b"x")),
        ("long ping", frame(0x89, &[0; 126])),
        ("unmasked", unmasked),
        ("1 TiB", huge),
        ("2^64 - 1", top),
        ("too large by one", frame(BINARY, &[0; MAX_MESSAGE + 1])),
        ("fragments too large", fragments),
        ("continuation of nothing", frame(0x80, b"x")),
        ("message inside another", [frame(0x02, b"x"), frame(BINARY, b"x")].concat()),
    ] {
        let (mut near, mut server) = raw().await;
        near.write_all(&bytes).await.unwrap();
        let mut sink = Vec::new();
        let read = timeout(Duration::from_secs(5), server.read_to_end(&mut sink)).await.unwrap();
        assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::InvalidData), "{name}");
        assert!(sink.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn websocket__ping_flood_without_reader_is_bounded() {
    let (near, far) = duplex(1024);
    let (mut reader, mut writer) = tokio::io::split(near);
    let serving = serving(far);
    writer.write_all(format!("GET /twinlock HTTP/1.1\r\n{UPGRADE}\r\n").as_bytes()).await.unwrap();
    let mut server = serving.await.unwrap().unwrap().stream;
    let flood = tokio::spawn(async move {
        for _ in 0..20_000 {
            writer.write_all(&frame(0x89, &[7; 125])).await.unwrap();
        }
        writer.write_all(&frame(BINARY, b"done")).await.unwrap();
        writer
    });
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"done");
    let _writer = flood.await.unwrap();
    // Most pongs were dropped; a message arrives among the others.
    let sent = tokio::spawn(async move {
        server.write_all(b"alive").await.unwrap();
        server.flush().await.unwrap();
        server
    });
    let mut received = Vec::new();
    while !received.windows(5).any(|bytes| bytes == b"alive") {
        assert!(received.len() < 200_000);
        reader.read_buf(&mut received).await.unwrap();
    }
    sent.await.unwrap();
}
