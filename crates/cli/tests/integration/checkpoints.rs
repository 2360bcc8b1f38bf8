//! Disk failures during a checkpoint, which moves pages from the WAL into the database. A test
//! fails exactly one chosen sync or write while the server keeps running, and then cuts the power.
//!
//! SQLite marks pages as moved when a checkpoint runs next to commits, and leaves their sync to a
//! later checkpoint. If that sync fails, those pages may exist only in the WAL.

// The shim needs the GNU libc's dynamic linker.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::ChildStdin;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::disk::image::Fate;
use crate::disk::life::{Acking, Life, Stage};
use crate::disk::{Aim, Deed, EIO, ENOSPC, Orders};
use rustix::process::Signal;

const DATABASE: &str = "/record.db";
/// The server's threads that run checkpoints.
const CHECKPOINTER: &str = "checkpoint";
const RECORDER: &str = "recorder";
/// The log message after a successful reopening.
const OPEN_AGAIN: &str = "the record was reopened";
/// Lines of 30 KB that are too many for the recorder to checkpoint between two commits.
const MANY: usize = 20;

/// A client that writes line after line.
struct Writing {
    stage: Stage,
    child: Acking,
    stdin: ChildStdin,
    acks: JoinHandle<()>,
    said: usize,
    /// Lines that others sent before.
    before: usize,
}

impl Writing {
    fn new() -> Self {
        Self::after(Stage::new(Orders::default()), 0)
    }

    fn after(stage: Stage, said: usize) -> Self {
        let send = ["send", "--json", "lobby"];
        let (child, stdin, acks) = Acking::start(&stage.people[0], &send, &stage.disk);
        Self { stage, child, stdin, acks, said, before: said }
    }

    /// Sends `lines` lines, each after the ack of the one before.
    fn says(&mut self, lines: usize) {
        for _ in 0..lines {
            writeln!(self.stdin, "ada {:05} {}", self.said, "x".repeat(30_000)).unwrap();
            self.said += 1;
            let until = Instant::now() + LONG;
            while self.child.acked() + self.before < self.said {
                assert!(Instant::now() < until, "no ack of line {}: {}", self.said, self.log());
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Sends lines until a checkpoint starts to move them, and holds it there.
    fn is_about_to_move(&mut self) {
        self.stage.disk.aim(Deed::Hold, Aim { file: DATABASE, thread: CHECKPOINTER }, 1, 0);
        self.says_until(Deed::Hold, 1);
    }

    /// Records `lines` more lines while a checkpoint moves the earlier ones. So it marks the pages
    /// as moved, but syncs nothing.
    fn is_half_moved(&mut self, lines: usize) {
        self.is_about_to_move();
        self.says(lines);
        self.stage.disk.release(Deed::Hold);
    }

    /// Runs half a checkpoint, then fails the sync of the other half by `thread`. The server
    /// reopens its record automatically.
    fn fails_to_sync(&mut self, thread: &'static str) {
        let disk = self.stage.disk.clone();
        disk.aim(Deed::FailSync, Aim { file: DATABASE, thread }, 1, EIO);
        let until = Instant::now() + LONG;
        while disk.hits(Deed::FailSync) == 0 {
            assert!(Instant::now() < until, "{thread} syncs nothing: {}", self.log());
            if thread == RECORDER {
                self.is_half_moved(1);
                self.says(2);
            } else {
                self.is_half_moved(MANY);
                // The checkpoint continues without further commits.
                let soon = Instant::now() + Duration::from_millis(500);
                while disk.hits(Deed::FailSync) == 0 && Instant::now() < soon {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        self.stage.host.running().wait_err(OPEN_AGAIN);
    }

    /// Sends lines until the deed has happened `hits` times.
    fn says_until(&mut self, deed: Deed, hits: u32) {
        let until = Instant::now() + LONG;
        while self.stage.disk.hits(deed) < hits {
            assert!(Instant::now() < until, "{deed:?} was not met: {}", self.log());
            self.says(1);
        }
    }

    /// Sends lines until the WAL restarts, with everything moved out of it.
    fn goes_on(&mut self) {
        let (before, until) = (self.head_of_wal(), Instant::now() + LONG);
        while self.head_of_wal() == before {
            assert!(Instant::now() < until, "all stays in the -wal file: {}", self.log());
            self.says(1);
        }
        self.says(MANY);
    }

    /// The WAL's header: different after each restart, zeros while the file is empty.
    fn head_of_wal(&self) -> [u8; 32] {
        let mut head = [0; 32];
        let wal = File::open(self.stage.host.data().join("record.db-wal")).unwrap();
        let read = wal.read_at(&mut head, 0).unwrap();
        assert!(read == 0 || read == head.len(), "{read}");
        head
    }

    fn log(&self) -> String {
        self.stage.host.log()
    }

    /// Stops sending; every line is acknowledged.
    fn ends(mut self) -> Stage {
        drop(self.stdin);
        assert_eq!(self.child.ended(), Some(0));
        self.acks.join().unwrap();
        self.stage
    }
}

/// Asserts that every ack holds after a crash: just after the last ack, and after the shutdown.
fn keeps_every_ack(life: &Life) {
    assert!(life.faults > 0);
    life.keeps_its_last_ack().unwrap();
    for (seed, fate) in (0..).zip([Fate::Lost, Fate::Torn]) {
        life.keeps(life.ops.len(), fate, seed).unwrap();
    }
}

#[test]
fn checkpoint__acks_survive_failed_fsync_of_second_half() {
    for thread in [RECORDER, CHECKPOINTER] {
        let mut writing = Writing::new();
        writing.fails_to_sync(thread);
        writing.goes_on();
        keeps_every_ack(&writing.ends().life(thread));
    }
}

#[test]
fn checkpoint__acks_survive_pages_dropped_by_failed_fsync() {
    for thread in [CHECKPOINTER, RECORDER] {
        let mut writing = Writing::new();
        writing.stage.disk.forget_what_fails();
        writing.fails_to_sync(thread);
        let read = writing.stage.people[0].reads("lobby");
        let said = read.iter().filter(|entry| entry["kind"] == "text").count();
        assert_eq!(said, writing.said);
        writing.goes_on();
        keeps_every_ack(&writing.ends().life(thread));
    }
}

#[test]
fn checkpoint__failed_writes_are_retried() {
    for error in [EIO, ENOSPC] {
        let mut writing = Writing::new();
        writing.is_half_moved(MANY);
        writing.stage.disk.aim(Deed::FailWrite, Aim { file: DATABASE, thread: "" }, 3, error);
        writing.says_until(Deed::FailWrite, 3);
        writing.goes_on();
        keeps_every_ack(&writing.ends().life(error));
    }
}

#[test]
fn checkpoint__acks_survive_failed_wal_fsync() {
    let mut writing = Writing::new();
    let wal = Aim { file: "/record.db-wal", thread: CHECKPOINTER };
    writing.is_half_moved(MANY);
    writing.stage.disk.aim(Deed::FailSync, wal, 1, EIO);
    writing.says_until(Deed::FailSync, 1);
    writing.stage.host.running().wait_err(OPEN_AGAIN);
    writing.goes_on();
    keeps_every_ack(&writing.ends().life("wal"));
}

#[test]
fn checkpoint__record_reopens_once_disk_recovers() {
    let mut writing = Writing::new();
    writing.is_about_to_move();
    writing.says(MANY);
    let (disk, bob) = (writing.stage.disk.clone(), writing.stage.people[1].clone());
    disk.order(Orders { sync_error: EIO, ..Orders::default() });
    // A failed commit leaves data in the WAL that was never synced.
    bob.run(&["send", "--timeout", "2s", "ops", "bob 00000 fails"]).exits(6);
    assert!(writing.log().contains("a commit failed"), "{}", writing.log());
    disk.release(Deed::Hold);
    let server = writing.stage.host.running();
    server.wait_err_times("the record cannot be reopened yet", 2);
    let refused = bob.run(&["send", "--timeout", "2s", "ops", "bob 00000 refused"]).exits(6);
    assert!(refused.err.contains("the server cannot write to its disk now"), "{refused:?}");
    let read = bob.reads("lobby");
    assert_eq!(read.iter().filter(|entry| entry["kind"] == "text").count(), writing.said);
    // No client reads entries that may still be rolled back.
    let read = bob.reads("ops");
    assert!(read.iter().all(|entry| entry["kind"] != "text"), "{read:?}");
    disk.order(Orders::default());
    server.wait_err(OPEN_AGAIN);
    writing.goes_on();
    keeps_every_ack(&writing.ends().life("was reopened"));
}

#[test]
fn checkpoint__failed_last_fsync_is_recovered_by_next_start() {
    // The failing sync may belong to a last step of the index; then the server reopens its record.
    let ended = (0..20).find_map(|_| {
        let mut writing = Writing::new();
        writing.is_about_to_move();
        writing.says(1);
        let (disk, said) = (writing.stage.disk.clone(), writing.said);
        let mut stage = writing.ends();
        stage.host.running().signal(Signal::TERM);
        stage.host.running().wait_err("shutting down");
        disk.aim(Deed::FailSync, Aim { file: DATABASE, thread: RECORDER }, 1, EIO);
        disk.release(Deed::Hold);
        stage.host.gone().exits(0);
        assert_eq!(disk.hits(Deed::FailSync), 1);
        let (left, log) = (stage.host.data().join("record.db-wal").exists(), stage.host.log());
        assert_ne!(left, log.contains(OPEN_AGAIN), "{log}");
        left.then_some((stage, said))
    });
    let (mut stage, said) = ended.expect("the last sync fails");
    stage.host.restart();
    let mut writing = Writing::after(stage, said);
    writing.goes_on();
    keeps_every_ack(&writing.ends().life("restarted"));
}
