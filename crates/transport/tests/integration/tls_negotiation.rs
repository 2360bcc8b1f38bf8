//! What two ends agree on, and what each end refuses.

use crate::common::*;
use rustls::HandshakeKind;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use twinlock_transport::tls::{
    ALPN, Alpn, ClientTls, ServerTls, ServerTrust, TlsFacts, TlsFault, channel_binding,
};

const FATAL: u8 = 2;
const PROTOCOL_VERSION: u8 = 70;

/// A ClientHello as TLS 1.2 clients send it: no supported_versions, one suite of 1.2.
fn tls12_client_hello() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x17][..], // supported_groups: secp256r1
        &[0x00, 0x0b, 0, 2, 1, 0],                 // ec_point_formats: uncompressed
        &[0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03],     // signature_algorithms: ecdsa_secp256r1_sha256
        &[0x00, 0x10, 0, 13, 0, 11, 10],           // ALPN
        ALPN,
        &[0x00, 0x17, 0, 0], // extended_master_secret
    ]
    .concat();
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x5a; 32]); // random
    hello.push(0); // session id
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    hello.extend([1, 0]); // compression: null
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    handshake_record(1, &hello)
}

/// The answer of a server that supports only TLS 1.2.
fn tls12_server_hello() -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([0xa5; 32]);
    hello.push(0);
    hello.extend([0xc0, 0x2b, 0]);
    hello.extend([0, 4, 0x00, 0x17, 0, 0]);
    handshake_record(2, &hello)
}

fn handshake_record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![22, 0x03, 0x03];
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([kind, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

#[test]
fn tls__only_version_1_3_is_compiled_in() {
    assert_eq!(rustls::ALL_VERSIONS, [&rustls::version::TLS13]);
}

#[tokio::test]
async fn tls__version_1_2_client_gets_fatal_alert() {
    let server = ServerTls::new(fresh()).unwrap();
    let (listener, address) = listen().await;
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await
    };
    let connect = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&tls12_client_hello()).await.unwrap();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let (accepted, answer) = tokio::join!(accept, connect);
    assert!(matches!(accepted, Err(TlsFault::Tls(_))), "{accepted:?}");
    assert_eq!(answer, [21, 3, 3, 0, 2, FATAL, PROTOCOL_VERSION]);
}

#[tokio::test]
async fn tls__version_1_2_server_is_refused() {
    let cert = fresh();
    let client = pinning(&cert);
    let (listener, address) = listen().await;
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut head = [0; 5];
        tcp.read_exact(&mut head).await.unwrap();
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        tcp.read_exact(&mut hello).await.unwrap();
        tcp.write_all(&tls12_server_hello()).await.unwrap();
        let mut alert = Vec::new();
        tcp.read_to_end(&mut alert).await.unwrap();
        alert
    };
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        client.connect("localhost", tcp).await
    };
    let (alert, connected) = tokio::join!(serve, connect);
    assert!(matches!(connected, Err(TlsFault::Tls(_))), "{connected:?}");
    assert_eq!(alert[0], 21, "an alert");
    assert_eq!(alert[5], FATAL);
}

#[tokio::test]
async fn tls__hybrid_key_exchange_and_chacha20_are_negotiated() {
    let cert = fresh();
    let (server, client) =
        meet(&ServerTls::new(cert.clone()).unwrap(), &pinning(&cert), "localhost").await;
    let (server, client) = (server.unwrap(), client.unwrap());
    let facts = TlsFacts::of(client.get_ref().1);
    let expected = TlsFacts {
        version: Some("TLS 1.3".to_owned()),
        group: Some("X25519MLKEM768".to_owned()),
        suite: Some("TLS13_CHACHA20_POLY1305_SHA256".to_owned()),
        peer_pin: Some(cert.pin()),
        issuer: Some("rcgen self signed cert".to_owned()),
        alpn: Some("twinlock/1".to_owned()),
    };
    assert_eq!(facts, expected);
    assert_eq!(
        TlsFacts::of(server.get_ref().1),
        TlsFacts { peer_pin: None, issuer: None, ..expected }
    );
}

#[tokio::test]
async fn tls__server_prefers_chacha20_over_client_order() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let aes_first = foreign_client(
        &cert,
        |provider| {
            provider.cipher_suites = vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ];
        },
        &[ALPN],
    );
    let (accepted, connected) = meet_foreign_client(&server, aes_first).await;
    connected.unwrap();
    let suite = TlsFacts::of(accepted.unwrap().get_ref().1).suite;
    assert_eq!(suite.as_deref(), Some("TLS13_CHACHA20_POLY1305_SHA256"));
}

#[tokio::test]
async fn tls__aes_256_is_accepted_and_aes_128_is_refused() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let only =
        |suite| foreign_client(&cert, |provider| provider.cipher_suites = vec![suite], &[ALPN]);

    let aes_256 = only(cipher_suite::TLS13_AES_256_GCM_SHA384);
    let (accepted, _client) = meet_foreign_client(&server, aes_256).await;
    let suite = TlsFacts::of(accepted.unwrap().get_ref().1).suite;
    assert_eq!(suite.as_deref(), Some("TLS13_AES_256_GCM_SHA384"));

    let aes_128 = only(cipher_suite::TLS13_AES_128_GCM_SHA256);
    let (accepted, connected) = meet_foreign_client(&server, aes_128).await;
    assert!(matches!(accepted, Err(TlsFault::Tls(_))));
    assert!(connected.is_err());
}

#[tokio::test]
async fn tls__client_without_hybrid_key_exchange_is_accepted() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    for (group, name) in [(kx_group::X25519, "X25519"), (kx_group::SECP256R1, "secp256r1")] {
        let classic = foreign_client(&cert, |provider| provider.kx_groups = vec![group], &[ALPN]);
        let (accepted, _client) = meet_foreign_client(&server, classic).await;
        let facts = TlsFacts::of(accepted.unwrap().get_ref().1);
        assert_eq!(facts.group.as_deref(), Some(name));
    }
}

#[tokio::test]
async fn tls__repeated_connection_does_full_handshake() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let client = pinning(&cert);
    for _ in 0..3 {
        let (accepted, connected) = meet(&server, &client, "localhost").await;
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        // Tickets would arrive before the server's first byte.
        accepted.write_all(b"!").await.unwrap();
        accepted.flush().await.unwrap();
        assert_eq!(connected.read_u8().await.unwrap(), b'!');
        let (server, client) = (accepted.get_ref().1, connected.get_ref().1);
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn tls__client_with_ticket_store_gets_no_tickets() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let hoarder = foreign_client(&cert, |_| (), &[ALPN]);
    for _ in 0..2 {
        let (accepted, connected) = meet_foreign_client(&server, hoarder.clone()).await;
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        accepted.write_all(b"!").await.unwrap();
        accepted.flush().await.unwrap();
        assert_eq!(connected.read_u8().await.unwrap(), b'!');
        assert_eq!(connected.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(accepted.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn tls__client_does_not_resume_with_received_tickets() {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = vec![certificate(&key, |_| ())];
    let cert = twinlock_transport::tls::ServerCert::from_der(chain.clone(), der(&key)).unwrap();
    let client = pinning(&cert);
    let config = foreign_server(chain, der(&key), &[ALPN]);
    for _ in 0..2 {
        let mut connected = meet_foreign_server(config.clone(), &client).await.unwrap();
        // Reads up to the end that the server's drop causes: the tickets arrive before it.
        let _ = connected.read(&mut [0]).await;
        let client = connected.get_ref().1;
        assert!(client.tls13_tickets_received() > 0);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn channel_binding__equal_on_both_ends_and_unique() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let client = pinning(&cert);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (accepted, connected) = meet(&server, &client, "localhost").await;
        let ours = channel_binding(accepted.unwrap().get_ref().1).unwrap();
        let theirs = channel_binding(connected.unwrap().get_ref().1).unwrap();
        assert_eq!(ours, theirs);
        assert!(!seen.contains(&ours));
        seen.push(ours);
    }
}

#[tokio::test]
async fn channel_binding__value_is_rfc_9266_exporter() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    let (accepted, connected) = meet(&server, &pinning(&cert), "localhost").await;
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    let mut raw = [0; 32];
    raw = accepted
        .get_ref()
        .1
        .export_keying_material(raw, b"EXPORTER-Channel-Binding", Some(b""))
        .unwrap();
    assert_eq!(channel_binding(connected.get_ref().1).unwrap(), raw);
}

#[tokio::test]
async fn channel_binding__differs_on_both_sides_of_tls_proxy() {
    let (ours, proxys) = (fresh(), fresh());
    let server = ServerTls::new(ours.clone()).unwrap();
    let proxy = ServerTls::new(proxys.clone()).unwrap();
    let (proxy_front, client) = meet(&proxy, &pinning(&proxys), "localhost").await;
    let (server, proxy_back) = meet(&server, &pinning(&ours), "localhost").await;
    let values = [
        channel_binding(client.unwrap().get_ref().1).unwrap(),
        channel_binding(server.unwrap().get_ref().1).unwrap(),
    ];
    assert_ne!(values[0], values[1]);
    assert_eq!(values[0], channel_binding(proxy_front.unwrap().get_ref().1).unwrap());
    assert_eq!(values[1], channel_binding(proxy_back.unwrap().get_ref().1).unwrap());
}

#[tokio::test]
async fn alpn__server_prefers_twinlock_1_to_http_1_1() {
    let cert = fresh();
    let server = ServerTls::new(cert.clone()).unwrap();
    for (offer, selected) in [
        (&[&b"h2"[..], b"http/1.1", ALPN][..], Some("twinlock/1")),
        (&[b"h2", b"http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let client = foreign_client(&cert, |_| (), offer);
        let (accepted, _client) = meet_foreign_client(&server, client).await;
        let facts = TlsFacts::of(accepted.unwrap().get_ref().1);
        assert_eq!(facts.alpn.as_deref(), selected, "{offer:?}");
    }
    let (accepted, _) =
        meet_foreign_client(&server, foreign_client(&cert, |_| (), &[b"h2", b"http/1.0"])).await;
    assert!(matches!(accepted, Err(TlsFault::Alpn)), "{accepted:?}");
}

#[tokio::test]
async fn alpn__client_accepts_own_offers_or_none() {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = vec![certificate(&key, |_| ())];
    let cert = twinlock_transport::tls::ServerCert::from_der(chain.clone(), der(&key)).unwrap();
    let own = &[&b"h2"[..], b"http/1.1", ALPN][..];
    for (offer, known, selected) in [
        (Alpn::Any, own, Ok(Some("http/1.1"))),
        (Alpn::Any, &[ALPN][..], Ok(Some("twinlock/1"))),
        (Alpn::Direct, own, Ok(Some("twinlock/1"))),
        (Alpn::Http, own, Ok(Some("http/1.1"))),
        (Alpn::Any, &[], Ok(None)),
        (Alpn::Direct, &[], Ok(None)),
        // A proxy that supports only other protocols rejects the handshake itself.
        (Alpn::Any, &[b"h2"], Err(())),
        (Alpn::Direct, &[b"h2", b"http/1.1"], Err(())),
    ] {
        let client = ClientTls::new(ServerTrust::Pins(vec![cert.pin()]), offer).unwrap();
        let server = foreign_server(chain.clone(), der(&key), known);
        match meet_foreign_server(server, &client).await {
            Ok(stream) => {
                let alpn = TlsFacts::of(stream.get_ref().1).alpn;
                assert_eq!(Ok(alpn.as_deref()), selected, "{offer:?} {known:?}");
            }
            Err(fault) => {
                assert!(matches!(fault, TlsFault::Alpn), "{fault:?}");
                assert_eq!(Err(()), selected, "{offer:?} {known:?}");
            }
        }
    }
}

#[tokio::test]
async fn tls__client_reports_plain_text_as_not_tls_and_eof_as_io() {
    let cert = fresh();
    let client = pinning(&cert);
    let answers: [(&[u8], bool); 2] = [(b"HTTP/1.1 400 Bad Request\r\n\r\n", true), (b"", false)];
    for (answer, spoke) in answers {
        let (listener, address) = listen().await;
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut some = [0; 5];
            tcp.read_exact(&mut some).await.unwrap();
            tcp.write_all(answer).await.unwrap();
            tcp.shutdown().await.unwrap();
            // Stays open for reading, so that no reset overtakes the answer.
            let mut rest = Vec::new();
            let _ = tcp.read_to_end(&mut rest).await;
        };
        let connect = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            client.connect("localhost", tcp).await
        };
        let ((), fault) = tokio::join!(serve, connect);
        let fault = fault.unwrap_err();
        assert!(!fault.is_distrust());
        match fault {
            TlsFault::NotTls => assert!(spoke),
            TlsFault::Io(_) => assert!(!spoke),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn tls__server_reports_plain_text_as_not_tls() {
    let server = ServerTls::new(fresh()).unwrap();
    let (listener, address) = listen().await;
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp).await
    };
    let connect = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
    };
    let (accepted, ()) = tokio::join!(accept, connect);
    assert!(matches!(accepted, Err(TlsFault::NotTls)), "{accepted:?}");
}

/// Detects a build with AWS-LC's CPU-jitter source, which costs every process 20 ms of CPU.
///
/// `.cargo/config.toml` disables it; a build can miss that setting.
#[test]
fn entropy__cpu_jitter_source_is_not_linked() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let names = |name: &str| program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
    assert!(names("_EVP_AEAD_CTX_seal"), "this build has no symbols to look at: no --release here");
    // Spelled in two parts, because the search would find this text otherwise.
    assert!(!names(&["jent", "_entropy_init"].concat()));
}
