//! A server's life on a watched disk, and what crashes leave of it. The real server has to start on
//! that, with everything that was acknowledged.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::image::{Fate, Op, Replay, parse};
use super::{Disk, Orders};
use crate::common::*;

/// Who writes to which room; each line begins with `name 00000 `, counting up.
pub const WRITERS: [(&str, &str); 3] = [("ada", "lobby"), ("bob", "ops"), ("eve", "lobby")];

/// A server's life, as its disk recorded it.
pub struct Life {
    /// For messages.
    pub kind: String,
    pub log: Vec<u8>,
    pub ops: Vec<Op>,
    /// The record from which on all members exist.
    pub ready: usize,
    /// Copies of the homes at that point.
    pub homes: tempfile::TempDir,
    pub faults: u32,
}

/// A child that writes its acks into the log.
pub struct Acking {
    child: Child,
}

impl Drop for Acking {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Acking {
    pub fn start(
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
        (Self { child }, stdin, acks)
    }

    pub fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A server on a watched disk, with three people.
pub struct Stage {
    pub disk: Arc<Disk>,
    pub orders: Orders,
    pub host: Host,
    pub people: [Person; 3],
    pub homes: tempfile::TempDir,
}

impl Stage {
    pub fn new(orders: Orders) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::watching(root.path()));
        disk.order(orders);
        let host = Host::start_under(root, &[], disk.env());
        let ada = host.owner();
        let people = [ada.clone(), host.member(&ada, "bob"), host.member(&ada, "eve")];
        people[1].run(&["room", "create", "ops"]).exits(0);
        people[0].run(&["room", "join", "ops"]).exits(0);
        let homes = tempfile::tempdir().unwrap();
        copy_dir(&ada.home, &homes.path().join("ada"));
        disk.mark("ready");
        Self { disk, orders, host, people, homes }
    }

    /// Runs a command of ada to its end and logs its acks.
    pub fn acks(&self, args: &[&str], code: i32) {
        let (mut child, _, acks) = Acking::start(&self.people[0], args, &self.disk);
        assert_eq!(child.ended(), Some(code), "{args:?}");
        acks.join().unwrap();
    }

    /// Shuts the server down cleanly.
    pub fn life(mut self, kind: impl Debug) -> Life {
        self.host.terminate().exits(0);
        self.ended(kind)
    }

    /// Collects the life of a server that has ended.
    pub fn ended(self, kind: impl Debug) -> Life {
        let log = self.disk.log();
        let ops = parse(&log);
        let is_ready = |op: &Op| matches!(op, Op::Mark(mark) if mark == "ready");
        let ready = ops.iter().position(is_ready).unwrap();
        let kind = format!("{kind:?}");
        let life = Life { kind, log, ops, ready, homes: self.homes, faults: self.disk.faults() };
        life.is_what_happened(self.host.root());
        life
    }
}

impl Life {
    /// Builds `images` images of random moments and checks each; returns the broken promises.
    pub fn judge(&self, images: usize, rng: &mut Rng) -> (Tally, Vec<String>) {
        let all = self.ops.len();
        let marks: Vec<_> =
            (self.ready..all).filter(|i| matches!(self.ops[*i], Op::Mark(_))).collect();
        // Half of them just after an ack.
        let mut moments: Vec<_> = (0..images)
            .map(|i| match i % 2 {
                0 => marks[rng.within(0, marks.len() as u64) as usize] + 1,
                _ => rng.within(self.ready as u64 + 1, all as u64 + 1) as usize,
            })
            .collect();
        moments.sort_unstable();
        let mut replay = Replay::new(&self.log);
        let (mut tally, mut broken) = (Tally::default(), Vec::new());
        for moment in moments {
            let (fate, seed) = (Fate::drawn(rng), rng.draw());
            match self.crash(&mut replay, moment, fate, seed, &mut tally) {
                Ok(()) => {}
                Err(why) => broken.push(why),
            }
        }
        (tally, broken)
    }

    /// Asserts that the log is complete: its replay equals the real disk.
    pub fn is_what_happened(&self, root: &Path) {
        let mut replay = Replay::new(&self.log);
        replay.advance(&self.ops, self.ops.len());
        let image = tempfile::tempdir().unwrap();
        replay.crash(image.path(), Fate::Kept, &mut Rng::from_seed(0));
        let [real, said] = [root, image.path()].map(|root| files(&root.join("data")));
        assert_eq!(real.keys().collect::<Vec<_>>(), said.keys().collect::<Vec<_>>());
        for (name, content) in &real {
            assert!(said[name] == *content, "{} is not what was written", name.display());
        }
        assert!(real.len() > 3, "{:?}", real.keys());
    }

    /// Checks a crash just after the last ack that loses every unsynced change.
    pub fn keeps_its_last_ack(&self) -> Result<(), String> {
        let last = self.ops.iter().rposition(|op| matches!(op, Op::Mark(_))).unwrap();
        assert!(last > self.ready, "something is acknowledged");
        self.keeps(last + 1, Fate::Lost, 0)
    }

    /// Checks a crash at one moment.
    pub fn keeps(&self, moment: usize, fate: Fate, seed: u64) -> Result<(), String> {
        self.crash(&mut Replay::new(&self.log), moment, fate, seed, &mut Tally::default())
    }

    pub fn crash(
        &self,
        replay: &mut Replay<'_>,
        moment: usize,
        fate: Fate,
        seed: u64,
        tally: &mut Tally,
    ) -> Result<(), String> {
        replay.advance(&self.ops, moment);
        let root = tempfile::tempdir().unwrap();
        replay.crash(root.path(), fate, &mut Rng::from_seed(seed));
        copy_dir(&self.homes.path().join("ada"), &root.path().join("ada"));
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
            format!("{}, {fate:?}, record {moment} of {}: {why}", self.kind, self.ops.len())
        })
    }
}

#[derive(Debug, Default)]
pub struct Tally {
    pub images: usize,
    pub acks: usize,
    pub files: usize,
}

/// Starts the real server on the remains of a crash; asserts that all acks hold and that it works.
pub fn keeps(root: tempfile::TempDir, acked: &[Value], seed: u64) -> usize {
    let ada = Person { home: root.path().join("ada"), address: None };
    // Shared memory is undefined after a crash, but the file often still exists.
    for database in ["people.db", "index.db", "words.db"] {
        let file = |suffix| root.path().join(format!("data/record/{database}-{suffix}"));
        if seed.is_multiple_of(2) && file("wal").exists() {
            std::fs::write(file("shm"), vec![seed as u8; 32 * 1024]).unwrap();
        }
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

/// All files below a directory that a crash must not damage.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let changes = ["server.log", "record.lock"].iter().any(|one| name.starts_with(one));
            let changes = changes || name.ends_with("-shm");
            if path.is_dir() {
                dirs.push(path);
            } else if !changes {
                let content = std::fs::read(&path).unwrap();
                all.insert(path.strip_prefix(dir).unwrap().to_owned(), content);
            }
        }
    }
    all
}
