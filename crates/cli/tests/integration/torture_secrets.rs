//! After all operations of users, no secret remains in the server's memory, its log or its record,
//! or in a client's files. The only exception is the device secret in the profile.
//!
//! The server is the real binary, and so are most clients. Session keys are known only for
//! connections whose client is the test itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use crate::common::image::*;
use crate::common::raw::*;
use crate::common::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;
use twinlock_core::classic;
use twinlock_core::invite::InviteLink;
use twinlock_core::keys::ClassicSecret;
use twinlock_core::proto::{self, request::Op};
use twinlock_core::seal::frame_keys;
use twinlock_core::session::SessionEvent;
use twinlock_transport::OsEntropy;
use twinlock_transport::tls::{Alpn, ClientTls, ServerTrust};

const PASSWORD: &str = "correct horse battery staple";
const SETTINGS: &str = "log-level = 'debug'\nclassic-port = 0\norigin-port = 0\n";

/// Collects the keys that a connection has used, as they change.
struct Used {
    now: [[u8; 32]; 3],
    keys: Vec<(String, [u8; 32])>,
}

impl Used {
    fn of(line: &RawClient) -> Self {
        Self { now: line.connection.session().expose_keys().map(|key| *key), keys: Vec::new() }
    }

    /// Adds the keys used since the last call.
    fn look(&mut self, line: &RawClient) {
        let now = line.connection.session().expose_keys().map(|key| *key);
        for (i, way) in ["sent", "received"].into_iter().enumerate() {
            let mut key = self.now[i];
            // After a rekey the old chain never reaches `now`; its first few keys include all used
            // ones.
            for _ in 0..64 {
                if key == now[i] {
                    break;
                }
                let (frame, next) = frame_keys(&key);
                let names = ["message", "cipher", "MAC", "bulk"];
                self.keys.push((format!("chain key, {way}"), key));
                self.keys
                    .extend(names.iter().zip(frame).map(|(n, k)| (format!("{n} key, {way}"), k)));
                key = next;
            }
        }
        if self.now[2] != now[2] {
            self.keys.push(("root key".into(), self.now[2]));
        }
        self.now = now;
    }
}

/// Sends messages and a file and rekeys on a separate connection; returns the used keys.
async fn by_hand(card: &Card, messages: usize) -> (RawClient, Used) {
    let mut line = card.connect().await;
    let mut used = Used::of(&line);
    for n in 0..messages {
        line.append(LOBBY, &format!("by hand {n}")).await.unwrap();
        used.look(&line);
    }
    let data: Vec<u8> = (0..40).flat_map(|_| random::<1000>()).collect();
    let file =
        proto::FileMeta { name: "data".into(), size: data.len() as u64, ..Default::default() };
    let put = Op::PutFile(proto::PutFile {
        conversation: LOBBY,
        message_id: copy(&random::<16>()),
        file: Some(file),
    });
    let accepted = line.ask(put).await.map(accepted).unwrap();
    for (n, part) in data.chunks(10_000).enumerate() {
        let offset = (n * 10_000) as u64;
        line.connection.session_mut().send_bulk(accepted.transfer, offset, part).unwrap();
        used.look(&line);
    }
    let hash = hash(&data);
    let end = Op::EndFile(proto::EndFile { transfer: accepted.transfer, hash });
    line.ask(end).await.map(ack).unwrap();
    used.look(&line);
    assert!(line.connection.start_rekey());
    let rekeyed = async {
        loop {
            line.connection.wait(None).await.unwrap();
            used.look(&line);
            let rekeyed = matches!(line.connection.open_frame().unwrap(), SessionEvent::Rekeyed(1));
            used.look(&line);
            if rekeyed {
                return;
            }
        }
    };
    timeout(LONG, rekeyed).await.expect("a rekey");
    for n in 0..messages {
        line.append(LOBBY, &format!("by hand again {n}")).await.unwrap();
        used.look(&line);
    }
    (line, used)
}

/// Sends a few texts on a classic connection and closes it; returns the used keys.
async fn classic_line(address: SocketAddr, name: &str, psk: &ClassicSecret) -> [[u8; 64]; 2] {
    let tcp = tcp_from([127, 0, 0, 1].into(), address).await.unwrap();
    let tls = ClientTls::new(ServerTrust::Learn, Alpn::Direct).unwrap();
    let mut io = BufReader::new(tls.connect("127.0.0.1", tcp).await.unwrap());
    let mut line = Vec::new();
    io.read_until(b'\n', &mut line).await.unwrap();
    line.pop();
    let (hello, mut lines) = classic::call(name, psk, &line, &mut OsEntropy).unwrap();
    assert!(write(&mut io, hello.as_bytes()).await);
    for n in 0..5 {
        let mut sealed = Vec::new();
        lines.seal(&format!("it is {n} degrees"), &mut OsEntropy, &mut sealed);
        assert!(write(&mut io, &sealed).await);
        line.clear();
        timeout(LONG, io.read_until(b'\n', &mut line)).await.expect("an answer").unwrap();
        line.pop();
        assert!(lines.open(&line).unwrap().starts_with("ok "));
    }
    io.shutdown().await.unwrap();
    line.clear();
    timeout(LONG, io.read_until(b'\n', &mut line)).await.expect("an end").unwrap();
    lines.expose_keys().map(|key| *key)
}

/// Merges equal findings in many places into one line.
fn shown(found: &[String]) -> String {
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for line in found {
        let (what, place) = line.split_once(": ").unwrap();
        let place = place.split(" at ").next().unwrap();
        *counts.entry((what, place)).or_default() += 1;
    }
    let line = |((what, place), n): (&(&str, &str), &usize)| format!("{n} x {what}: {place}\n");
    counts.iter().map(line).collect()
}

#[test]
fn secrets__none_left_except_device_secret_in_its_profile() {
    let messages = if full() { 1000 } else { 40 };
    let (host, mut image) = watched(SETTINGS);
    let pid = host.running().pid();
    let mut secrets = Needles::default();

    // People join with and without a password, log in with both, send messages and a file.
    let link = host.owner_link();
    let invite = |link: &str| *InviteLink::parse(link).unwrap().secret.expose_secret();
    secrets.add("the owner's invite", &invite(&link));
    secrets.add("a password", PASSWORD.as_bytes());
    let password = host.root().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let password = password.to_str().unwrap();
    let ada = host.stranger();
    ada.run(&["join", "--user", "ada", "--password-file", password, &link]).exits(0);
    let guest = ada.invites();
    secrets.add("an invite", &invite(&guest));
    let unused = ada.invites();
    secrets.add("an invite that nobody used", &invite(&unused));
    let bob = host.stranger().joins("bob", &guest);
    let phone = host.stranger();
    let account = format!("ada@{}", host.address());
    phone.run(&["login", &account, "--password-file", password]).exits(0);
    for person in [&ada, &bob, &phone] {
        secrets.add("a device's secret", &Card::of(person).device.secret);
        person.run(&["-v", "send", "lobby", "hello"]).exits(0);
    }
    let file = host.root().join("file.bin");
    std::fs::write(&file, random::<300_000>()).unwrap();
    bob.run(&["-v", "put", file.to_str().unwrap(), "lobby"]).exits(0);
    let got = host.root().join("got.bin");
    ada.run(&["-v", "get", "lobby", "4", "-o", got.to_str().unwrap()]).exits(0);

    // A classic connection whose client is the test.
    let key = ada.run(&["classic", "add", "lamp", "--to", "lobby"]).exits(0).out;
    let key = data_encoding::HEXLOWER.decode(key.trim().as_bytes()).unwrap();
    secrets.add("a classic key", &key);
    let runtime = here();
    let psk = ClassicSecret::new(&key.try_into().unwrap());
    let classic = host.printed_address("classic connections on ");
    let line_keys = runtime.block_on(classic_line(classic, "lamp", &psk));
    for key in line_keys {
        secrets.add("a key of a classic line", &key);
    }
    let (line, used) = runtime.block_on(by_hand(&Card::of(&bob), messages));
    assert!(used.keys.len() > 10 * messages);
    for (what, key) in &used.keys {
        secrets.add(what, key);
    }

    // An open connection has the keys of its next frames, and no others.
    let standing = secrets.find_in_memory(&mut image);
    let mut needed = Needles::default();
    for (what, key) in ["sending", "receiving", "root"].iter().zip(used.now) {
        needed.add(what, &key);
    }
    let there = needed.find_in_memory(&mut image);
    assert!(there.len() >= 6, "the keys in use are not found where they have to be: {there:?}");
    let last = used.now;
    let sid = line.connection.session().id();
    runtime.block_on(line.bye());
    host.running().wait_err(&format!("session ended sid={sid}"));
    // A closed connection leaves none.
    for (what, key) in
        ["the last key, sent", "the last key, received", "the last root key"].iter().zip(last)
    {
        secrets.add(what, &key);
    }
    let gone = async {
        // The connection's task logs its end before it is dropped.
        for _ in 0..200 {
            if secrets.find_in_memory(&mut image).is_empty() {
                return Vec::new();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        secrets.find_in_memory(&mut image)
    };
    let ended = runtime.block_on(gone);
    eprintln!("secrets: {} forms of secrets; in the memory of process {pid}:", secrets.count());
    eprintln!(
        "secrets: while a line stands:\n{}once it has ended:\n{}",
        shown(&standing),
        shown(&ended)
    );

    let (files, kept) = secrets.find_in_files(&host.data());
    assert!(files > 5 && host.log().contains("received"), "{files} files");
    let mut profiles = BTreeSet::new();
    let mut strange = kept;
    for person in [&ada, &bob, &phone] {
        let (files, found) = secrets.find_in_files(&person.home);
        assert!(files > 3, "{files} files");
        let log = std::fs::read_to_string(person.home.join("state/default/client.log")).unwrap();
        assert!(!log.is_empty());
        let own = person.profile_file().display().to_string();
        for line in found {
            // A device's own secret has to be stored; it is only in its profile.
            if line.starts_with("a device's secret") && line.ends_with(&own) {
                profiles.insert(own.clone());
            } else {
                strange.push(line);
            }
        }
    }
    assert_eq!(profiles.len(), 3, "the secrets of devices are not found in their profiles");
    assert_eq!(strange, Vec::<String>::new());
    assert!(standing.is_empty() && ended.is_empty(), "{}{}", shown(&standing), shown(&ended));
}

#[test]
fn secrets__crashed_server_leaves_no_core_dump() {
    let before = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Check whether this system writes core dumps.
    let mut other = Command::new("sh");
    let other = other.args(["-c", "kill -s ABRT $$"]).current_dir(&dir).status().unwrap();
    if !other.core_dumped() {
        eprintln!("\n!!! THIS SYSTEM DUMPS NO CORES: ONLY THE LIMIT IS LOOKED AT !!!\n");
    }
    let host = Host::start();
    let pid = host.running().pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().skip(4).take(2).eq(["0", "0"]), "{core}");
    assert!(rustix::process::geteuid().is_root() || !Image::can_be_opened(pid));
    host.running().signal(rustix::process::Signal::ABORT);
    let status = host.died();
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status:?}");
}
