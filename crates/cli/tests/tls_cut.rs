//! Lock 1 ends in the middle: a real proxy with a certificate that its clients trust opens TLS
//! and keeps everything it sees.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use twinlock_core::id::TlsPin;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_link::tls::{Alpn, ClientTls, ServerCert, ServerTls, Trust, spki_pin};

const MESSAGES: usize = 10_000;

/// A proxy that ends TLS of its clients and begins its own to the server.
struct Proxy {
    address: SocketAddr,
    /// Its certificate, PEM, which clients can take for an authority.
    ca_file: PathBuf,
    pin: TlsPin,
    seen: Arc<Seen>,
    _runtime: Runtime,
}

/// What passed in the clear of lock 1, both directions of all connections.
#[derive(Default)]
struct Seen {
    bytes: Mutex<Vec<u8>>,
    lines: AtomicUsize,
}

impl Proxy {
    fn start(host: &Host, server_pin: TlsPin) -> Self {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let ca_file = host.root().join("proxy.pem");
        std::fs::write(&ca_file, cert.pem()).unwrap();
        let pin = spki_pin(cert.der()).unwrap();
        let pem = (cert.pem(), key.serialize_pem());
        let ends = ServerCert::from_pem(pem.0.as_bytes(), pem.1.as_bytes()).unwrap();
        let inside = ServerTls::new(ends).unwrap();
        let outside = ClientTls::new(Trust::Pins(vec![server_pin]), Alpn::Required).unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let (to, sees) = (host.address(), Arc::clone(&seen));
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (inside, outside, sees) = (inside.clone(), outside.clone(), sees.clone());
                tokio::spawn(async move {
                    let Ok(client) = inside.accept(tcp).await else { return };
                    let server = TcpStream::connect(to).await.unwrap();
                    let server = outside.connect("localhost", server).await.unwrap();
                    sees.lines.fetch_add(1, Ordering::Relaxed);
                    let (from_client, to_client) = split(client);
                    let (from_server, to_server) = split(server);
                    let up = carry(from_client, to_server, sees.clone());
                    let down = carry(from_server, to_client, sees);
                    tokio::join!(up, down);
                });
            }
        });
        Self { address, ca_file, pin, seen, _runtime: runtime }
    }

    /// The somebody's invite that a forger hands on: to itself, and to its own key.
    fn forges(&self, link: &str) -> String {
        let mut link = InviteLink::parse(link).unwrap();
        link.address = Address::new("127.0.0.1", self.address.port()).unwrap();
        link.tls_pin = Some(self.pin);
        link.to_link().to_string()
    }

    /// Makes a person's profile trust the proxy's certificate as an authority, and decide by
    /// `binding`, as somebody does who edits it by hand.
    fn is_trusted_by(&self, person: &Person, binding: &str) -> Person {
        let text = person.profile_text();
        let (head, _) = text.split_once("[tls]").unwrap();
        let head = head.lines().map(|line| {
            let is_binding = line.starts_with("binding = ");
            if is_binding { format!("binding = \"{binding}\"\n") } else { format!("{line}\n") }
        });
        let tls = format!("[tls]\ntrust = \"ca\"\nca_file = \"{}\"\n", self.ca_file.display());
        std::fs::write(person.profile_file(), head.collect::<String>() + &tls).unwrap();
        person.by(self.address)
    }

    fn lines(&self) -> usize {
        self.seen.lines.load(Ordering::Relaxed)
    }

    fn saw(&self, what: &[u8]) -> bool {
        assert!(what.len() >= 4);
        let seen = self.seen.bytes.lock().unwrap();
        seen.windows(what.len()).any(|window| window == what)
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, seen: Arc<Seen>) {
    let mut part = vec![0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut part).await {
        seen.bytes.lock().unwrap().extend_from_slice(&part[..got]);
        if to.write_all(&part[..got]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}

/// A secret in each form in which it could stand somewhere.
fn forms(secret: &[u8]) -> [Vec<u8>; 5] {
    let hex = HEXLOWER.encode(secret);
    [
        secret.to_vec(),
        hex.to_ascii_uppercase().into_bytes(),
        hex.into_bytes(),
        BASE64.encode(secret).trim_end_matches('=').as_bytes().to_vec(),
        BASE64URL_NOPAD.encode(secret).into_bytes(),
    ]
}

fn device_secret(person: &Person) -> Vec<u8> {
    let text = person.profile_text();
    let line = text.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap();
    HEXLOWER.decode(line.trim_matches('"').as_bytes()).unwrap()
}

#[test]
fn a_proxy_that_ends_tls_sees_ten_thousand_messages_pass_and_can_read_none_of_it() {
    const PASSWORD: &str = "nobody-in-between-reads-this";
    let host = Host::start_with(&["--host", "127.0.0.1"]);
    let server_pin = InviteLink::parse(&host.owner_link()).unwrap().tls_pin.unwrap();
    let ada = host.owner();
    let proxy = Proxy::start(&host, server_pin);
    let password_file = host.root().join("password");
    std::fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
    let password_file = password_file.to_str().unwrap();

    // Somebody joins through it, with a password, by a link that names the proxy's key.
    let link = proxy.forges(&ada.invites());
    let secret = *InviteLink::parse(&link).unwrap().secret.expose_secret();
    let bob = host.stranger();
    let joined =
        bob.run(&["join", "--user", "bob", "--password-file", password_file, &link]).exits(0);
    assert!(joined.err.contains("TLS ends somewhere between"), "{joined:?}");
    // And logs in through it on another device, trusting the proxy as an authority.
    let account = format!("bob@{}", proxy.address);
    let ca_file = proxy.ca_file.to_str().unwrap();
    let phone = host.stranger();
    let login = ["login", &account, "--password-file", password_file, "--ca", ca_file];
    let logged_in = phone.run(&login).exits(0);
    assert!(logged_in.err.contains("TLS ends somewhere between"), "{logged_in:?}");

    let [bob, phone] = [bob, phone].map(|person| proxy.is_trusted_by(&person, "warn"));
    let marker = "Kennwort-Zeile";
    let text = (0..MESSAGES).map(|n| format!("{marker} {n:05}\n")).collect::<String>();
    let count = MESSAGES.to_string();
    let listening = phone.start(&["listen", "lobby", "--since", "all", "--count", &count]);
    let sent = bob.run_with(&["send", "lobby"], &text).exits(0);
    let heard = listening.ended(LONG).exits(0);
    assert_eq!(heard.out.matches(marker).count(), MESSAGES);
    for said in [sent.err, heard.err] {
        assert!(said.contains("TLS ends somewhere between"), "{said}");
        assert!(said.contains("The inner lock held"), "{said}");
    }
    let status = bob.run(&["status", "--json"]).exits(0);
    assert_eq!(status.json()[0]["tls"]["binding"], "cut");
    // Whoever goes another way reads the same, and is warned of nothing.
    let read = ada.run(&["history", "lobby", "--limit", "20000"]).exits(0);
    assert_eq!(read.out.matches(marker).count(), MESSAGES);
    assert_eq!(read.err, "");

    // It saw everything there was: the handshakes name who logs in by password.
    assert!(proxy.lines() >= 5, "{}", proxy.lines());
    assert!(proxy.seen.bytes.lock().unwrap().len() > MESSAGES * 50);
    assert!(proxy.saw(b"\x01\x00\x01\x03bob"));
    let mut secrets = vec![marker.into(), b"Kennwort".to_vec()];
    secrets.extend(forms(PASSWORD.as_bytes()));
    secrets.extend(forms(&secret));
    secrets.extend(forms(&device_secret(&bob)));
    secrets.extend(forms(&device_secret(&phone)));
    for secret in secrets {
        assert!(!proxy.saw(&secret), "{:?}", String::from_utf8_lossy(&secret));
    }
}

#[test]
fn where_tls_must_not_be_cut_nothing_is_sent_through_a_proxy_that_cuts_it() {
    let mut host = Host::start();
    let server_pin = InviteLink::parse(&host.owner_link()).unwrap().tls_pin.unwrap();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let proxy = Proxy::start(&host, server_pin);

    // The client's word.
    let strict = proxy.is_trusted_by(&bob, "require");
    let limit = Duration::from_secs(20);
    for args in [&["send", "lobby", "secret"][..], &["history", "lobby"], &["status"]] {
        let ran = strict.start(args).ended(limit).exits(4);
        assert!(ran.err.contains("TLS ends somewhere between"), "{ran:?}");
    }
    assert_eq!(proxy.lines(), 3);
    // What was written is kept, and goes out over a line that nobody cuts.
    assert_eq!(ada.reads("lobby").len(), 0);
    // Whoever joins and requires it leaves no profile, and the invite is good.
    let link = ada.invites();
    let carol = host.stranger();
    let join = |link: &str, code| {
        let args = ["join", "--no-password", "--require-binding", "--user", "carol", link];
        carol.run(&args).exits(code)
    };
    let refused = join(&proxy.forges(&link), 4);
    assert!(refused.err.contains("TLS ends somewhere between"), "{refused:?}");
    assert!(!carol.profile_file().exists());
    join(&link, 0);
    assert!(carol.profile_text().contains("binding = \"require\""));
    carol.run(&["send", "lobby", "straight"]).exits(0);

    // The server's word, to a client that would go on.
    host.terminate().exits(0);
    host.set_args(&["--binding", "require"]);
    host.restart();
    let easy = proxy.is_trusted_by(&bob, "warn");
    for args in [&["send", "lobby", "secret"][..], &["history", "lobby"]] {
        let ran = easy.start(args).ended(limit).exits(4);
        assert!(ran.err.contains("TLS ends somewhere between"), "{ran:?}");
    }
    assert_eq!(texts(&ada.reads("lobby")), ["straight"]);
    assert!(!proxy.saw(b"secret"));
}
