//! The power goes. A kill loses nothing that was written; this is about what was written and not
//! synced: images of the disk are made as a crash could have left it at any moment, and the real
//! server has to start on each and know all that was acknowledged by then.
//!
//! `TWINLOCK_CRASHES=200` makes it so many images.

// The shim is for the GNU libc's dynamic linker.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs
)]

mod common;
mod disk;

use std::collections::HashMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::*;
use disk::image::{Fate, Op, Replay, parse};
use disk::{Disk, Orders, Unsynced};
use serde_json::Value;

/// Who writes where.
const WRITERS: [(&str, &str); 3] = [("ada", "lobby"), ("bob", "ops"), ("eve", "lobby")];
/// A sync takes up to this, microseconds: longer than an ack takes from the server to the log.
const SLOW: u32 = 8_000;
const EIO: u32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The server runs.
    Steady,
    /// It is killed now and then: the next one finds what was never synced.
    Killed,
    /// Syncs fail now and then, and it is killed.
    Failing,
}

/// A server's life, as its disk saw it.
struct Life {
    kind: Kind,
    log: Vec<u8>,
    ops: Vec<Op>,
    /// The record from which on everybody is there.
    ready: usize,
    /// Homes as they were then.
    homes: tempfile::TempDir,
    faults: u32,
}

/// A child that writes its acks into the log.
struct Acking(Child);

impl Drop for Acking {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Acking {
    fn start(
        person: &Person,
        args: &[&str],
        disk: &Arc<Disk>,
    ) -> (Self, ChildStdin, JoinHandle<()>) {
        let mut command = person.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let disk = Arc::clone(disk);
        let acks = std::thread::spawn(move || {
            for line in lines(stdout) {
                let said: Value = serde_json::from_str(&line).unwrap();
                if said["link"].is_string() {
                    disk.mark(&line);
                }
            }
        });
        (Self(child), stdin, acks)
    }

    fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A server on a watched disk, with three people.
struct Stage {
    disk: Arc<Disk>,
    orders: Orders,
    host: Host,
    people: [Person; 3],
    homes: tempfile::TempDir,
}

impl Stage {
    fn new(orders: Orders) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::watching(root.path()));
        disk.order(orders);
        let host = Host::start_under(root, &[], disk.env());
        let ada = host.owner();
        let people = [ada.clone(), host.member(&ada, "bob"), host.member(&ada, "eve")];
        people[1].run(&["room", "create", "ops"]).exits(0);
        people[0].run(&["room", "join", "ops"]).exits(0);
        let homes = tempfile::tempdir().unwrap();
        copy(&ada.home, &homes.path().join("ada"));
        disk.mark("ready");
        Self { disk, orders, host, people, homes }
    }

    /// Runs a command of ada's to its end and writes down its acks.
    fn acks(&self, args: &[&str], code: i32) {
        let (mut child, _, acks) = Acking::start(&self.people[0], args, &self.disk);
        assert_eq!(child.ended(), Some(code), "{args:?}");
        acks.join().unwrap();
    }

    /// Ends in order.
    fn life(mut self, kind: Kind) -> Life {
        self.host.terminate().exits(0);
        let log = self.disk.log();
        let ops = parse(&log);
        let is_ready = |op: &Op| matches!(op, Op::Mark(mark) if mark == "ready");
        let ready = ops.iter().position(is_ready).unwrap();
        let life = Life { kind, log, ops, ready, homes: self.homes, faults: self.disk.faults() };
        life.is_what_happened(self.host.root());
        life
    }
}

impl Life {
    fn lived(kind: Kind, unsynced: Unsynced, time: Duration, chance: &mut Chance) -> Self {
        let mut stage = Stage::new(Orders { longest_sync: SLOW, unsynced, ..Orders::default() });
        let (orders, ada) = (stage.orders, stage.people[0].clone());
        let stop = Arc::new(AtomicBool::new(false));
        let mut writing = Vec::new();
        for (person, (name, target)) in stage.people.iter().zip(WRITERS) {
            let send = ["send", target, "--json"];
            let (child, stdin, acks) = Acking::start(person, &send, &stage.disk);
            let (stop, chance) = (Arc::clone(&stop), Chance::from(chance.next()));
            let feeding = std::thread::spawn(move || feed(stdin, name, &stop, chance));
            writing.push((child, acks, feeding));
        }
        let putting = {
            let (disk, stop) = (Arc::clone(&stage.disk), Arc::clone(&stop));
            let (mut chance, dir) = (Chance::from(chance.next()), stage.host.root().join("to-put"));
            std::thread::spawn(move || put_files(&ada, &disk, &stop, &mut chance, &dir))
        };
        let until = Instant::now() + time;
        while Instant::now() < until || (kind == Kind::Failing && stage.disk.faults() < 3) {
            let sync_error = if kind == Kind::Failing { EIO } else { 0 };
            stage.disk.order(Orders { sync_error, one_in: 6, ..orders });
            if kind != Kind::Steady && chance.within(0, 3) > 0 {
                stage.disk.kill_after(chance.within(0, 600) as u32);
                assert_eq!(stage.host.gone().code, None, "it is killed");
                stage.disk.order(orders);
                stage.host.restart();
            } else {
                std::thread::sleep(Duration::from_millis(chance.within(50, 500)));
            }
        }
        stage.disk.order(orders);
        stop.store(true, Ordering::Relaxed);
        for (mut child, acks, feeding) in writing {
            feeding.join().unwrap();
            assert_eq!(child.ended(), Some(0));
            acks.join().unwrap();
        }
        putting.join().unwrap();
        stage.life(kind)
    }

    /// The log is all that happened: what it says is what is on the real disk.
    fn is_what_happened(&self, root: &Path) {
        let mut replay = Replay::new(&self.log);
        replay.advance(&self.ops, self.ops.len());
        let image = tempfile::tempdir().unwrap();
        replay.crash(image.path(), Fate::Kept, &mut Chance::from(0));
        let [real, said] = [root, image.path()].map(|root| files(&root.join("data")));
        assert_eq!(real.keys().collect::<Vec<_>>(), said.keys().collect::<Vec<_>>());
        for (name, content) in &real {
            assert!(said[name] == *content, "{} is not what was written", name.display());
        }
        assert!(real.len() > 3, "{:?}", real.keys());
    }

    /// Makes images of so many moments and judges each; says which promises were broken.
    fn judge(&self, images: usize, chance: &mut Chance) -> (Tally, Vec<String>) {
        let all = self.ops.len();
        let marks: Vec<_> =
            (self.ready..all).filter(|i| matches!(self.ops[*i], Op::Mark(_))).collect();
        // Half of them just after an ack.
        let mut moments: Vec<_> = (0..images)
            .map(|i| match i % 2 {
                0 => marks[chance.within(0, marks.len() as u64) as usize] + 1,
                _ => chance.within(self.ready as u64 + 1, all as u64 + 1) as usize,
            })
            .collect();
        moments.sort_unstable();
        let mut replay = Replay::new(&self.log);
        let (mut tally, mut broken) = (Tally::default(), Vec::new());
        for moment in moments {
            let (fate, seed) = (Fate::drawn(chance), chance.next());
            match self.crash(&mut replay, moment, fate, seed, &mut tally) {
                Ok(()) => {}
                Err(why) => broken.push(why),
            }
        }
        (tally, broken)
    }

    /// What is left where all that is not synced is lost just after the last ack.
    fn keeps_its_last_ack(&self) -> Result<(), String> {
        let last = self.ops.iter().rposition(|op| matches!(op, Op::Mark(_))).unwrap();
        assert!(last > self.ready, "something is acknowledged");
        self.crash(&mut Replay::new(&self.log), last + 1, Fate::Lost, 0, &mut Tally::default())
    }

    fn crash(
        &self,
        replay: &mut Replay<'_>,
        moment: usize,
        fate: Fate,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        replay.advance(&self.ops, moment);
        let root = tempfile::tempdir().unwrap();
        replay.crash(root.path(), fate, &mut Chance::from(seed));
        copy(&self.homes.path().join("ada"), &root.path().join("ada"));
        let acked = self.ops[self.ready + 1..moment].iter().filter_map(|op| match op {
            Op::Mark(ack) => Some(serde_json::from_str::<Value>(ack).unwrap()),
            _ => None,
        });
        let acked: Vec<_> = acked.collect();
        tally.images += 1;
        tally.acks += acked.len();
        let kept = catch_unwind(AssertUnwindSafe(|| keeps(root, &acked, seed)));
        kept.map(|files| tally.files += files).map_err(|why| {
            let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
            format!("{:?}, {fate:?}, record {moment} of {}: {why}", self.kind, self.ops.len())
        })
    }
}

#[derive(Debug, Default)]
struct Tally {
    images: usize,
    acks: usize,
    files: usize,
}

/// The real server starts on what a crash has left, has all that was acknowledged, and goes on.
fn keeps(root: tempfile::TempDir, acked: &[Value], seed: u64) -> usize {
    let ada = Person { home: root.path().join("ada"), address: None };
    // Memory that was shared is in no order after a crash; often it is there all the same.
    if seed.is_multiple_of(2) && root.path().join("data/record.db-wal").exists() {
        std::fs::write(root.path().join("data/record.db-shm"), vec![seed as u8; 32 * 1024])
            .unwrap();
    }
    let mut host = Host::start_in(root, &[]);
    let ada = ada.by(host.address());
    let mut whole = 0;
    for target in ["lobby", "ops"] {
        let record = ada.reads(target);
        for ack in acked.iter().filter(|ack| ack["conversation"] == target) {
            let n = usize::try_from(ack["n"].as_u64().unwrap()).unwrap();
            assert!(n <= record.len(), "{target} has {} entries and lost {ack}", record.len());
            for field in ["n", "time", "id", "link"] {
                assert_eq!(ack[field], record[n - 1][field], "{field} of {ack}");
            }
        }
        for (name, _) in WRITERS.iter().filter(|(_, at)| *at == target) {
            let of = record.iter().filter(|e| e["from"] == **name && e["kind"] == "text");
            for (i, entry) in of.enumerate() {
                let text = entry["text"].as_str().unwrap();
                let wanted = format!("{name} {i:05} ");
                assert!(text.starts_with(&wanted), "{wanted} is missing before {text:.20}");
            }
        }
        for file in record.iter().filter(|entry| entry["kind"] == "file") {
            let hash = file["file"]["blake3"].as_str().unwrap();
            let path = host.data().join("files").join(&hash[..2]).join(hash);
            let content = std::fs::read(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert_eq!(blake3::hash(&content).to_hex().as_str(), hash, "{file}");
            whole += 1;
        }
    }
    ada.run(&["audit", "verify"]).exits(0);
    ada.run(&["send", "ops", "and on"]).exits(0);
    host.terminate().exits(0);
    whole
}

/// Lines of all lengths, in bursts and with pauses.
fn feed(mut stdin: ChildStdin, name: &str, stop: &AtomicBool, mut chance: Chance) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let burst = if chance.within(0, 10) == 0 { 60 } else { chance.within(1, 4) };
        for _ in 0..burst {
            let length = chance.within(0, 40).pow(2) as usize;
            writeln!(stdin, "{name} {n:05} {}", "x".repeat(length)).unwrap();
            n += 1;
        }
        std::thread::sleep(Duration::from_millis(chance.within(1, 60)));
    }
}

/// Files of all sizes, one after the other, each until it is recorded.
fn put_files(ada: &Person, disk: &Arc<Disk>, stop: &AtomicBool, chance: &mut Chance, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let path = dir.join("some.bin");
    while !stop.load(Ordering::Relaxed) {
        let size = chance.within(1, 600).pow(2);
        let content: Vec<_> =
            (0..size.div_ceil(8)).flat_map(|_| chance.next().to_le_bytes()).collect();
        std::fs::write(&path, content).unwrap();
        let put = ["put", path.to_str().unwrap(), "lobby", "--json"];
        loop {
            let (mut child, _, acks) = Acking::start(ada, &put, disk);
            let code = child.ended();
            acks.join().unwrap();
            match code {
                Some(0) => break,
                // The server's disk failed, or it was gone for too long.
                Some(5 | 7) => {}
                code => panic!("put: {code:?}"),
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

/// All files below a directory that a crash must not harm.
fn files(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let beside = name.starts_with("server.log") || name.ends_with(".lock");
            if path.is_dir() {
                dirs.push(path);
            } else if !beside {
                let content = std::fs::read(&path).unwrap();
                all.insert(path.strip_prefix(dir).unwrap().to_owned(), content);
            }
        }
    }
    all
}

#[test]
fn whenever_the_power_goes_the_server_starts_and_has_every_ack_and_every_file() {
    let mut chance = Chance::new();
    let images = scale("TWINLOCK_CRASHES", 12);
    let time = Duration::from_millis(if images < 100 { 1_500 } else { 8_000 });
    let began = Instant::now();
    let mut all = HashMap::new();
    let mut broken = Vec::new();
    for (kind, part) in [(Kind::Steady, 1), (Kind::Killed, 2), (Kind::Failing, 3)] {
        let life = Life::lived(kind, Unsynced::None, time, &mut chance);
        assert_eq!(life.faults > 0, kind == Kind::Failing, "{kind:?}: {} faults", life.faults);
        let (tally, more) = life.judge((images * part / 6).max(2), &mut chance);
        eprintln!("power: {kind:?}: {} records, {} faults, {tally:?}", life.ops.len(), life.faults);
        broken.extend(more);
        all.insert(format!("{kind:?}"), tally);
    }
    for why in &broken {
        eprintln!("BROKEN: {}", why.replace('\n', " | "));
    }
    eprintln!("power: {images} images in {:.1?}, {} broken", began.elapsed(), broken.len());
    assert_eq!(broken, [""; 0]);
    assert!(all.values().all(|tally| tally.acks > tally.images), "{all:?}");
}

#[test]
fn a_disk_that_syncs_nothing_is_found_out_by_these_tests() {
    let mut chance = Chance::new();
    for unsynced in [Unsynced::Files, Unsynced::Directories] {
        let time = Duration::from_millis(300);
        let life = Life::lived(Kind::Steady, unsynced, time, &mut chance);
        let broken = life.keeps_its_last_ack().unwrap_err();
        eprintln!("{unsynced:?} are not synced: {}", broken.lines().next().unwrap());
    }
}

#[test]
fn a_commit_whose_sync_failed_is_written_anew_before_it_is_acknowledged() {
    for killed in [false, true] {
        let mut stage = Stage::new(Orders::default());
        stage.acks(&["send", "lobby", "ada 00000 before", "--json"], 0);
        stage.disk.order(Orders { sync_error: EIO, ..Orders::default() });
        stage.acks(&["send", "lobby", "ada 00001 fails", "--json", "--timeout", "1s"], 6);
        assert!(stage.host.log().contains("a commit failed"), "{}", stage.host.log());
        stage.disk.order(Orders::default());
        if killed {
            // Nothing is under way.
            stage.host.kill();
            stage.host.restart();
        }
        stage.acks(&["send", "lobby", "ada 00002 after", "--json"], 0);
        let life = stage.life(if killed { Kind::Killed } else { Kind::Steady });
        assert!(life.faults > 0);
        life.keeps_its_last_ack().unwrap();
    }
}

#[test]
fn a_file_whose_sync_failed_is_sent_anew_before_it_is_recorded() {
    let stage = Stage::new(Orders::default());
    let path = stage.host.root().join("some.bin");
    let put = ["put", path.to_str().unwrap(), "lobby", "--json"];
    // Its folders are there.
    std::fs::write(&path, [7; 10]).unwrap();
    stage.acks(&put, 0);
    std::fs::write(&path, vec![7; 300_000]).unwrap();
    stage.disk.order(Orders { sync_error: EIO, ..Orders::default() });
    stage.acks(&put, 7);
    stage.disk.order(Orders::default());
    stage.acks(&put, 0);
    let life = stage.life(Kind::Steady);
    assert!(life.faults > 0);
    life.keeps_its_last_ack().unwrap();
}
