//! Connections before the login, and hostile bytes at every stage: they have no effect.

use std::time::Duration;

use crate::common::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::session::Binding;
use twinlock_server::Config;

async fn tcp(host: &TestServer) -> TcpStream {
    TcpStream::connect(host.address()).await.unwrap()
}

/// Waits until the server has closed this connection.
async fn is_dropped(mut tcp: TcpStream) {
    assert_eq!(read_to_end(&mut tcp).await, b"");
}

#[tokio::test]
async fn unauthenticated__limited_in_total_and_by_deadline() {
    let host = TestServer::start_with(|config| {
        config.limits.unauthenticated = 3;
        config.limits.tls_deadline = Duration::from_millis(200);
    })
    .await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(tcp(&host).await);
    }
    is_dropped(tcp(&host).await).await;
    for tcp in waiting {
        is_dropped(tcp).await;
    }
    host.owner().await;
}

/// Raises the limits for many hostile connections.
fn allow_many_logins(config: &mut Config) {
    config.limits.unauthenticated_per_address = 512;
    config.limits.logins_per_minute = 1_000_000;
}

#[tokio::test]
async fn hello__invalid_gets_error_or_is_dropped() {
    let host = TestServer::start_with(allow_many_logins).await;
    let (_state, hello) = twinlock_core::handshake::AwaitChallenge::start(
        TestDevice::unknown().credential(),
        None,
        &mut twinlock_transport::OsEntropy,
    )
    .unwrap();
    let frame = |payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[1, len[1], len[2], len[3]], payload].concat()
    };
    let changed = |at: usize, byte: u8| {
        let mut payload = hello[4..].to_vec();
        payload[at] = byte;
        frame(&payload)
    };
    let answer = |code: ErrorCode| code.to_frame();
    let version = answer(ErrorCode::Version(1));
    let malformed = answer(ErrorCode::Malformed);
    let identity = [&hello[4..hello.len() - 96], &[0; 96]].concat();
    let big_ek = [&hello[4..24], &[0xff; 1184], &hello[hello.len() - 96..]].concat();
    for (sent, expected) in [
        (changed(0, 2), &version[..]),
        (frame(&[2]), &version),
        (frame(&[0; 3]), &version),
        // The rest of another version's HELLO is not awaited.
        (vec![1, 0xff, 0xff, 0xff, 9], &version),
        (changed(1, 1), &malformed),
        (changed(2, 0), &malformed),
        (changed(2, 1), &malformed),
        (changed(3, 15), &malformed),
        (frame(&identity), &malformed),
        (frame(&big_ek), &malformed),
        (frame(&[1]), &[]),
        (frame(&hello[4..1000]), &[]),
        (vec![1, 0, 0, 0], &[]),
        (vec![2, 0, 5, 128], &[]),
        (vec![0x10, 0, 1, 32], &[]),
        (vec![0xff; 64], &[]),
    ] {
        let mut io = host.tls().await;
        io.write_all(&sent).await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(read_to_end(&mut io).await, expected, "{:?}", &sent[..8.min(sent.len())]);
    }
}

#[tokio::test]
async fn hostile_bytes__any_stage_leaves_no_session() {
    let host = TestServer::start_with(allow_many_logins).await;
    let (laptop, mut ada) = host.owner().await;
    for round in 0..60usize {
        let noise: Vec<u8> = (0..40).flat_map(|_| random::<64>()).collect();
        let noise = &noise[..(round * 37) % noise.len()];
        // Before TLS.
        let mut raw = tcp(&host).await;
        let _reset = raw.write_all(noise).await;
        raw.shutdown().await.unwrap();
        read_to_end(&mut raw).await;
        // In place of HELLO.
        let mut io = host.tls().await;
        let _reset = io.write_all(noise).await;
        let _reset = io.shutdown().await;
        read_to_end(&mut io).await;
        // In place of PROOF, and after a truncated HELLO.
        let mut io = host.tls().await;
        hello(&mut io, laptop.credential()).await.unwrap();
        let _reset = io.write_all(noise).await;
        let _reset = io.shutdown().await;
        read_to_end(&mut io).await;
        // In place of READY, and of a frame after it.
        for ready in [false, true] {
            let io = host.tls().await;
            let mut io = established(io, &host, laptop, ready).await;
            if round % 2 == 0 {
                // A valid header, and a frame that is not authentic.
                let bucket = 256usize << (round % 9);
                let len = u32::try_from(bucket + 32).unwrap().to_be_bytes();
                let _reset = io.write_all(&[0x10, len[1], len[2], len[3]]).await;
                let _reset = io.write_all(&vec![7; bucket + 32]).await;
            } else {
                let _reset = io.write_all(noise).await;
            }
            let _reset = io.shutdown().await;
            read_to_end(&mut io).await;
        }
        // A correctly sealed frame with nonsense inside.
        let mut client = host.connect(laptop.credential()).await.unwrap();
        client.connection.send_app(noise).unwrap();
        let _closed = client.connection.wait(Some(0)).await;
        client.bye().await;
    }
    host.until_sessions(1).await;
    assert!(ada.append(LOBBY, "undisturbed").await.is_ok());
}

/// Performs a raw login up to PROOF, or up to READY, and returns the stream.
async fn established(mut io: Io, host: &TestServer, device: TestDevice, ready: bool) -> Io {
    use twinlock_core::session::{BindingPolicy, Session, SessionConfig};
    let (state, challenge) = hello(&mut io, device.credential()).await.unwrap();
    let (established, proof) =
        state.handle_challenge(&challenge, &mut twinlock_transport::OsEntropy).unwrap();
    assert_eq!(established.server_key(), host.key());
    io.write_all(&proof).await.unwrap();
    if ready {
        let config = SessionConfig {
            binding: BindingPolicy::Off,
            exporter: None,
            info: Vec::new(),
            max_version: 1,
            timing: Default::default(),
        };
        let session = Session::new(established, config, std::time::Instant::now());
        io.write_all(session.outgoing()).await.unwrap();
    }
    io.flush().await.unwrap();
    io
}

async fn proxied(host: &TestServer, client: [u8; 4]) -> TcpStream {
    let mut tcp = tcp(host).await;
    tcp.write_all(&proxy_header(client)).await.unwrap();
    tcp
}

#[tokio::test]
async fn proxy__header_address_is_used_for_limits() {
    let host = TestServer::start_with(|config| {
        config.proxies = vec!["127.0.0.1".parse().unwrap()];
        config.limits.logins_per_minute = 3;
    })
    .await;
    // The server closes a connection without the PROXY header.
    let mut bare = tcp(&host).await;
    bare.write_all(&[0x16; 64]).await.unwrap();
    is_dropped(bare).await;

    let attempt = async |client| {
        let mut io = host.endpoint().tls_over(proxied(&host, client).await).await.unwrap();
        hello(&mut io, TestDevice::unknown().credential()).await.map(drop)
    };
    for _ in 0..3 {
        assert_eq!(attempt([192, 0, 2, 1]).await, Ok(()));
    }
    assert!(matches!(attempt([192, 0, 2, 1]).await, Err(ErrorCode::Busy(_))));
    assert_eq!(attempt([192, 0, 2, 2]).await, Ok(()));

    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(proxied(&host, [192, 0, 2, 3]).await);
    }
    let _ninth = proxied(&host, [192, 0, 2, 3]).await;
    is_dropped(waiting.remove(0)).await;
    let io = host.endpoint().tls_over(proxied(&host, [192, 0, 2, 4]).await).await.unwrap();
    let invite = host.owner_invite().credential();
    let client = RawClient::over(io, invite, host.key(), b"", |_| ()).await.unwrap();
    assert_eq!(client.binding, Binding::Bound);
}

#[tokio::test]
async fn proxy__no_header_disables_address_limits_and_pins() {
    let host = TestServer::start_with(|config| {
        config.behind_proxy = true;
        config.limits.logins_per_minute = 1;
    })
    .await;
    let link = host.server().owner_invite().unwrap();
    assert!(link.proxy && link.tls_pin.is_none());
    let waiting = [tcp(&host).await, tcp(&host).await, tcp(&host).await];
    for _ in 0..10 {
        let mut io = host.tls().await;
        hello(&mut io, TestDevice::unknown().credential()).await.unwrap();
    }
    let client = host.connect(host.owner_invite().credential()).await.unwrap();
    // Compared as elsewhere: a client that reaches the server past the proxy is not warned.
    assert_eq!(client.binding, Binding::Bound);
    assert!(client.info.tls_pins.is_empty());
    drop(waiting);
}

#[tokio::test]
async fn login__unfinished_handshakes_do_not_block_computation() {
    // One computation at a time suffices, because none waits for its client while it holds the
    // slot.
    let host = TestServer::start_with(|config| {
        allow_many_logins(config);
        config.limits.handshakes = 1;
    })
    .await;
    let (laptop, _ada) = host.owner().await;
    let mut half = Vec::new();
    for _ in 0..40 {
        let mut io = host.tls().await;
        hello(&mut io, TestDevice::unknown().credential()).await.unwrap();
        half.push(io);
    }
    let client = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(client.info.user, "ada");
}

#[tokio::test]
async fn session__removed_after_bye_and_after_disconnect() {
    let host = TestServer::start().await;
    let (laptop, ada) = host.owner().await;
    let mut other = host.connect(laptop.credential()).await.unwrap();
    assert_eq!(host.server().sessions(), 2);
    ada.bye().await;
    host.until_sessions(1).await;
    other.connection.session_mut().close(CloseCode::Bye);
    drop(other);
    host.until_sessions(0).await;
}

#[tokio::test]
async fn start__maximum_limit_values_are_accepted() {
    let host = TestServer::start_with(|config| {
        let limits = &mut config.limits;
        let counts = [
            &mut limits.unauthenticated,
            &mut limits.unauthenticated_per_address,
            &mut limits.handshakes,
            &mut limits.sessions_per_device,
            &mut limits.password_sessions_per_user,
        ];
        for count in counts {
            *count = usize::MAX;
        }
        limits.logins_per_minute = u32::MAX;
        (limits.file, limits.files_per_user) = (u64::MAX, u64::MAX);
    })
    .await;
    let (_laptop, ada) = host.owner().await;
    assert_eq!(ada.info.user, "ada");
}
