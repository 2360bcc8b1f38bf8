//! The transports of a session: WebSocket, the plain port, and what proxies say about clients.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tracing::Level;
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{self, Transport};
use twinlock_core::session::{Binding, BindingPolicy, SessionConfig, SessionEvent};
use twinlock_server::Config;
use twinlock_transport::login::{LoginError, login};
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust, channel_binding};
use twinlock_transport::websocket::connect::{UpgradeFault, connect};

use crate::common::log::Log;
use crate::common::{TestServer, proxy_header, soon};

/// What a client learns from the server's READY.
#[derive(Debug)]
struct Ready {
    transport: Transport,
    binding: Binding,
    pins: usize,
}

fn session() -> SessionConfig {
    SessionConfig {
        binding: BindingPolicy::Warn,
        exporter: None,
        info: Vec::new(),
        max_version: 1,
        timing: Default::default(),
    }
}

/// Logs in over any stream and returns what READY says, or the code of a CLOSE.
async fn ready<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    credential: Credential,
    exporter: Option<[u8; 32]>,
) -> Result<Ready, CloseCode> {
    let config = SessionConfig { exporter, ..session() };
    let mut connection = soon("login", login(io, credential, None, config)).await.unwrap();
    loop {
        soon("READY", connection.wait(None)).await.unwrap();
        match connection.open_frame().unwrap() {
            SessionEvent::Ready { info, binding } => {
                let info = proto::ServerInfo::decode(info).unwrap();
                connection.close(CloseCode::Bye).await;
                let (transport, pins) = (info.transport(), info.tls_pins.len());
                return Ok(Ready { transport, binding, pins });
            }
            SessionEvent::Closed(code) => return Err(code),
            _ => {}
        }
    }
}

async fn tcp(address: SocketAddr) -> TcpStream {
    soon("connect", TcpStream::connect(address)).await.unwrap()
}

async fn tls(host: &TestServer, alpn: Option<Alpn>) -> TlsStream<TcpStream> {
    let trust = ServerTrust::Pins(vec![host.pin()]);
    match alpn {
        Some(alpn) => {
            let tls = ClientTls::new(trust, alpn).unwrap();
            soon("TLS", tls.connect("localhost", tcp(host.address()).await)).await.unwrap()
        }
        None => soon("TLS", without_alpn(host)).await,
    }
}

/// As nginx and HAProxy connect to an upstream.
async fn without_alpn(host: &TestServer) -> TlsStream<TcpStream> {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    struct Any;
    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any))
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    connector.connect(name, tcp(host.address()).await).await.unwrap()
}

/// Sends bytes and returns all that the server answers until it ends the connection.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(mut io: S, bytes: &[u8]) -> String {
    soon("sending", io.write_all(bytes)).await.ok();
    io.flush().await.ok();
    let mut answer = Vec::new();
    soon("the end", io.read_to_end(&mut answer)).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

fn plain(config: &mut Config) {
    config.plain = Some("127.0.0.1:0".parse().unwrap());
}

/// An upgrade request with these additional fields.
fn upgrade(fields: &str) -> Vec<u8> {
    format!(
        "GET /twinlock HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
    .into_bytes()
}

#[tokio::test]
async fn transport__tls_port_serves_sessions_and_websocket() {
    let host = TestServer::start().await;
    let device = host.join(&host.owner_invite(), "ada").await;
    for alpn in [Some(Alpn::Any), Some(Alpn::Direct), None] {
        let io = tls(&host, alpn).await;
        let exporter = channel_binding(io.get_ref().1).ok();
        let seen = ready(io, device.credential(), exporter).await.unwrap();
        assert_eq!((seen.transport, seen.binding), (Transport::Tls, Binding::Bound), "{alpn:?}");
        assert_eq!(seen.pins, 1);
    }
    for alpn in [Some(Alpn::Http), None] {
        let io = tls(&host, alpn).await;
        let exporter = channel_binding(io.get_ref().1).ok();
        let io = soon("upgrade", connect(io, "localhost", "/twinlock")).await.unwrap();
        let seen = ready(io, device.credential(), exporter).await.unwrap();
        let expected = (Transport::Websocket, Binding::Bound, 1);
        assert_eq!((seen.transport, seen.binding, seen.pins), expected, "{alpn:?}");
    }
}

#[tokio::test]
async fn transport__plain_port_is_reported_and_refused_under_require() {
    let host = TestServer::start_with(plain).await;
    let device = host.join(&host.owner_invite(), "ada").await;
    let address = host.server().plain_addr().unwrap();
    let seen = ready(tcp(address).await, device.credential(), None).await.unwrap();
    let expected = (Transport::Plain, Binding::Unknown, 0);
    assert_eq!((seen.transport, seen.binding, seen.pins), expected);
    let io = soon("upgrade", connect(tcp(address).await, "localhost", "/twinlock")).await.unwrap();
    let seen = ready(io, device.credential(), Some([7; 32])).await.unwrap();
    assert_eq!((seen.transport, seen.binding), (Transport::PlainWebsocket, Binding::Unknown));
    let host = host
        .restart(|config| {
            plain(config);
            config.binding = BindingPolicy::Require;
        })
        .await;
    let io = tcp(host.server().plain_addr().unwrap()).await;
    let mut connection =
        soon("login", login(io, device.credential(), None, session())).await.unwrap();
    let code = loop {
        soon("CLOSE", connection.wait(None)).await.unwrap();
        if let SessionEvent::Closed(code) = connection.open_frame().unwrap() {
            break code;
        }
    };
    assert_eq!(code, CloseCode::Binding);
}

#[tokio::test]
async fn transport__is_in_the_log_line_of_a_session() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(plain).await;
    let device = host.join(&host.owner_invite(), "ada").await;
    let address = host.server().plain_addr().unwrap();
    let io = tls(&host, Some(Alpn::Direct)).await;
    ready(io, device.credential(), None).await.unwrap();
    let io = connect(tls(&host, Some(Alpn::Http)).await, "localhost", "/twinlock");
    ready(soon("upgrade", io).await.unwrap(), device.credential(), None).await.unwrap();
    ready(tcp(address).await, device.credential(), None).await.unwrap();
    let io = connect(tcp(address).await, "localhost", "/twinlock");
    ready(soon("upgrade", io).await.unwrap(), device.credential(), None).await.unwrap();
    for transport in ["tls", "websocket", "plain", "plain-websocket"] {
        let words = [" INFO ", "logged in sid", "user=\"ada\"", &format!("transport={transport} ")];
        let lines = log.wait(&words, 1).await;
        assert_eq!(lines.len(), 1, "{transport}: {lines:?}");
    }
    let by_invite = log.with(&[" INFO ", "logged in by invite", "transport=tls "]);
    assert!(!by_invite.is_empty(), "{}", log.text());
}

#[tokio::test]
async fn transport__plain_port_is_off_by_default() {
    let host = TestServer::start().await;
    assert_eq!(host.server().plain_addr(), None);
}

#[tokio::test]
async fn transport__plain_port_beyond_loopback_needs_listed_proxy() {
    let everywhere = |config: &mut Config| config.plain = Some("0.0.0.0:0".parse().unwrap());
    let host = TestServer::start_with(everywhere).await;
    let port = host.server().plain_addr().unwrap().port();
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(answer(tcp(local).await, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    let host = host
        .restart(|config| {
            everywhere(config);
            config.forwarded_from = vec!["127.0.0.1".parse().unwrap()];
        })
        .await;
    let local = SocketAddr::from(([127, 0, 0, 1], host.server().plain_addr().unwrap().port()));
    let page = answer(tcp(local).await, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
}

#[tokio::test]
async fn http__page_and_path_are_those_configured() {
    let host = TestServer::start_with(|config| {
        plain(config);
        config.websocket_path = "/a/b".to_owned();
        config.index = Some("<!doctype html><title>Hello</title>".to_owned());
    })
    .await;
    let address = host.server().plain_addr().unwrap();
    let page = answer(tcp(address).await, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(page.contains("content-type: text/html") && page.ends_with("</title>"), "{page}");
    let invite = host.server().owner_invite().unwrap().to_link();
    assert!(invite.contains("/a/b#"), "the path is missing from the invite link");
    soon("upgrade", connect(tcp(address).await, "localhost", "/a/b")).await.map(drop).unwrap();
    let other = soon("upgrade", connect(tcp(address).await, "localhost", "/twinlock")).await;
    assert!(matches!(other.err(), Some(UpgradeFault::Status(404))));
}

#[tokio::test]
async fn http__invalid_websocket_path_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TestServer::config(dir.path());
    config.websocket_path = "no path".to_owned();
    let started = twinlock_server::Server::start(config).await;
    assert!(matches!(started.err(), Some(twinlock_server::StartError::WebsocketPath(_))));
}

#[tokio::test]
async fn http__web_page_of_a_visitor_is_refused() {
    let host = TestServer::start_with(plain).await;
    let bytes = upgrade("Origin: https://chat.example\r\n");
    let refused = answer(tcp(host.server().plain_addr().unwrap()).await, &bytes).await;
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused}");
    let refused = answer(tls(&host, Some(Alpn::Http)).await, &bytes).await;
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused}");
}

#[tokio::test]
async fn http__slow_or_silent_client_is_dropped_at_the_hello_deadline() {
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(plain).await;
    let address = host.server().plain_addr().unwrap();
    let slow = async |sent: &[u8]| {
        let mut io = tcp(address).await;
        io.write_all(sent).await.unwrap();
        let began = Instant::now();
        let trickle = async {
            while io.write_all(b"A: b\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        soon("the deadline", trickle).await;
        began.elapsed()
    };
    let silent = async {
        let began = Instant::now();
        assert_eq!(answer(tcp(address).await, b"").await, "");
        began.elapsed()
    };
    let upgraded = async {
        let began = Instant::now();
        let io = tcp(address).await;
        let mut io = soon("upgrade", connect(io, "localhost", "/twinlock")).await.unwrap();
        soon("the deadline", io.read_to_end(&mut Vec::new())).await.ok();
        began.elapsed()
    };
    let head = b"GET /twinlock HTTP/1.1\r\nHost: a\r\n";
    let (slow, silent, upgraded) = tokio::join!(slow(head), silent, upgraded);
    for took in [slow, silent, upgraded] {
        let expected = Duration::from_millis(4500)..Duration::from_secs(9);
        assert!(expected.contains(&took), "{slow:?} {silent:?} {upgraded:?}");
    }
    assert!(log.text().contains("time for HELLO or PROOF"), "{}", log.text());
}

#[tokio::test]
async fn http__hostile_requests_never_reach_a_session() {
    let host = TestServer::start_with(plain).await;
    let address = host.server().plain_addr().unwrap();
    let huge = upgrade(&format!("A: {}\r\n", "x".repeat(1 << 20)));
    let many = upgrade(&"A: b\r\n".repeat(100_000));
    let smuggled = [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_vec(),
        upgrade(""),
    ]
    .concat();
    let two = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), upgrade("")].concat();
    for (bytes, expected) in [
        (huge, "HTTP/1.1 431 "),
        (many, "HTTP/1.1 431 "),
        (smuggled, "HTTP/1.1 4"),
        (two, "HTTP/1.1 200 "),
        (upgrade("Upgrade: h2c\r\n"), "HTTP/1.1 4"),
        (b"\x02\0\0\x40".to_vec(), ""),
        (b"\x16\x03\x01\x02\0".to_vec(), ""),
        (b"get / HTTP/1.1\r\n\r\n".to_vec(), ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), ""),
    ] {
        let got = answer(tcp(address).await, &bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
        assert!(got.starts_with(expected), "{shown:?}: {got}");
        assert!(!got.contains("101") && got.matches("HTTP/").count() <= 1, "{shown:?}: {got}");
        assert!(expected.is_empty() == got.is_empty(), "{shown:?}: {got}");
    }
    // HELLO in an unmasked frame, in a text message, in one that never ends.
    for frame in [
        &b"\x82\x04\x01\0\x05\x05"[..],
        b"\x81\x84\0\0\0\0\x01\0\x05\x05",
        b"\x02\xff\0\0\0\xff\0\0\0\0\0\0\0\0",
    ] {
        let got = answer(tcp(address).await, &[&upgrade("")[..], frame].concat()).await;
        assert!(got.starts_with("HTTP/1.1 101 "), "{got}");
        assert!(got.split("\r\n\r\n").nth(1).is_some_and(|rest| rest.len() < 140), "{got:?}");
    }
    assert_eq!(host.server().sessions(), 0);
}

#[tokio::test]
async fn http__proxy_names_the_client_whose_limits_apply() {
    let local: IpAddr = "127.0.0.1".parse().unwrap();
    let log = Log::of(Level::INFO);
    let host = TestServer::start_with(|config| {
        plain(config);
        config.forwarded_from = vec![local];
        config.limits.unauthenticated_per_address = 1;
    })
    .await;
    let address = host.server().plain_addr().unwrap();
    let open = async |fields: &str| {
        let mut io = tcp(address).await;
        io.write_all(&upgrade(fields)).await.unwrap();
        let mut answer = vec![0; 12];
        soon("the answer", io.read_exact(&mut answer)).await.unwrap();
        // The server counts the connection right after its answer.
        tokio::time::sleep(Duration::from_millis(100)).await;
        (io, String::from_utf8(answer).unwrap())
    };
    let (mut first, status) = open("X-Forwarded-For: 198.51.100.7\r\n").await;
    assert_eq!(status, "HTTP/1.1 101");
    let (_other, _) = open("X-Forwarded-For: 198.51.100.7, 198.51.100.8\r\n").await;
    // One more of the first client takes its place.
    let (_again, _) = open("Forwarded: for=198.51.100.7\r\n").await;
    let began = Instant::now();
    soon("eviction", first.read_to_end(&mut Vec::new())).await.ok();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(log.text().contains("unauthenticated-per-address"), "{}", log.text());
    for fields in
        ["X-Forwarded-For: unknown\r\n", "Forwarded: for=1.2.3.4\r\nX-Forwarded-For: 1.2.3.4\r\n"]
    {
        assert_eq!(open(fields).await.1, "HTTP/1.1 400", "{fields}");
    }
}

#[tokio::test]
async fn http__unlisted_proxy_cannot_name_a_client() {
    let host = TestServer::start_with(plain).await;
    for _ in 0..3 {
        let mut io = tls(&host, Some(Alpn::Http)).await;
        io.write_all(&upgrade("X-Forwarded-For: junk\r\nForwarded: junk\r\n")).await.unwrap();
        let mut answer = vec![0; 12];
        soon("the answer", io.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 101");
    }
}

#[tokio::test]
async fn proxy__header_of_both_versions_precedes_every_transport() {
    let host = TestServer::start_with(|config| {
        plain(config);
        config.proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 49153 443\r\n";
    let owner = host.owner_invite();
    for header in [&line[..], &proxy_header([192, 0, 2, 7])] {
        let mut io = tcp(host.server().plain_addr().unwrap()).await;
        io.write_all(header).await.unwrap();
        let seen = ready(io, owner.credential(), None).await.unwrap();
        assert_eq!(seen.transport, Transport::Plain);
        let mut io = tcp(host.address()).await;
        io.write_all(header).await.unwrap();
        let tls = ClientTls::new(ServerTrust::Pins(vec![host.pin()]), Alpn::Http).unwrap();
        let io = soon("TLS", tls.connect("localhost", io)).await.unwrap();
        let io = soon("upgrade", connect(io, "localhost", "/twinlock")).await.unwrap();
        assert_eq!(
            ready(io, owner.credential(), None).await.unwrap().transport,
            Transport::Websocket
        );
    }
    let io = tcp(host.server().plain_addr().unwrap()).await;
    let refused = soon("login", login(io, owner.credential(), None, session())).await;
    assert!(matches!(refused.err(), Some(LoginError::Io(_))));
}
