//! Sessions through real proxies and balancers, with the configurations of `contrib/`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use twinlock_core::invite::{Address, InviteLink};

use crate::common::middle::{Config, Middle, NAME, Programs, contrib};
use crate::common::proxy::forms;
use crate::common::raw::full;
use crate::common::tap::{Ends, Tap};
use crate::common::*;

const CUT: &str = "TLS is intercepted between";
const PASSWORD: &str = "read by neither middle nor tap";
/// `--proxy` of the server.
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// `--forwarded-from` of the server.
const FORWARDER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// A middle with a configuration.
struct SetUp {
    name: &'static str,
    config: Config,
    /// The issuer of the middle's certificate, if it terminates TLS.
    issuer: Option<&'static str>,
    to: Port,
    /// The middle's address for the server.
    from: Ipv4Addr,
    /// The variable that leads clients to the middle, and its value up to the middle's address.
    way: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Tls,
    Plain,
}

const fn cuts(name: &'static str, file: &'static str, to: Port, from: Ipv4Addr) -> SetUp {
    let issuer = Some("Middle Test CA");
    SetUp { name, config: Config::File(file), issuer, to, from, way: None }
}

const fn passes(name: &'static str, file: &'static str) -> SetUp {
    let config = Config::File(file);
    SetUp { name, config, issuer: None, to: Port::Tls, from: BALANCER, way: None }
}

const fn leads(name: &'static str, config: Config, way: (&'static str, &'static str)) -> SetUp {
    let from = Ipv4Addr::LOCALHOST;
    SetUp { name, config, issuer: None, to: Port::Tls, from, way: Some(way) }
}

const OTHER: Ipv4Addr = Ipv4Addr::LOCALHOST;

const SET_UPS: &[SetUp] = &[
    cuts("nginx-tls", "nginx/stream-to-tls.conf", Port::Tls, OTHER),
    cuts("nginx-plain", "nginx/stream-to-plain.conf", Port::Plain, OTHER),
    passes("nginx-pass", "nginx/stream-pass-through.conf"),
    cuts("nginx-ws-tls", "nginx/websocket-to-tls.conf", Port::Tls, FORWARDER),
    cuts("nginx-ws-plain", "nginx/websocket-to-plain.conf", Port::Plain, FORWARDER),
    cuts("haproxy-tls", "haproxy/tcp-to-tls.cfg", Port::Tls, BALANCER),
    cuts("haproxy-plain", "haproxy/tcp-to-plain.cfg", Port::Plain, BALANCER),
    passes("haproxy-v1", "haproxy/pass-through-v1.cfg"),
    passes("haproxy-v2", "haproxy/pass-through-v2.cfg"),
    cuts("haproxy-ws", "haproxy/websocket.cfg", Port::Plain, FORWARDER),
    cuts("apache-ws-tls", "apache/websocket-to-tls.conf", Port::Tls, FORWARDER),
    cuts("apache-ws-plain", "apache/websocket-to-plain.conf", Port::Plain, FORWARDER),
    cuts("stunnel", "stunnel/to-plain.conf", Port::Plain, OTHER),
    cuts("caddy", "caddy/Caddyfile", Port::Plain, FORWARDER),
    leads("squid", Config::Squid, ("HTTPS_PROXY", "http://")),
    leads("socks", Config::Socks, ("ALL_PROXY", "socks5h://")),
    SetUp {
        issuer: Some("mitmproxy"),
        ..leads("mitmproxy", Config::Mitm, ("HTTPS_PROXY", "http://"))
    },
];

/// A server whose arguments are the same for all middles.
struct Stage {
    host: Host,
    plain: SocketAddr,
    ada: Person,
    programs: Programs,
}

impl Stage {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        // All people of this test have one address.
        let config = root.path().join("server.toml");
        std::fs::write(&config, "[limits]\nlogins-per-minute = 10000\n").unwrap();
        let args = ["--plain-port", "0", "--proxy", "127.0.0.3", "--forwarded-from", "127.0.0.4"];
        let args = [&args[..], &["--config", config.to_str().unwrap()]].concat();
        let host = Host::start_in(root, &args);
        let plain = host.printed_address("without TLS on ");
        let ada = host.owner();
        std::fs::write(host.root().join("password"), format!("{PASSWORD}\n")).unwrap();
        Self { host, plain, ada, programs: Programs::find() }
    }

    /// All of it, through a fresh middle. `shows_tls`: the tap terminates the middle's TLS to the
    /// server too, and so sees what the middle sees.
    fn converse(&self, set_up: &SetUp, shows_tls: bool) {
        let SetUp { name, config, issuer, to, from, way } = set_up;
        let direct = if *to == Port::Tls { self.host.address() } else { self.plain };
        let ends = shows_tls.then(|| Ends::like(&self.host));
        let tap = Tap::start(*from, direct, ends);
        let mut middle = Middle::start(&self.programs, *config, tap.address, tap.address);
        let user = format!("{name}-{}", u8::from(shows_tls));
        let dir = self.host.root().join(&user);
        std::fs::create_dir(&dir).unwrap();
        let mut link = InviteLink::parse(&self.ada.invites()).unwrap();
        link.address = match way {
            None => Address::new("localhost", middle.address.port()).unwrap(),
            Some(_) => Address::new(NAME, tap.address.port()).unwrap(),
        };
        let invite = *link.secret.expose_secret();
        let link = link.to_link();

        let bob = self.host.stranger();
        let ca_file = middle.ca_file();
        let trusted = if issuer.is_some() { ca_file.as_path() } else { Path::new("/dev/null") };
        let way = way.map(|(variable, url)| (variable, format!("{url}{}", middle.address)));
        let start = |args: &[&str]| {
            let mut command = bob.command(args);
            command.env("SSL_CERT_FILE", trusted).envs(way.clone());
            Running::start(&mut command)
        };
        // Each command says that TLS is cut and by whom, or nothing of it.
        let says = |ran: Ran| {
            let cut = ran.err.contains(CUT);
            assert_eq!(cut, issuer.is_some(), "{name}: {ran:?}");
            assert!(issuer.is_none_or(|issuer| ran.err.contains(issuer)), "{name}: {ran:?}");
            ran
        };
        let run = |args: &[&str]| says(start(args).ended(LONG).exits(0));

        let file = self.host.root().join("password");
        let join = ["join", "--user", &user, "--password-file", file.to_str().unwrap()];
        if issuer.is_some() {
            let strict = [&join[..], &["--require-binding", &*link]].concat();
            says(start(&strict).ended(LONG).exits(4));
            assert!(!bob.profile_file().exists(), "{name}");
            // Before HELLO and before a request for a WebSocket: a PROXY header at most.
            let readable = *to == Port::Plain || shows_tls;
            assert!(!readable || tap.bytes() < 100, "{name}: {} bytes", tap.bytes());
        }
        let began = Instant::now();
        run(&[&join[..], &[&*link]].concat());
        let took = began.elapsed();
        // Other programs may use this machine, except in `make torture`.
        let limit = Duration::from_secs(if full() { 3 } else { 10 });
        assert!(took < limit, "{name}: join took {took:?}");

        let messages = if full() { 1000 } else { 20 };
        let texts: Vec<_> = (0..messages).map(|n| format!("{user} says aloud: {n}")).collect();
        let mut send = start(&["send", "lobby"]);
        send.write(&texts.iter().map(|text| format!("{text}\n")).collect::<String>());
        says(send.ended(LONG).exits(0));
        let count = messages.to_string();
        let read = run(&["history", "lobby", "--limit", &count, "--json"]);
        assert_eq!(crate::common::texts(&read.json()), texts, "{name}");

        let size = if full() { 64 << 20 } else { 1 << 20 };
        let content = bytes(size, middle.address.port().into());
        let (sent, back) = (dir.join("sent"), dir.join("back"));
        std::fs::write(&sent, &content).unwrap();
        let moving = Instant::now();
        let put = run(&["put", sent.to_str().unwrap(), "lobby", "--json"]).json();
        let n = put.iter().find(|line| line["event"] == "done").unwrap()["n"].to_string();
        let up = moving.elapsed();
        run(&["get", "lobby", &n, "-o", back.to_str().unwrap()]);
        let down = moving.elapsed() - up;
        assert!(std::fs::read(&back).unwrap() == content, "{name}");
        assert!(tap.bytes() > 2 * content.len(), "{name}: {}", tap.bytes());
        std::fs::remove_dir_all(&dir).unwrap();

        let status = run(&["status", "--json"]).json();
        let binding = if issuer.is_some() { "cut" } else { "bound" };
        assert_eq!(status[0]["tls"]["binding"], binding, "{name}");

        // It comes back after a restart of the middle.
        let listening = start(&["listen", "lobby", "--since", &n, "--count", "2"]);
        self.ada.run(&["send", "lobby", &format!("before, {user}")]).exits(0);
        listening.wait_lines(1);
        middle.restart();
        self.ada.run(&["send", "lobby", &format!("after, {user}")]).exits(0);
        let heard = says(listening.ended(LONG).exits(0));
        assert!(heard.out.contains(&format!("after, {user}")), "{name}: {heard:?}");

        let device = bob.profile_text();
        let device = device.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap();
        let device = HEXLOWER.decode(device.trim_matches('"').as_bytes()).unwrap();
        let mut secrets = vec![b"says aloud".to_vec(), format!("after, {user}").into_bytes()];
        secrets.extend(content.chunks(16).step_by(content.len() / 16 / 20).map(<[u8]>::to_vec));
        for secret in [PASSWORD.as_bytes(), &invite, &device] {
            secrets.extend(forms(secret));
        }
        let found = tap.finds(&secrets).map(String::from_utf8_lossy);
        assert_eq!(found, None, "{name}");
        println!(
            "middle: {name}: joined in {took:.1?}, file up in {up:.1?}, down in {down:.1?}, all in \
             {:.1?}, {} bytes seen",
            began.elapsed(),
            tap.bytes()
        );
    }
}

#[test]
fn middle__each_set_up_carries_sessions_unread() {
    let stage = Stage::start();
    let mut missing = BTreeSet::new();
    let mut ran = 0;
    for set_up in SET_UPS {
        let program = set_up.config.program();
        if !stage.programs.has(program) {
            missing.insert(program);
            continue;
        }
        stage.converse(set_up, false);
        if set_up.issuer.is_some() && set_up.to == Port::Tls {
            stage.converse(set_up, true);
        }
        ran += 1;
    }
    println!("middle: {ran} of {} set-ups", SET_UPS.len());
    // `scripts/test.sh` reports it.
    if !missing.is_empty() {
        println!("middle: NOT RUN, because these are missing: {missing:?}");
        assert!(std::env::var_os("CI").is_none(), "{missing:?}: see scripts/middles.sh");
    }
}

/// `docs/operating.md` shows some files and names all; the table above tests each.
#[test]
fn contrib__files_are_shown_named_and_tested() {
    let manual = contrib("../docs/operating.md");
    let readme = contrib("README.md");
    let tested: BTreeSet<_> = SET_UPS
        .iter()
        .filter_map(|set_up| match set_up.config {
            Config::File(file) => Some(file.to_owned()),
            _ => None,
        })
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib");
    let mut present = BTreeSet::new();
    for dir in std::fs::read_dir(&root).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let path = file.unwrap().path();
            present.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
        }
    }
    assert_eq!(present, tested);
    for file in &tested {
        assert!(readme.contains(&format!("`{file}`")), "contrib/README.md lacks {file}");
        assert!(manual.contains(&format!("(../contrib/{file})")), "operating.md lacks {file}");
    }
    // A line that is only such a link, and then a block: its text is the file's.
    let mut shown = 0;
    for part in manual.split("\n[").skip(1) {
        let Some((_, part)) = part.split_once("](../contrib/") else { continue };
        let Some((file, text)) = part.split_once("):\n\n```\n") else { continue };
        let (text, _) = text.split_once("```\n").unwrap();
        assert_eq!(text, contrib(file), "{file}");
        shown += 1;
    }
    assert!(shown >= 2, "{shown} files shown");
}
