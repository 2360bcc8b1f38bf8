//! One chosen sync or write of the record fails while the server runs, and then the power is cut.

// The shim needs the GNU libc's dynamic linker.
#![cfg(target_os = "linux")]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::disk::image::Fate;
use crate::disk::life::{Life, Stage};
use crate::disk::{Aim, Deed, EIO, ENOSPC, Orders};
use rusqlite::Connection;

const PEOPLE: Aim = Aim { file: "/people.db", thread: "indexer" };
const PEOPLE_WAL: Aim = Aim { file: "/people.db-wal", thread: "indexer" };
const SEGMENT: Aim = Aim { file: "/record/00000001.log", thread: "" };
/// Interval between two checkpoints of the accounts.
const CHECKPOINT: Duration = Duration::from_secs(1);
const SPARE: Aim = Aim { file: "/spare", thread: "log-spare" };

/// Asserts that every ack holds after a crash: just after the last ack, and after the shutdown.
fn keeps_every_ack(life: &Life) {
    assert!(life.faults > 0);
    life.keeps_its_last_ack().unwrap();
    for (seed, fate) in (0..).zip([Fate::Lost, Fate::Torn]) {
        life.keeps(life.ops.len(), fate, seed).unwrap();
    }
}

/// A server whose accounts change: bob creates room after room.
struct Rooms {
    stage: Stage,
    made: usize,
}

impl Rooms {
    fn make(&mut self) {
        let room = format!("room-{}", self.made);
        let made = self.stage.people[1].run(&["room", "create", &room]);
        assert_eq!(made.code, Some(0), "{made:?}: {}", self.stage.host.log());
        self.made += 1;
        // One user may create 256.
        std::thread::sleep(Duration::from_millis(25));
    }

    fn make_for(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.make();
        }
    }

    fn make_until_it_fails(&mut self, deed: Deed) {
        let until = Instant::now() + LONG;
        while self.stage.disk.hits(deed) == 0 {
            assert!(Instant::now() < until, "nothing is synced: {}", self.stage.host.log());
            self.make();
        }
    }

    /// Asserts that the server has every room.
    fn are_there(&self) {
        let listed = self.stage.people[1].run(&["rooms", "--json"]).exits(0).json();
        let names: Vec<_> = listed.iter().map(|room| &room["conversation"]).collect();
        for room in (0..self.made).map(|room| format!("room-{room}")) {
            assert!(names.iter().any(|name| **name == room), "{room} is not in {names:?}");
        }
    }
}

/// SQLite copies a part of the WAL while a reader needs the rest, and syncs it with the rest. If that
/// sync fails, it would copy only the rest again.
#[test]
fn accounts__failed_sync_of_a_checkpoint_loses_nothing() {
    for aim in [PEOPLE, PEOPLE_WAL] {
        let mut rooms = Rooms { stage: Stage::new(Orders::default()), made: 0 };
        rooms.make_for(CHECKPOINT / 4);
        let reader = Connection::open(rooms.stage.host.data().join("record/people.db")).unwrap();
        let count = |_: &rusqlite::Row<'_>| Ok(());
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM conversations", [], count).unwrap();
        rooms.make_for(CHECKPOINT * 2);
        rooms.stage.disk.aim(Deed::FailSync, aim, 1, EIO);
        reader.execute_batch("ROLLBACK").unwrap();
        drop(reader);
        rooms.make_until_it_fails(Deed::FailSync);
        rooms.make_for(CHECKPOINT * 3);
        let log = rooms.stage.host.log();
        assert!(log.contains("people.db is not made durable any more"), "{log}");
        rooms.are_there();
        rooms.stage.acks(&["send", "--json", "lobby", "ada 00000 after"], 0);
        rooms.stage.host.kill();
        rooms.stage.host.restart();
        rooms.are_there();
        rooms.stage.acks(&["send", "--json", "lobby", "ada 00001 again"], 0);
        keeps_every_ack(&rooms.stage.life(aim.file));
    }
}

/// The kernel drops what it could not write, so the batch is gone from the file too.
#[test]
fn segment__commit_whose_sync_failed_is_written_again() {
    for killed in [false, true] {
        let mut stage = Stage::new(Orders::default());
        stage.disk.forget_what_fails();
        stage.acks(&["send", "--json", "lobby", "ada 00000 before"], 0);
        stage.disk.aim(Deed::FailSync, SEGMENT, 1, EIO);
        stage.acks(&["send", "--json", "--timeout", "1s", "lobby", "ada 00001 fails"], 6);
        assert_eq!(stage.disk.hits(Deed::FailSync), 1);
        if killed {
            stage.host.kill();
            stage.host.restart();
        }
        // The refused one waits in the outbox, and goes first.
        stage.acks(&["send", "--json", "lobby", "ada 00002 after"], 0);
        keeps_every_ack(&stage.life(if killed { "killed" } else { "steady" }));
    }
}

#[test]
fn segment__spare_that_cannot_be_made_is_tried_again() {
    for (deed, error) in [(Deed::FailWrite, ENOSPC), (Deed::FailSync, EIO)] {
        let stage = Stage::new(Orders::default());
        stage.disk.aim(deed, SPARE, 1, error);
        // The first segment has 1 MiB; the spare is made when half of it is used.
        for part in 0..4 {
            let mut lines = String::new();
            for n in part * 12..(part + 1) * 12 {
                writeln!(lines, "ada {n:05} {}", "x".repeat(30_000)).unwrap();
            }
            stage.people[0].run_with(&["send", "lobby"], &lines).exits(0);
        }
        assert_eq!(stage.disk.hits(deed), 1, "{}", stage.host.log());
        assert!(stage.host.data().join("record/00000002.log").exists());
        stage.acks(&["send", "--json", "lobby", "ada 00048 last"], 0);
        keeps_every_ack(&stage.life(deed));
    }
}
