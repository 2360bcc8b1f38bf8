//! Ten thousand people who say nothing cost a server little, and none of them is forgotten.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use prost::Message as _;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::home::Home;
use twinlock_client::profile::{Profile, TlsTrust};
use twinlock_client::state::State;
use twinlock_client::{Client, Options};
use twinlock_core::credential::Credential;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::Name;
use twinlock_core::invite::{Address, InviteLink};
use twinlock_core::keys::DeviceSecret;
use twinlock_core::limits::{Timing, VERSION};
use twinlock_core::proto::{self, Role};
use twinlock_core::session::{BindingPolicy, Config, Event};
use twinlock_link::line::Line;
use twinlock_link::login::login;
use twinlock_link::tls::{Alpn, ClientTls, Trust, channel_binding};

const LINES: usize = 10_000;
/// Sessions that one user may have (section 9).
const PER_USER: usize = 16;
/// Logins under way at once: less than the 8 of one address that are not logged in yet.
const AT_ONCE: usize = 6;
/// Descriptors that are not lines, on either side.
const OTHERS: u64 = 300;

type Idle = Line<TlsStream<TcpStream>>;

/// How many lines the limit of open files allows; the server's is low until it raises it itself.
fn room() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let room = maximum.map_or(LINES, |max| usize::try_from(max - OTHERS).unwrap());
    if room < LINES {
        eprintln!("\n!!! ONLY {room} LINES: THE HARD LIMIT OF OPEN FILES IS {maximum:?} !!!\n");
    }
    room.min(LINES)
}

/// Where the server is and what its TLS shows.
struct To {
    address: Address,
    tls: ClientTls,
}

/// Logs a device in and waits until the line stands.
async fn connect(to: &To, profile: &Profile, instance: u64) -> Idle {
    let tcp = TcpStream::connect(("127.0.0.1", to.address.port())).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let stream = to.tls.connect("127.0.0.1", tcp).await.unwrap();
    let info = proto::ClientInfo {
        instance: Bytes::copy_from_slice(&instance.to_be_bytes()),
        ..proto::ClientInfo::default()
    };
    let config = Config {
        binding: BindingPolicy::Require,
        exporter: channel_binding(stream.get_ref().1).ok(),
        info: info.encode_to_vec(),
        max_version: VERSION,
        timing: Timing::default(),
    };
    let secret = DeviceSecret::new(profile.secret().expose_secret());
    let credential = Credential::Device(*profile.device(), secret);
    let mut line = login(stream, credential, Some(*profile.server_key()), config).await.unwrap();
    loop {
        line.wait(None).await.unwrap();
        match line.open_frame().unwrap() {
            Event::Ready { .. } => return line,
            Event::Closed(code) => panic!("{code:?}"),
            _ => {}
        }
    }
}

/// Answers pings until the server says its last, and says what that was.
async fn idle(mut line: Idle) -> CloseCode {
    loop {
        line.wait(None).await.unwrap();
        if let Event::Closed(code) = line.open_frame().unwrap() {
            line.finish().await;
            return code;
        }
    }
}

/// Resident memory of a process, bytes.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Enough members for all lines, each with a device.
async fn members(owner: &Person, root: &Path, count: usize) -> Vec<Profile> {
    let home = Home::at(&owner.home);
    let default = Name::new("default").unwrap();
    let profile = Profile::load(&home, &default).unwrap();
    let state = State::open(&home, &profile).unwrap();
    let TlsTrust::Pins(pins) = profile.tls() else { panic!("no pins") };
    let (address, key) =
        (Address::new(profile.host(), profile.port()).unwrap(), profile.server_key());
    let key = *key;
    let (client, _events) = Client::start(&home, profile, state, Options::default()).unwrap();
    let mut joining = JoinSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for n in 0..count {
        let place = places.clone().acquire_owned().await.unwrap();
        let invite = client.make_invite(Role::Member, None, 0).await.unwrap();
        let link = InviteLink {
            address: address.clone(),
            id: invite.id,
            secret: invite.secret,
            server_key: key,
            tls_pin: pins.first().copied(),
            proxy: false,
        };
        let home = Home::at(&root.join(format!("member-{n}")));
        let (user, default) = (Name::new(&format!("member-{n}")).unwrap(), default.clone());
        joining.spawn(async move {
            let label = "idle".to_owned();
            let new = NewUser { user, label, password: None, require_binding: false };
            let joined = enrol::join(&home, &default, &link, new).await.unwrap();
            drop(place);
            joined
        });
    }
    let members = joining.join_all().await;
    client.close().await;
    members
}

#[test]
fn ten_thousand_idle_lines_are_held_and_each_is_told_of_the_end() {
    let lines = room();
    let hard = getrlimit(Resource::Nofile).maximum;
    // The server is started with what a login shell has, and goes on from there by itself.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: hard }).unwrap();
    let mut host = Host::start();
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    let ada = host.owner();
    let pid = host.running().pid();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();

    let began = Instant::now();
    let users = lines.div_ceil(PER_USER);
    let members = Arc::new(runtime.block_on(members(&ada, host.root(), users)));
    eprintln!("{users} members joined in {:?}", began.elapsed());
    let TlsTrust::Pins(pins) = members[0].tls() else { panic!("no pins") };
    let to = Arc::new(To {
        address: Address::new("127.0.0.1", host.port()).unwrap(),
        tls: ClientTls::new(Trust::Pins(pins), Alpn::Required).unwrap(),
    });

    let before = resident(pid);
    let began = Instant::now();
    let up = Arc::new(AtomicUsize::new(0));
    let mut held = JoinSet::new();
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut connecting = JoinSet::new();
        for n in 0..lines {
            let place = places.clone().acquire_owned().await.unwrap();
            while let Some(line) = connecting.try_join_next() {
                held.spawn(idle(line.unwrap()));
            }
            let (to, up, members) = (to.clone(), up.clone(), members.clone());
            connecting.spawn(async move {
                let line = connect(&to, &members[n % users], n as u64).await;
                drop(place);
                up.fetch_add(1, Ordering::Relaxed);
                line
            });
        }
        while let Some(line) = connecting.join_next().await {
            held.spawn(idle(line.unwrap()));
        }
    });
    assert_eq!(up.load(Ordering::Relaxed), lines);
    let took = began.elapsed();
    let per_line = resident(pid).saturating_sub(before) / lines;
    eprintln!(
        "{lines} lines in {took:?}; the server: {} MiB before, {} MiB now, {:.1} KiB a line",
        before >> 20,
        resident(pid) >> 20,
        per_line as f64 / 1024.0
    );
    assert!(per_line < 64 * 1024, "{per_line} bytes a line");

    // It serves as it did before.
    let asked = Instant::now();
    ada.run(&["send", "lobby", "is anybody awake?"]).exits(0);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // Every one of them is still there, and hears that it ends.
    host.running().signal(Signal::TERM);
    let told =
        runtime.block_on(async { timeout(LONG, held.join_all()).await.expect("all lines end") });
    assert_eq!(told.len(), lines);
    let shutdown = told.iter().filter(|code| **code == CloseCode::Shutdown).count();
    assert_eq!(shutdown, lines);
    host.gone().exits(0);
}
