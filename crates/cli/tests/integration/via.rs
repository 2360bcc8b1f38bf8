//! The way out through a proxy (HTTP CONNECT, SOCKS5), and which ends of TLS a client accepts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use twinlock_core::invite::{Address, InviteLink};

use crate::common::proxy::Proxy;
use crate::common::raw::Card;
use crate::common::*;

const CUT: &str = "TLS is intercepted between";
/// A name that only the proxies resolve.
const NAME: &str = "chat.example";
const PASSWORD: &str = "open sesame";

/// A proxy of this test, which connects to one server whatever name it is asked for.
pub(crate) struct OutgoingProxy {
    pub(crate) address: SocketAddr,
    /// What clients asked for.
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Connect,
    ConnectWithLogin,
    Forbidding,
    Socks,
    SocksWithLogin,
}

impl OutgoingProxy {
    pub(crate) fn start(kind: Kind, server: SocketAddr) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = asked.clone();
        runtime.spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let list = list.clone();
                tokio::spawn(async move {
                    let agreed = match kind {
                        Kind::Socks | Kind::SocksWithLogin => socks(&mut tcp, kind, &list).await,
                        _ => connect(&mut tcp, kind, &list).await,
                    };
                    if agreed {
                        let mut to = TcpStream::connect(server).await.unwrap();
                        let _ended = copy_bidirectional(&mut tcp, &mut to).await;
                    }
                });
            }
        });
        Self { address, asked, _runtime: runtime }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn connect(tcp: &mut TcpStream, kind: Kind, asked: &Mutex<Vec<String>>) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = tcp.read_u8().await else { return false };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    asked.lock().unwrap().push(head.lines().next().unwrap().to_owned());
    let login = format!("Basic {}", BASE64.encode(format!("ada:{PASSWORD}").as_bytes()));
    let status = match kind {
        Kind::Forbidding => "403 Forbidden",
        Kind::ConnectWithLogin if !head.contains(&login) => "407 Proxy Authentication Required",
        _ => "200 Connection established",
    };
    tcp.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
    status.starts_with("200")
}

async fn socks(tcp: &mut TcpStream, kind: Kind, asked: &Mutex<Vec<String>>) -> bool {
    let mut head = [0; 2];
    tcp.read_exact(&mut head).await.unwrap();
    let mut methods = vec![0; head[1].into()];
    tcp.read_exact(&mut methods).await.unwrap();
    let method = if kind == Kind::SocksWithLogin { 2 } else { 0 };
    let method = if methods.contains(&method) { method } else { 0xff };
    tcp.write_all(&[5, method]).await.unwrap();
    if method == 0xff {
        return false;
    }
    if method == 2 {
        let text = async |tcp: &mut TcpStream| {
            let mut bytes = vec![0; tcp.read_u8().await.unwrap().into()];
            tcp.read_exact(&mut bytes).await.unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(tcp.read_u8().await.unwrap(), 1);
        let login = (text(tcp).await, text(tcp).await);
        let good = login == ("ada".to_owned(), PASSWORD.to_owned());
        tcp.write_all(&[1, u8::from(!good)]).await.unwrap();
        if !good {
            return false;
        }
    }
    let mut request = [0; 4];
    tcp.read_exact(&mut request).await.unwrap();
    assert_eq!(request[..3], [5, 1, 0], "CONNECT");
    let host = match request[3] {
        1 => std::net::Ipv4Addr::from(tcp.read_u32().await.unwrap()).to_string(),
        3 => {
            let mut name = vec![0; tcp.read_u8().await.unwrap().into()];
            tcp.read_exact(&mut name).await.unwrap();
            String::from_utf8(name).unwrap()
        }
        other => panic!("address type {other}"),
    };
    let port = tcp.read_u16().await.unwrap();
    asked.lock().unwrap().push(format!("{host}:{port}"));
    tcp.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    true
}

/// An invite link with another address.
fn moved(link: &str, host: &str, port: u16) -> String {
    let mut link = InviteLink::parse(link).unwrap();
    link.address = Address::new(host, port).unwrap();
    link.to_link().to_string()
}

fn run(person: &Person, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = person.command(args);
    command.envs(env.iter().copied());
    Running::start(&mut command).ended(LONG)
}

#[test]
fn proxy__environment_leads_through_connect_and_socks() {
    let host = Host::start();
    let ada = host.owner();
    for (kind, variable, url) in [
        (Kind::Connect, "HTTPS_PROXY", "http://"),
        (Kind::ConnectWithLogin, "https_proxy", "http://ada:open%20sesame@"),
        (Kind::Socks, "ALL_PROXY", "socks5h://"),
        (Kind::SocksWithLogin, "ALL_PROXY", "socks5://ada:open%20sesame@"),
    ] {
        let proxy = OutgoingProxy::start(kind, host.address());
        let url = format!("{url}{}", proxy.address);
        let env = [(variable, url.as_str())];
        let link = moved(&ada.invites(), NAME, 7443);
        let (bob, user) = (host.stranger(), format!("bob-{}", kind as u8));
        let join = ["join", "--no-password", "--require-binding", "--user", &user, &link];
        run(&bob, &join, &env).exits(0);
        let sent = run(&bob, &["send", "lobby", "through the proxy"], &env).exits(0);
        assert!(!sent.err.contains(CUT), "{sent:?}");
        assert_eq!(proxy.asked().len(), 3, "{:?}", proxy.asked());
        assert!(proxy.asked().iter().all(|asked| asked.contains("chat.example:7443")));
        let text = bob.profile_text();
        assert!(!text.contains("sesame") && !text.contains("proxy"), "{text}");
        let log = std::fs::read_to_string(bob.home.join("state/default/client.log")).unwrap();
        assert!(!log.contains("sesame"), "{log}");
        // A name that NO_PROXY spares is looked up here, where it does not exist.
        let direct = [env[0], ("NO_PROXY", "example")];
        let ran = run(&bob, &["--timeout", "5s", "history", "lobby"], &direct).exits(5);
        assert!(ran.err.contains("cannot be resolved"), "{ran:?}");
        assert_eq!(proxy.asked().len(), 3);
    }
    assert_eq!(ada.reads("lobby").len(), 4);
}

#[test]
fn proxy__this_machine_is_spared_unless_via_says_so() {
    let host = Host::start();
    let ada = host.owner();
    let proxy = OutgoingProxy::start(Kind::Connect, host.address());
    let url = format!("http://{}", proxy.address);
    run(&ada, &["send", "lobby", "direct"], &[("HTTPS_PROXY", &url)]).exits(0);
    assert!(proxy.asked().is_empty());
    ada.run(&["--via", &url, "send", "lobby", "via"]).exits(0);
    let asked = format!("CONNECT 127.0.0.1:{} HTTP/1.1", host.port());
    assert_eq!(proxy.asked(), [asked]);
    let env = [("HTTPS_PROXY", "http://192.0.2.1:9")];
    run(&ada, &["--via", "none", "send", "lobby", "none"], &env).exits(0);
    ada.run(&["--via", &url, "--transport", "plain", "history", "lobby"]).exits(2);
}

#[test]
fn proxy__failures_name_the_proxy_and_the_remedy() {
    let host = Host::start();
    let ada = host.owner();
    let fails = |kind, options: &[&str], code, words: &[&str]| {
        let proxy = OutgoingProxy::start(kind, host.address());
        let scheme = if kind == Kind::SocksWithLogin { "socks5" } else { "http" };
        let url = format!("{scheme}://{}", proxy.address);
        let head = ["--timeout", "5s", "--via", &url];
        let ran = ada.run(&[&head, options, &["history", "lobby"]].concat()).exits(code);
        assert!(words.iter().all(|words| ran.err.contains(words)), "{ran:?}");
        assert!(!ran.err.contains("sesame"), "{ran:?}");
    };
    fails(Kind::ConnectWithLogin, &[], 5, &["wants a user name and password", "--via-auth-file"]);
    fails(Kind::Forbidding, &[], 5, &["it answered HTTP 403", "port 443 only"]);
    fails(Kind::SocksWithLogin, &[], 5, &["wants a user name and password"]);
    let file = host.root().join("login");
    let auth = ["--via-auth-file", file.to_str().unwrap()];
    std::fs::write(&file, "ada:wrong").unwrap();
    fails(Kind::SocksWithLogin, &auth, 5, &["it refused the user name and password"]);
    std::fs::write(&file, format!("ada:{PASSWORD}\n")).unwrap();
    fails(Kind::SocksWithLogin, &auth, 0, &[]);
    fails(Kind::ConnectWithLogin, &auth, 0, &[]);
    std::fs::write(&file, "no colon").unwrap();
    fails(Kind::Connect, &auth, 2, &["it has to be USER:PASSWORD"]);
    for (url, words) in [
        ("http://ada:sesame@127.0.0.1:1", "--via-auth-file FILE"),
        ("https://127.0.0.1:1", "this kind of proxy does not work"),
        ("nonsense://", "not a URL"),
    ] {
        let ran = ada.run(&["--via", url, "history", "lobby"]).exits(2);
        assert!(ran.err.contains(words) && !ran.err.contains("sesame"), "{ran:?}");
    }
    let gone = ["--timeout", "5s", "--via", "http://127.0.0.1:1", "history", "lobby"];
    let ran = ada.run(&gone).exits(5);
    assert!(ran.err.contains("the proxy http://127.0.0.1:1 opens no connection"), "{ran:?}");
    assert!(ran.err.contains("it cannot be reached"), "{ran:?}");
}

/// The invite pins the server's key, and a proxy that this system trusts terminates TLS.
#[test]
fn tls_trust__trusted_proxy_is_passed_and_named_unless_forbidden() {
    let host = Host::start_with(&["--host", "127.0.0.1"]);
    let ada = host.owner();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let proxy = Proxy::start(&host, Card::of(&ada).server, move || {
        let count = count.clone();
        Box::new(move |part| {
            count.fetch_add(part.len(), Ordering::SeqCst);
        })
    });
    let ca_file = proxy.ca_file.to_str().unwrap();
    let trusting = [("SSL_CERT_FILE", ca_file)];
    let link = moved(&ada.invites(), "127.0.0.1", proxy.address.port());
    let bob = host.stranger();
    let join = ["join", "--no-password", "--user", "bob", &link];

    // Not trusted: refused before HELLO.
    let refused = run(&bob, &join, &[("SSL_CERT_FILE", "/dev/null")]).exits(4);
    assert!(refused.err.contains("differs from the pinned key"), "{refused:?}");
    assert!(refused.err.contains("it names rcgen self signed cert"), "{refused:?}");
    // Trusted, and forbidden.
    let strict = [&join[..4], &["--require-binding", &link]].concat();
    let refused = run(&bob, &strict, &trusting).exits(4);
    assert!(refused.err.contains(CUT), "{refused:?}");
    assert!(!bob.profile_file().exists());
    // In both cases before HELLO; only the second completed TLS.
    proxy.wait_ended(1);
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    // Trusted: every command says so.
    let joined = run(&bob, &join, &trusting).exits(0);
    let sent = run(&bob, &["send", "lobby", "hello"], &trusting).exits(0);
    for ran in [&joined, &sent] {
        assert!(ran.err.contains(CUT) && ran.err.contains("rcgen self signed cert"), "{ran:?}");
    }
    // A login on the same profile can forbid it too.
    let connections = proxy.connections();
    proxy.wait_ended(connections);
    let before = seen.load(Ordering::SeqCst);
    let password = host.root().join("password");
    std::fs::write(&password, "nobody-in-between").unwrap();
    let account = format!("bob@127.0.0.1:{}", proxy.address.port());
    let login = ["login", "--require-binding", "--password-file", password.to_str().unwrap()];
    let refused = run(&bob, &[&login[..], &[&account]].concat(), &trusting).exits(4);
    assert!(refused.err.contains(CUT), "{refused:?}");
    assert!(!bob.profile_text().contains("binding = \"require\""));
    // TLS was completed, and nothing was sent.
    proxy.wait_ended(connections + 1);
    assert_eq!(seen.load(Ordering::SeqCst), before);
    // Without the proxy, the same profile reaches the server and gets no warning.
    let address = host.address().to_string();
    let read = bob.run(&["--address", &address, "history", "lobby"]).exits(0);
    assert!(read.out.contains("hello") && !read.err.contains(CUT), "{read:?}");
}
