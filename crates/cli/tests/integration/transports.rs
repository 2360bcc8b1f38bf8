//! The program over WebSocket, and through proxies that terminate TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use twinlock_core::id::TlsPin;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_transport::tls::spki_pin;

use crate::common::http_only::HttpOnly;
use crate::common::*;

const CUT: &str = "TLS is intercepted between";
const TEXT: &str = "nobody in between reads this text";

/// A server with a plain port, and the port's address.
fn with_plain_port(args: &[&str]) -> (Host, SocketAddr) {
    let host = Host::start_with(&[&["--plain-port", "0"], args].concat());
    host.running().wait_lines(2);
    let said = host.running().out();
    let plain = said.lines().find_map(|line| line.strip_prefix("without TLS on ")).unwrap();
    (host, plain.parse().unwrap())
}

/// Sends messages and a file, and reads them again. All commands get `options`; returns what they
/// print to standard error.
fn converse(host: &Host, person: &Person, options: &[&str]) -> String {
    let run = |args: &[&str]| person.run(&[options, args].concat()).exits(0);
    let mut said = String::new();
    said += &run(&["send", "lobby", TEXT]).err;
    let text = (0..200).map(|n| format!("line {n}\n")).collect::<String>();
    said += &person.run_with(&[options, &["send", "lobby"]].concat(), &text).exits(0).err;
    let file = host.root().join("file");
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|n| [(n % 251) as u8]).collect();
    std::fs::write(&file, &bytes).unwrap();
    let put = run(&["put", file.to_str().unwrap(), "lobby", "--json"]);
    let done = put.json().into_iter().find(|line| line["event"] == "done").unwrap();
    let back = host.root().join("back");
    said += &run(&["get", "lobby", &done["n"].to_string(), "-o", back.to_str().unwrap()]).err;
    assert!(std::fs::read(&back).unwrap() == bytes);
    std::fs::remove_file(&back).unwrap();
    let read = run(&["history", "lobby", "--limit", "1000"]);
    assert_eq!(read.out.matches("line ").count(), 200);
    assert!(read.out.contains(TEXT));
    said + &read.err
}

#[test]
fn transport__websocket_carries_join_messages_and_file() {
    let host = Host::start_with(&["--websocket-path", "/chat/line"]);
    let link = host.owner_link();
    assert!(link.contains("/chat/line#"), "the link has no path");
    let ada = host.stranger();
    let options = ["--transport", "websocket"];
    let join = ["join", "--no-password", "--require-binding", "--user", "ada", &link];
    let joined = ada.run(&[&options[..], &join].concat()).exits(0);
    assert!(ada.profile_text().contains("path = \"/chat/line\""), "{}", ada.profile_text());
    let said = converse(&host, &ada, &options);
    assert!(!said.contains(CUT) && !joined.err.contains(CUT), "{said}");
    // The link that she makes names the path, and the direct transport still works.
    let bob = host.member(&ada, "bob");
    assert!(bob.profile_text().contains("path = \"/chat/line\""), "{}", bob.profile_text());
    let log = std::fs::read_to_string(ada.home.join("state/default/client.log")).unwrap();
    assert!(log.contains("transport=websocket"), "{log}");
}

#[test]
fn transport__plain_counts_as_cut_and_stays_on_this_machine() {
    let (host, plain) = with_plain_port(&[]);
    let link = host.owner_link();
    let port = plain.port().to_string();
    let options = ["--transport", "plain", "--port", &port];
    let ada = host.stranger();
    let join = ["join", "--no-password", "--user", "ada", &link];
    let strict = ["join", "--no-password", "--require-binding", "--user", "ada", &link];
    let refused = ada.run(&[&options[..], &strict].concat()).exits(4);
    assert!(refused.err.contains(CUT) && !ada.profile_file().exists(), "{refused:?}");
    let joined = ada.run(&[&options[..], &join].concat()).exits(0);
    assert!(joined.err.contains(CUT), "{joined:?}");
    let said = converse(&host, &ada, &["--transport", "plain"]);
    assert!(said.contains(CUT), "{said}");
    let away = ["--transport", "plain", "--address", "192.0.2.1:8443", "history", "lobby"];
    let refused = ada.run(&away).exits(2);
    assert!(refused.err.contains("this machine only"), "{refused:?}");
    // Without the option the client speaks TLS, to which the plain port says nothing.
    ada.run(&["--timeout", "3s", "history", "lobby"]).exits(5);
}

#[test]
fn transport__http_proxy_is_found_and_reported_as_cut() {
    let (host, plain) = with_plain_port(&["--forwarded-from", "127.0.0.1"]);
    let ada = host.owner();
    let config = without_alpn(&host);
    let tls = || To::Tls(host.address(), config.clone());
    for (name, alpn, to) in [
        ("http to plain", Some("http/1.1"), To::Plain(plain)),
        ("no alpn to plain", None, To::Plain(plain)),
        ("http to tls", Some("http/1.1"), tls()),
        ("no alpn to tls", None, tls()),
    ] {
        let proxy = HttpProxy::start(alpn, to);
        let mut link = InviteLink::parse(&ada.invites()).unwrap();
        link.address = Address::new("127.0.0.1", proxy.address.port()).unwrap();
        link.tls_pin = Some(proxy.pin);
        let user = name.replace(' ', "-");
        let bob = host.stranger();
        let join = ["join", "--no-password", "--user", &user, &*link.to_link()];
        let joined = bob.run(&join).exits(0);
        assert!(joined.err.contains(CUT), "{name}: {joined:?}");
        // The server's pins are those of its own key, which the proxy does not have.
        let text = bob.profile_text();
        let (head, _) = text.split_once("[tls]").unwrap();
        let pin = format!("[tls]\ntrust = \"pin\"\npins = [\"{}\"]\n", proxy.pin);
        std::fs::write(bob.profile_file(), format!("{head}{pin}")).unwrap();
        let sent = bob.run(&["send", "lobby", TEXT]).exits(0);
        assert!(sent.err.contains(CUT), "{name}: {sent:?}");
        let seen = proxy.seen.lock().unwrap();
        assert!(seen.len() > 2000, "{name}: {}", seen.len());
        assert!(!seen.windows(12).any(|part| TEXT.as_bytes().starts_with(part)), "{name}");
        assert_eq!(seen.starts_with(b"GET /twinlock HTTP/1.1\r\n"), alpn.is_some(), "{name}");
    }
}

/// The proxy selects no protocol, so that the client sends HELLO, and answers it with HTTP 400.
#[test]
fn transport__http_without_alpn_is_found_after_hello() {
    let (host, plain) = with_plain_port(&[]);
    let ada = host.owner();
    let proxy = HttpOnly::start(plain);
    let mut link = InviteLink::parse(&ada.invites()).unwrap();
    link.address = Address::new("127.0.0.1", proxy.address.port()).unwrap();
    link.tls_pin = Some(proxy.pin);
    let bob = host.stranger();
    let diagnosed = bob.run(&["doctor", "--json", &*link.to_link()]).exits(0).json().remove(0);
    let steps = diagnosed["steps"].as_array().unwrap();
    let step = |name: &str| steps.iter().find(|step| step["name"] == name).unwrap();
    assert_eq!(step("login")["facts"]["transport"], "websocket", "{diagnosed:#}");
    assert_eq!(step("middle")["facts"]["cut"], true, "{diagnosed:#}");
    let joined = bob.run(&["join", "--no-password", "--user", "bob", &*link.to_link()]).exits(0);
    assert!(joined.err.contains(CUT), "{joined:?}");
    let text = bob.profile_text();
    let (head, _) = text.split_once("[tls]").unwrap();
    let pin = format!("[tls]\ntrust = \"pin\"\npins = [\"{}\"]\n", proxy.pin);
    std::fs::write(bob.profile_file(), format!("{head}{pin}")).unwrap();
    // A login makes two connections, of which one sends a request.
    let (connections, requests) = proxy.counts();
    bob.run(&["send", "lobby", TEXT]).exits(0);
    assert_eq!(proxy.counts(), (connections + 2, requests + 1));
    // The transport that is chosen needs one, or fails.
    bob.run(&["--transport", "websocket", "history", "lobby"]).exits(0);
    assert_eq!(proxy.counts(), (connections + 3, requests + 2));
    let direct = ["--timeout", "3s", "--transport", "tls", "history", "lobby"];
    bob.run(&direct).exits(5);
    assert_eq!(proxy.counts().1, requests + 2);
}

/// What a proxy connects to.
#[derive(Clone)]
enum To {
    Plain(SocketAddr),
    Tls(SocketAddr, Arc<ClientConfig>),
}

/// Trusts the server's own certificate and offers no protocol, as nginx does.
fn without_alpn(host: &Host) -> Arc<ClientConfig> {
    let cert = host.data().join("identity/tls-cert.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).unwrap()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// A proxy that terminates TLS with this ALPN, and passes the bytes on as HTTP and stream proxies
/// do: over plain TCP, or over TLS without ALPN.
struct HttpProxy {
    address: SocketAddr,
    pin: TlsPin,
    /// What clients sent.
    seen: Arc<Mutex<Vec<u8>>>,
    _runtime: Runtime,
}

impl HttpProxy {
    fn start(alpn: Option<&str>, to: To) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = cert.self_signed(&key).unwrap();
        let pin = spki_pin(cert.der()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, kept, to) = (acceptor.clone(), kept.clone(), to.clone());
                tokio::spawn(async move {
                    let Ok(client) = acceptor.accept(tcp).await else { return };
                    match to {
                        To::Plain(to) => {
                            pass(client, TcpStream::connect(to).await.unwrap(), kept).await;
                        }
                        To::Tls(to, config) => {
                            let server = TcpStream::connect(to).await.unwrap();
                            let name = "localhost".try_into().unwrap();
                            let tls = TlsConnector::from(config).connect(name, server);
                            let server = tls.await.unwrap();
                            pass(client, server, kept).await;
                        }
                    }
                });
            }
        });
        Self { address, pin, seen, _runtime: runtime }
    }
}

async fn pass<C, S>(client: C, server: S, seen: Arc<Mutex<Vec<u8>>>)
where
    C: AsyncRead + AsyncWrite,
    S: AsyncRead + AsyncWrite,
{
    let ((from_client, to_client), (from_server, to_server)) = (split(client), split(server));
    tokio::join!(carry(from_client, to_server, Some(seen)), carry(from_server, to_client, None));
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    seen: Option<Arc<Mutex<Vec<u8>>>>,
) {
    let mut part = vec![0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        if let Some(seen) = &seen {
            seen.lock().unwrap().extend_from_slice(&part[..got]);
        }
        if to.write_all(&part[..got]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}
