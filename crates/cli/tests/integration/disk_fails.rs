//! A full or failing disk during appends: messages are refused with a reason, and reading still
//! works. Once the disk works again, everything is recorded automatically, once and in order.
//!
//! `TWINLOCK_FAULTS=10` sets the number of rounds.

// The shim needs the GNU libc's dynamic linker.
#![cfg(target_os = "linux")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::disk::{Disk, EIO, ENOSPC, Orders};

/// When a refused client retries.
const RETRY: Duration = Duration::from_secs(5);

struct Stage {
    disk: Disk,
    host: Host,
    ada: Person,
    bob: Person,
    writing: Vec<(Running, JoinHandle<usize>)>,
    stop: Arc<AtomicBool>,
}

impl Stage {
    /// A server on a watched disk, and two people who write continuously.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::watching(root.path());
        let host = Host::start_under(root, &[], disk.env());
        let ada = host.owner();
        let bob = host.member(&ada, "bob");
        let stop = Arc::new(AtomicBool::new(false));
        let mut writing = Vec::new();
        for (person, name) in [(&ada, "ada"), (&bob, "bob")] {
            let mut sending = person.start(&["send", "--json", "lobby"]);
            let (mut stdin, stop) = (sending.stdin.take().unwrap(), Arc::clone(&stop));
            let feeding = std::thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..3 {
                        writeln!(stdin, "{name} {n:05}").unwrap();
                        n += 1;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                n
            });
            sending.wait_lines(10);
            writing.push((sending, feeding));
        }
        Self { disk, host, ada, bob, writing, stop }
    }

    /// Asserts that with a working disk everything is recorded, once and in order: the lines of
    /// both writers, and bob's `refused` messages, which wait in his outbox for the next sender.
    fn ends_well(self, refused: &[String]) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut sent = Vec::new();
        let mut acks = Vec::new();
        for (sending, feeding) in self.writing {
            sent.push(feeding.join().unwrap());
            acks.extend(sending.ended(LONG).exits(0).json());
        }
        let record = self.ada.reads("lobby");
        for (name, sent) in ["ada", "bob"].into_iter().zip(&sent) {
            let of = record.iter().filter(|entry| entry["from"] == name);
            let texts = of.map(|entry| entry["text"].as_str().unwrap());
            let (texts, others): (Vec<_>, Vec<_>) = texts.partition(|text| text.starts_with(name));
            let wanted: Vec<_> = (0..*sent).map(|n| format!("{name} {n:05}")).collect();
            assert_eq!(texts, wanted);
            assert_eq!(others, if name == "bob" { refused } else { &[] });
        }
        assert_eq!(acks.len(), sent.iter().sum::<usize>());
        for ack in &acks {
            let n = usize::try_from(ack["n"].as_u64().unwrap()).unwrap();
            assert_eq!(ack["link"], record[n - 1]["link"], "{ack}");
        }
        self.bob.run(&["audit", "verify"]).exits(0);
        acks.len()
    }
}

#[test]
fn disk__full_refuses_appends_serves_reads_and_recovers() {
    let stage = Stage::new();
    let rounds = scale("TWINLOCK_FAULTS", 1);
    let (began, mut slowest, mut refused) = (Instant::now(), Duration::ZERO, Vec::new());
    for round in 0..rounds {
        stage.disk.order(Orders { write_error: ENOSPC, ..Orders::default() });
        let line = format!("in round {round} there is no room");
        let full = stage.bob.run(&["send", "--timeout", "2s", "lobby", &line]);
        let full = full.exits(6);
        refused.push(line);
        let why = "the server cannot write to its disk now (is it full?)";
        assert_eq!(full.err.matches(why).count(), 2, "when it is so, and at the end: {full:?}");
        assert!(stage.host.log().contains("full"), "{}", stage.host.log());
        // Requests that need no disk space still work.
        let before = stage.ada.reads("lobby").len();
        assert!(before > 20);
        stage.ada.run(&["rooms"]).exits(0);
        stage.bob.run(&["audit", "verify"]).exits(0);
        assert_eq!(stage.ada.reads("lobby").len(), before, "nothing is recorded");
        let acks = stage.writing[0].0.out().lines().count();
        stage.disk.order(Orders::default());
        let well = Instant::now();
        stage.writing[0].0.wait_lines(acks + 50);
        slowest = slowest.max(well.elapsed());
    }
    let acks = stage.ends_well(&refused);
    eprintln!(
        "disk: {rounds} times full in {:.1?}, {acks} acks, records again after {slowest:.1?}",
        began.elapsed()
    );
    assert!(slowest < RETRY * 3, "{slowest:?}");
}

#[test]
fn disk__intermittent_faults_lose_nothing_and_keep_order() {
    let stage = Stage::new();
    let rounds = scale("TWINLOCK_FAULTS", 1);
    let began = Instant::now();
    for _ in 0..rounds {
        for (write_error, sync_error) in [(EIO, 0), (0, EIO), (EIO, EIO)] {
            let before = stage.disk.faults();
            stage.disk.order(Orders { write_error, sync_error, one_in: 8, ..Orders::default() });
            let until = Instant::now() + LONG;
            while stage.disk.faults() == before {
                assert!(Instant::now() < until, "nothing fails");
                std::thread::sleep(Duration::from_millis(1));
            }
            stage.disk.order(Orders::default());
            let acks = stage.writing[0].0.out().lines().count();
            stage.writing[0].0.wait_lines(acks + 10);
        }
    }
    let (faults, log) = (stage.disk.faults(), stage.host.log());
    let acks = stage.ends_well(&[]);
    eprintln!("disk: {faults} faults in {:.1?}, {acks} acks", began.elapsed());
    assert!(log.contains("a commit failed"), "{log}");
}
