//! Devices while the server is killed, its disk is full, or a proxy is in front of it: an answer is
//! a promise here as well.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::device::{Device, Line, Origin, Ports, add_key};
use crate::common::*;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const BOTH: [&str; 4] = ["--classic-port", "0", "--origin-port", "0"];

/// A device that sends one text after the other, each of them once, and reconnects after a lost
/// connection.
struct Talker {
    who: &'static str,
    answers: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    /// Returns each answered text, and its answer.
    thread: JoinHandle<Vec<(String, String)>>,
}

impl Talker {
    fn start<D: Device + 'static>(
        who: &'static str,
        connect: impl Fn() -> io::Result<D> + Send + 'static,
    ) -> Self {
        let (answers, failures, stop) =
            <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        let counts = (answers.clone(), failures.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (answers, failures, stop) = counts;
            let (mut device, mut answered) = (None, Vec::new());
            for n in 0.. {
                let text = format!("{who} {n}");
                let said = match device.take().map_or_else(&connect, Ok) {
                    Ok(mut there) => there.say(&text).inspect(|_| device = Some(there)),
                    Err(error) => Err(error),
                };
                match said {
                    Ok(answer) => {
                        answered.push((text, answer));
                        answers.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(_) => {
                        failures.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
                if stop.load(Ordering::SeqCst) {
                    break;
                }
            }
            answered
        });
        Self { who, answers, failures, stop, thread }
    }

    #[track_caller]
    fn wait(&self, count: &AtomicUsize, more: usize) {
        let (from, until) = (count.load(Ordering::SeqCst), Instant::now() + LONG);
        while count.load(Ordering::SeqCst) < from + more {
            assert!(Instant::now() < until, "{} says no more", self.who);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ends(self) -> Vec<(String, String)> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// One of each form.
fn talkers(ada: &Person, ports: &Ports) -> [Talker; 2] {
    let (lamp, old) = (add_key(ada, "lamp", "ops", "jwe"), add_key(ada, "old", "ops", "origin"));
    let (to, too) = (ports.clone(), ports.clone());
    [
        Talker::start("lamp", move || Line::new(&to, "lamp", &lamp)),
        Talker::start("old", move || Origin::new(&too, &old)),
    ]
}

/// Asserts that each answered text is in the record, once, and at the answer's position.
#[track_caller]
fn assert_kept(ada: &Person, talkers: [Talker; 2]) {
    let [lamp, old] = talkers.map(Talker::ends);
    assert!(!lamp.is_empty() && !old.is_empty());
    let entries = ada.reads("ops");
    let mut by_text = HashMap::new();
    for entry in &entries {
        let twice = by_text.insert(entry["text"].as_str().unwrap(), entry);
        assert!(twice.is_none(), "{entry}");
    }
    for (text, answer) in lamp {
        let entry = by_text[&*text];
        let words: Vec<_> = answer.split(' ').collect();
        assert_eq!((words[0], words[2]), ("ok", &*entry["n"].to_string()), "{text}");
        assert_eq!(entry["link"], words[3], "{text}");
    }
    for (text, answer) in old {
        assert!(by_text.contains_key(&*text), "{text}");
        assert!(answer.starts_with("Message received at "), "{answer}");
    }
    ada.run(&["audit", "verify"]).exits(0);
}

fn ops(host: &Host) -> Person {
    let ada = host.owner();
    ada.run(&["room", "create", "ops"]).exits(0);
    ada
}

#[test]
fn classic__answered_text_survives_server_kill() {
    let mut host = Host::start_with(&BOTH);
    let ada = ops(&host);
    let ports = Ports::of(&host);
    let [lines, origin] = [ports.lines, ports.origin].map(|address| address.port().to_string());
    host.set_args(&["--classic-port", &lines, "--origin-port", &origin]);
    let talkers = talkers(&ada, &ports);
    for _ in 0..10 {
        for talker in &talkers {
            talker.wait(&talker.answers, 5);
        }
        host.kill();
        host.restart();
    }
    assert!(talkers.iter().all(|talker| talker.failures.load(Ordering::SeqCst) >= 10));
    assert_kept(&ada, talkers);
}

#[test]
fn classic__full_disk_gives_no_answer_and_later_recovers() {
    let host = Host::start_with(&BOTH);
    let ada = ops(&host);
    let talkers = talkers(&ada, &Ports::of(&host));
    let limit = |room: Option<u64>| {
        let pid = Pid::from_raw(i32::try_from(host.running().pid()).unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current: room, maximum: None }).unwrap();
    };
    for _ in 0..3 {
        for talker in &talkers {
            talker.wait(&talker.answers, 5);
        }
        limit(Some(0));
        for talker in &talkers {
            // Texts that fit before the disk was full may still be answered.
            talker.wait(&talker.failures, 1);
            let before = talker.answers.load(Ordering::SeqCst);
            talker.wait(&talker.failures, 3);
            assert_eq!(talker.answers.load(Ordering::SeqCst), before, "{}", talker.who);
        }
        limit(None);
    }
    for talker in &talkers {
        talker.wait(&talker.answers, 5);
    }
    assert_kept(&ada, talkers);
}

#[test]
fn classic__log_shows_client_address_of_proxy_header() {
    let mut host = Host::start_with(&BOTH);
    let ada = ops(&host);
    let (lamp, old) = (add_key(&ada, "lamp", "ops", "jwe"), add_key(&ada, "old", "ops", "origin"));
    host.terminate().exits(0);
    let file = host.root().join("twinlock.toml");
    std::fs::write(&file, "proxies = [\"127.0.0.1\"]\n").unwrap();
    host.set_args(&[&BOTH[..], &["--config", file.to_str().unwrap()]].concat());
    host.restart();
    let mut ports = Ports::of(&host);
    ports.header = twinlock_testing::endpoint::proxy_header([192, 0, 2, 7]);
    Line::new(&ports, "lamp", &lamp).unwrap().say("through the proxy").unwrap();
    Origin::new(&ports, &old).unwrap().say("through the proxy").unwrap();
    host.running().wait_err("classic connection ended");
    host.running().wait_err("origin connection ended");
    for ended in [
        "classic connection ended peer=192.0.2.7:12345",
        "origin connection ended peer=192.0.2.7:12345",
    ] {
        assert!(host.running().err().contains(ended), "{ended}: {}", host.running().err());
    }
}
