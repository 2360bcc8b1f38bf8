//! `doctor` names the step that fails and the remedy, for faults with real sockets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use twinlock_core::frame::ErrorCode;
use twinlock_core::id::TlsPin;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_transport::tls::spki_pin;

use crate::common::malicious_server::MaliciousServer;
use crate::common::proxy::Proxy;
use crate::common::raw::Card;
use crate::common::*;
use crate::via::{Kind, OutgoingProxy};

const DAY_MS: u64 = 86_400_000;
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
const PORTAL: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";

/// A peer that gives one answer to whatever it gets first; with TLS, inside it.
struct Peer {
    address: SocketAddr,
    /// Of its TLS key.
    pin: TlsPin,
    /// Its certificate, PEM.
    certificate: String,
    /// The first byte of each connection; with TLS, inside it.
    heard: Arc<Mutex<Vec<u8>>>,
    _runtime: Runtime,
}

impl Peer {
    fn plain(answer: &[u8]) -> Self {
        Self::start(None, answer, 2050)
    }

    /// With these protocol names (ALPN).
    fn tls(alpn: &[&str], answer: &[u8]) -> Self {
        Self::start(Some(alpn), answer, 2050)
    }

    fn start(alpn: Option<&[&str]>, answer: &[u8], ends: i32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(ends, 1, 1);
        let cert = params.self_signed(&key).unwrap();
        let (pin, certificate) = (spki_pin(cert.der()).unwrap(), cert.pem());
        let acceptor = alpn.map(|alpn| {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let mut config = ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .unwrap();
            config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            TlsAcceptor::from(Arc::new(config))
        });
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_vec();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = heard.clone();
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, answer, list) = (acceptor.clone(), answer.clone(), list.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => say(tcp, &answer, &list).await,
                        Some(acceptor) => {
                            let Ok(tls) = acceptor.accept(tcp).await else { return };
                            say(tls, &answer, &list).await;
                        }
                    }
                });
            }
        });
        Self { address, pin, certificate, heard, _runtime: runtime }
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

async fn say(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8], heard: &Mutex<Vec<u8>>) {
    let mut part = [0; 4096];
    let Ok(1..) = io.read(&mut part).await else { return };
    heard.lock().unwrap().push(part[0]);
    let _gone = io.write_all(answer).await;
    let _gone = io.shutdown().await;
    // Without a reset, which could destroy the answer.
    while let Ok(1..) = io.read(&mut part).await {}
}

/// A link to another server.
fn link_to(link: &str, to: SocketAddr, pin: Option<TlsPin>) -> String {
    let mut link = InviteLink::parse(link).unwrap();
    link.address = Address::new("127.0.0.1", to.port()).unwrap();
    link.tls_pin = pin;
    link.to_link().to_string()
}

fn run(person: &Person, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = person.command(args);
    command.envs(env.iter().copied());
    Running::start(&mut command).ended(LONG)
}

fn step<'a>(json: &'a Value, name: &str) -> &'a Value {
    let steps = json["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap()
}

/// Runs `doctor`, which has to name this step with these words in its text or remedy, in JSON and
/// for people.
fn names(
    person: &Person,
    args: &[&str],
    env: &[(&str, &str)],
    (code, name): (i32, &str),
    words: &[&str],
) -> Value {
    let json = run(person, &[&["doctor", "--json"], args].concat(), env).exits(code).json();
    let json = json.into_iter().next().unwrap();
    assert_eq!(json["failed"], name, "{json:#}");
    assert_eq!(json["ok"], false);
    let said = format!("{} {}", step(&json, name)["text"], json["remedy"]);
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
    let ran = run(person, &[&["doctor"], args].concat(), env).exits(code);
    assert!(ran.out.contains(&format!("✗ {name}")), "{ran:?}");
    assert!(ran.err.contains("what to do: "), "{ran:?}");
    json
}

#[test]
fn doctor__healthy_server_passes_every_step() {
    let host = Host::start();
    let link = host.owner_link();
    let nobody = host.stranger();
    // The invite stays unused.
    let by_link = nobody.run(&["doctor", "--json", &link]).exits(0).json().remove(0);
    let ada = host.owner();
    let by_profile = ada.run(&["doctor", "--json"]).exits(0).json().remove(0);
    for json in [&by_link, &by_profile] {
        for step in json["steps"].as_array().unwrap() {
            assert_eq!(step["outcome"], "ok", "{json:#}");
        }
        assert_eq!(step(json, "tls")["facts"]["version"], "TLS 1.3");
        assert_eq!(step(json, "certificate")["facts"]["trusted_by"], "pin");
        assert_eq!(step(json, "middle")["facts"]["cut"], false);
        assert_eq!((&json["ok"], &json["failed"]), (&true.into(), &Value::Null));
    }
    let address = host.address().to_string();
    let ran = nobody.run(&["doctor", &address]).exits(0);
    assert!(ran.out.contains("one of the 20 guesses a minute"), "{ran:?}");
    assert!(ran.out.contains("✓ challenge"), "{ran:?}");
    let used = nobody.run(&["doctor", "--json", &link]).exits(3).json().remove(0);
    assert_eq!(used["failed"], "login", "{used:#}");
}

#[test]
fn doctor__wrong_port_and_server_down_are_named() {
    let mut host = Host::start();
    let ada = host.owner();
    let ssh = Peer::plain(b"SSH-2.0-OpenSSH_10.0\r\n");
    let port = ssh.address.port().to_string();
    names(&ada, &["--port", &port], &[], (5, "tls"), &["another service listens there"]);
    host.terminate().exits(0);
    names(&ada, &[], &[], (5, "tcp"), &["nothing listens on port", "start the server"]);
}

#[test]
fn doctor__plain_http_and_old_tls_are_named() {
    let host = Host::start();
    let ada = host.owner();
    let http = Peer::plain(BAD_REQUEST);
    let port = http.address.port().to_string();
    let words = ["speaks plain HTTP", "HTTP 400", "use the port that speaks TLS"];
    names(&ada, &["--port", &port], &[], (5, "tls"), &words);
    // It gets handshakes of TLS and no request.
    assert!(http.heard().len() > 1 && http.heard().iter().all(|first| *first == 0x16));
    // A fatal alert, protocol_version.
    let old = Peer::plain(&[0x15, 3, 3, 0, 2, 2, 70]);
    let port = old.address.port().to_string();
    names(&ada, &["--port", &port], &[], (5, "tls"), &["TLS 1.2 at most", "TLSv1.3"]);
}

#[test]
fn doctor__expired_certificate_and_wrong_pin_are_named() {
    let host = Host::start();
    let link = host.owner_link();
    let nobody = host.stranger();
    let expired = Peer::start(Some(&["twinlock/1"]), &[], 2021);
    let ca_file = host.root().join("ca.pem");
    std::fs::write(&ca_file, &expired.certificate).unwrap();
    let trusting = [("SSL_CERT_FILE", ca_file.to_str().unwrap())];
    let to_expired = link_to(&link, expired.address, None);
    let words = ["it has expired", "renews the certificate"];
    names(&nobody, &[&to_expired], &trusting, (4, "certificate"), &words);
    // Not trusted, and something else than Twinlock: it gets nothing, not even an HTTP request.
    let other = Peer::tls(&["http/1.1"], PORTAL);
    let wrong = link_to(&link, other.address, Some(TlsPin([7; 32])));
    let words = [
        "differs from the pinned key",
        "It speaks HTTP, so it is a web server or a proxy",
        "has a login page, log in there in a browser",
        "new invite link",
    ];
    let json = names(&nobody, &[&wrong], &[], (4, "certificate"), &words);
    for later in ["direct", "websocket", "challenge"] {
        assert_eq!(step(&json, later)["outcome"], "not_tried", "{json:#}");
    }
    assert!(other.heard().is_empty());
}

#[test]
fn doctor__blocked_websocket_and_login_page_are_named() {
    let host = Host::start();
    let link = host.owner_link();
    let nobody = host.stranger();
    let peer = Peer::tls(&["http/1.1"], FORBIDDEN);
    let to = link_to(&link, peer.address, Some(peer.pin));
    names(&nobody, &[&to], &[], (5, "websocket"), &["HTTP 403", "allow the upgrade at /twinlock"]);
    let peer = Peer::tls(&["http/1.1"], PORTAL);
    let to = link_to(&link, peer.address, Some(peer.pin));
    let words = ["HTTP 302", "a redirect", "login page in a browser"];
    names(&nobody, &[&to], &[], (5, "websocket"), &words);
    let peer = Peer::plain(PORTAL);
    let address = peer.address.to_string();
    names(&nobody, &[&address], &[], (5, "tls"), &["HTTP 302", "redirects to a login page"]);
}

#[test]
fn doctor__missing_alpn_and_old_server_are_named() {
    let host = Host::start();
    let link = host.owner_link();
    let nobody = host.stranger();
    let no_alpn = Peer::tls(&[], BAD_REQUEST);
    let too_old = Peer::tls(&["twinlock/1"], &ErrorCode::Version(0).to_frame());
    let silent = Peer::tls(&["twinlock/1"], &[]);
    let other = Peer::tls(&["h2"], &[]);
    for (peer, name, words) in [
        (&no_alpn, "challenge", &["answers HELLO with HTTP", "it answered HTTP 400", "(ALPN)"][..]),
        (&too_old, "challenge", &["ERROR 1", "update the server"]),
        (&silent, "challenge", &["closed the connection after HELLO", "update the server"]),
        (&other, "alpn", &["refuses the protocols", "pass TLS through"]),
    ] {
        let to = link_to(&link, peer.address, Some(peer.pin));
        let json = names(&nobody, &[&to], &[], (5, name), words);
        if name == "challenge" {
            assert_eq!(step(&json, "certificate")["outcome"], "ok", "{json:#}");
            assert_eq!(step(&json, "websocket")["outcome"], "warning", "{json:#}");
        }
    }
}

#[test]
fn doctor__proxy_login_and_unknown_name_are_named() {
    let host = Host::start();
    let ada = host.owner();
    for (scheme, words) in [
        ("Basic realm=\"x\"", "--via-auth-file"),
        ("NTLM", "accepts only NTLM, which is not supported"),
        ("Negotiate", "accepts only Negotiate, which is not supported"),
    ] {
        let answer = format!("HTTP/1.1 407 Auth\r\nProxy-Authenticate: {scheme}\r\n\r\n");
        let proxy = Peer::plain(answer.as_bytes());
        let url = format!("http://{}", proxy.address);
        names(&ada, &["--via", &url], &[], (5, "proxy"), &["HTTP 407", words]);
    }
    let proxy = [("HTTPS_PROXY", "https://127.0.0.1:1")];
    let words = ["cannot be used", "PAC files are not supported"];
    names(&ada, &["192.0.2.1:8443"], &proxy, (2, "proxy"), &words);
    let words = ["cannot be resolved", "check the spelling of chat.invalid"];
    names(&ada, &["chat.invalid:8443"], &[], (5, "name"), &words);
}

#[test]
fn doctor__way_through_a_proxy_is_diagnosed() {
    let host = Host::start();
    let ada = host.owner();
    for (kind, url) in [
        (Kind::Connect, "http://"),
        (Kind::Socks, "socks5h://"),
        (Kind::SocksWithLogin, "socks5://ada:open%20sesame@"),
    ] {
        let proxy = OutgoingProxy::start(kind, host.address());
        let url = format!("{url}{}", proxy.address);
        let env = [("ALL_PROXY", url.as_str())];
        // A name that only the proxy resolves.
        let args = ["doctor", "--json", "chat.example:7443"];
        let by = |person: &Person, args: &[&str]| run(person, args, &env).exits(0).json().remove(0);
        for json in [by(&ada, &args), by(&ada, &["doctor", "--json", "--host", "chat.example"])] {
            let text = step(&json, "proxy")["text"].as_str().unwrap();
            assert!(text.contains("from the environment) opens a connection"), "{json:#}");
            assert_eq!(step(&json, "challenge")["outcome"], "ok", "{json:#}");
            assert!(!json.to_string().contains("sesame"), "{json:#}");
            let middles = &step(&json, "middle")["facts"]["middles"];
            assert_eq!(middles[0]["does"], "pass", "{json:#}");
        }
        assert!(proxy.asked().iter().all(|asked| asked.contains("chat.example:")));
    }
    let wants_login = OutgoingProxy::start(Kind::SocksWithLogin, host.address());
    let url = format!("socks5://{}", wants_login.address);
    let words = ["wants a user name and password", "--via-auth-file"];
    names(&ada, &["--via", &url], &[], (5, "proxy"), &words);
    let http = Peer::plain(BAD_REQUEST);
    let url = format!("socks5://{}", http.address);
    names(&ada, &["--via", &url], &[], (5, "proxy"), &["opens no connection"]);
    names(&ada, &["--via", "socks5://127.0.0.1:1"], &[], (5, "tcp"), &["does not accept"]);
}

#[test]
fn doctor__clock_off_by_a_day_is_named() {
    let host = Host::start();
    let ada = host.owner();
    let server = MaliciousServer::start_with_clock(&host, &ada, DAY_MS);
    let by = ada.by(server.address());
    let words = ["24 h 0 min ahead of this machine's", "set the clock of the machine"];
    names(&by, &[], &[], (2, "clock"), &words);
}

#[test]
fn doctor__trusted_proxy_is_a_cut() {
    let host = Host::start_with(&["--host", "127.0.0.1"]);
    let ada = host.owner();
    let proxy = Proxy::start(&host, Card::of(&ada).server, || Box::new(|_| ()));
    let link =
        link_to(&ada.invites(), proxy.address, InviteLink::parse(&ada.invites()).unwrap().tls_pin);
    let trusting = [("SSL_CERT_FILE", proxy.ca_file.to_str().unwrap())];
    let bob = host.stranger();
    let ran = run(&bob, &["doctor", "--json", &link], &trusting).exits(0);
    let json = ran.json().remove(0);
    assert_eq!(step(&json, "middle")["facts"]["cut"], true, "{json:#}");
    assert_eq!(step(&json, "certificate")["outcome"], "warning", "{json:#}");
    assert!(ran.out.contains("rcgen self signed cert"), "{ran:?}");
    // The profile forbids it.
    let text = ada.profile_text().replace("binding = \"warn\"", "binding = \"require\"");
    std::fs::write(ada.profile_file(), text).unwrap();
    let by = ada.by(proxy.address);
    names(&by, &[], &trusting, (4, "certificate"), &["TLS is intercepted", "pass TLS"]);
}

#[test]
fn doctor__data_directory_is_checked_without_changes() {
    let mut host = Host::start();
    host.owner().run(&["send", "lobby", "hello"]).exits(0);
    let (data, port) = (host.data(), host.port().to_string());
    let doctor = |host: &Host, code| {
        let args = ["doctor", "--json", "--data", data.to_str().unwrap(), "--port", &port];
        host.stranger().run(&args).exits(code).json().remove(0)
    };
    let running = doctor(&host, 0);
    assert_eq!(step(&running, "record")["facts"]["running"], true, "{running:#}");
    assert!(step(&running, "port")["text"].as_str().unwrap().contains("in use"), "{running:#}");
    host.terminate().exits(0);
    let files = || {
        let all = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> =
            all.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect();
        all.sort();
        all
    };
    let before = files();
    let stopped = doctor(&host, 0);
    assert_eq!(files(), before);
    for step in stopped["steps"].as_array().unwrap() {
        assert_ne!(step["outcome"], "failed", "{stopped:#}");
    }
    assert_eq!(step(&stopped, "record")["outcome"], "ok", "{stopped:#}");
    let taken = std::net::TcpListener::bind(host.address()).unwrap();
    assert_eq!(doctor(&host, 2)["failed"], "port");
    drop(taken);
    // The pages of a database, then the header of a segment.
    for (file, bytes) in [("people.db", 8192..16384), ("00000001.log", 20..21)] {
        let path = data.join("record").join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[bytes].fill(0x55);
        std::fs::write(&path, changed).unwrap();
        let damaged = doctor(&host, 2);
        assert_eq!(damaged["failed"], "record");
        let text = step(&damaged, "record")["text"].as_str().unwrap();
        assert!(text.contains(file), "{damaged:#}");
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(step(&doctor(&host, 0), "record")["outcome"], "ok");
    // A record of version 0.1.
    std::fs::remove_dir_all(data.join("record")).unwrap();
    let old =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../store-embedded/tests/fixtures/old-record.db");
    std::fs::copy(old, data.join("record.db")).unwrap();
    let before = files();
    let old = doctor(&host, 0);
    let record = step(&old, "record");
    assert!(record["text"].as_str().unwrap().contains("the next start converts it"), "{old:#}");
    assert!(record["facts"]["needed"].as_u64() > Some(1 << 20), "{old:#}");
    assert_eq!(files(), before);
    std::fs::remove_file(data.join("identity/opaque-setup")).unwrap();
    let lost = doctor(&host, 2);
    assert_eq!(lost["failed"], "identity");
    assert!(lost["remedy"].as_str().unwrap().contains("backup"), "{lost:#}");
}

/// The ports are those that `serve` would take: an option, else a variable, else the file.
#[test]
fn doctor__data_directory_has_the_settings_of_serve() {
    let host = Host::start();
    let (data, port) = (host.data(), host.port().to_string());
    let file = host.root().join("serve.toml");
    std::fs::write(&file, "port = 1234\nclassic-port = 8444\n").unwrap();
    let file = file.to_str().unwrap();
    let doctor = |args: &[&str], env: &[(&str, &str)]| {
        let args = [&["doctor", "--json", "--data", data.to_str().unwrap()], args].concat();
        run(&host.stranger(), &args, env)
    };
    let ports = |ran: Ran| -> Vec<String> {
        let json = ran.json().remove(0);
        let steps = json["steps"].as_array().unwrap().iter();
        let ports = steps.filter(|step| step["name"] == "port");
        ports.map(|step| step["facts"]["address"].as_str().unwrap().to_owned()).collect()
    };
    let at = |port: &str| format!("127.0.0.1:{port}");
    let by_variable = [("TWINLOCK_PORT", port.as_str()), ("TWINLOCK_PLAIN_PORT", "8081")];
    assert_eq!(ports(doctor(&[], &by_variable)), [at(&port), at("8081")]);
    let with_file = [&by_variable[..1], &[("TWINLOCK_CONFIG", file)]].concat();
    assert_eq!(ports(doctor(&[], &with_file)), [at(&port), at("8444")]);
    let option = ["--config", file, "--port", &port];
    let set = [("TWINLOCK_PORT", "2345"), ("TWINLOCK_DATA", "/nowhere"), ("TWINLOCK_HOST", "")];
    assert_eq!(ports(doctor(&option, &set)), [at(&port), at("8444")]);
    let refused = doctor(&[], &[("TWINLOCK_PORT", "many")]).exits(2);
    assert!(
        refused.err.contains("in the environment") && refused.err.contains("many"),
        "{refused:?}"
    );
    let both = [("TWINLOCK_PROXY", "192.0.2.1"), ("TWINLOCK_FORWARDED_FROM", "192.0.2.1")];
    doctor(&[], &both).exits(2);
}
