//! An ack is a promise: kills at any moment, and records that were changed behind the server's
//! back.
//!
//! `TWINLOCK_KILLS=200` sets the number of kills.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::data_dir::logged;
use crate::common::*;
use serde_json::Value;
use twinlock_testing::record_files::{
    BODY_AT, KIND_AT, LINK_AT, MESSAGE_ID_AT, SENDER_AT, TIME_AT,
};

/// Kills between two checks of the record.
const LOOK: usize = 10;
/// One kill in this many may come before any client has reconnected; the others wait for an ack.
const EARLY: usize = 16;
const WRITERS: [&str; 3] = ["ada", "bob", "eve"];

/// A `send` that receives numbered lines until it is stopped.
struct Writer {
    person: Person,
    sending: Running,
    feeding: JoinHandle<usize>,
}

impl Writer {
    fn start(person: Person, name: &'static str, target: &str, stop: &Arc<AtomicBool>) -> Self {
        let mut sending = person.start(&["send", "--json", target]);
        let (stdin, stop) = (sending.stdin.take().unwrap(), Arc::clone(stop));
        let feeding = std::thread::spawn(move || feed(stdin, name, &stop));
        Self { person, sending, feeding }
    }
}

/// Feeds a hundred lines a second and occasional bursts; returns their number.
fn feed(mut stdin: ChildStdin, name: &str, stop: &AtomicBool) -> usize {
    let mut n = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        let burst = if n % 100 < 2 { 60 } else { 2 };
        for _ in 0..burst {
            writeln!(stdin, "{name} {n:05}").unwrap();
            n += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    n
}

#[test]
fn kill__under_load_keeps_every_ack_once_and_in_order() {
    let mut rng = Rng::from_env();
    let mut host = Host::start();
    let ada = host.owner();
    let people = [ada.clone(), host.member(&ada, "bob"), host.member(&ada, "eve")];
    people[0].run(&["room", "create", "ops"]).exits(0);
    people[1].run(&["room", "join", "ops"]).exits(0);
    let targets = ["lobby", "ops", "lobby"];
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..3)
        .map(|i| Writer::start(people[i].clone(), WRITERS[i], targets[i], &stop))
        .collect::<Vec<_>>();
    let began = Instant::now();
    let kills = scale("TWINLOCK_KILLS", 20);
    let (mut seen, mut loaded) = (0, 0);
    for round in 1..=kills {
        // The previous server is dead, so this one acknowledges everything from now on.
        let before = writers.iter().map(|writer| acks(&writer.sending)).collect::<Vec<_>>();
        if round % EARLY != 0 {
            // Wait for each writer in turn.
            let turn = round % writers.len();
            writers[turn].sending.wait_lines(before[turn] + 1);
        }
        std::thread::sleep(Duration::from_millis(rng.within(0, 600)));
        // The writers had these acks before the server's end, so the entries must exist after it.
        let acked = writers.iter().map(|writer| whole_lines(&writer.sending.out()));
        let acked = acked.collect::<Vec<_>>();
        let of_this = acked.iter().zip(&before).map(|(now, before)| now.lines().count() - before);
        loaded += usize::from(of_this.sum::<usize>() > 0);
        host.kill();
        host.restart();
        if round % LOOK == 0 || round == kills {
            seen = 0;
            let records = ["lobby", "ops"].map(|target| (target, people[0].reads(target)));
            for (target, record) in &records {
                let acks = acked.iter().flat_map(|acks| json_lines(acks));
                seen += are_kept(acks.filter(|ack| ack["conversation"] == **target), record);
            }
            people[0].run(&["audit", "verify"]).exits(0);
        }
    }
    assert!(seen > kills, "the acks are looked at: {seen}");
    assert!(loaded * 10 >= kills * 9, "{loaded} of {kills} kills came after acks by that server");
    stop.store(true, Ordering::Relaxed);
    let mut acks: Vec<Value> = Vec::new();
    let mut sent = BTreeMap::new();
    for (Writer { person, sending, feeding }, name) in writers.into_iter().zip(WRITERS) {
        sent.insert(name, feeding.join().unwrap());
        let ran = sending.ended(LONG).exits(0);
        assert_eq!(ran.json().len(), sent[name], "{name}");
        acks.extend(ran.json());
        person.run(&["audit", "verify"]).exits(0);
    }
    let took = began.elapsed();
    eprintln!(
        "crash: {kills} kills, {loaded} of them after acks by that server, {} acks, {sent:?} lines, \
         {took:.1?}",
        acks.len()
    );

    let mut ids = HashSet::new();
    for (target, names) in [("lobby", &["ada", "eve"][..]), ("ops", &["bob"])] {
        let record = people[0].reads(target);
        for name in names {
            let of = record.iter().filter(|entry| entry["from"] == **name);
            let said = of.map(|entry| entry["text"].as_str().unwrap()).collect::<Vec<_>>();
            let wanted = (0..sent[name]).map(|n| format!("{name} {n:05}")).collect::<Vec<_>>();
            assert_eq!(said, wanted, "{name}");
        }
        // The only other entries are the server's own notices, such as joins.
        let said = record.iter().filter(|entry| entry["kind"] == "text").count();
        assert_eq!(said, names.iter().map(|name| sent[name]).sum::<usize>());
        assert!(record.iter().all(|entry| entry["kind"] == "text" || entry["from"].is_null()));
        assert!(record.iter().all(|entry| ids.insert(entry["id"].clone())), "an id twice");
        // Everything that was ever acknowledged is in the record now.
        let of = acks.iter().filter(|ack| ack["conversation"] == target).cloned();
        assert_eq!(are_kept(of, &record), said);
    }
}

/// The number of acks printed so far.
fn acks(sending: &Running) -> usize {
    sending.out().matches('\n').count()
}

/// The output up to the last line end.
fn whole_lines(out: &str) -> String {
    out[..out.rfind('\n').map_or(0, |at| at + 1)].to_owned()
}

/// Asserts that each ack matches the entry at its position; returns the number of acks.
fn are_kept(acks: impl Iterator<Item = Value>, record: &[Value]) -> usize {
    acks.map(|ack| {
        let n = usize::try_from(ack["n"].as_u64().unwrap()).unwrap();
        assert!(n <= record.len(), "{ack} is missing: {} entries", record.len());
        for field in ["n", "time", "id", "link"] {
            assert_eq!(ack[field], record[n - 1][field], "{field} of {ack}");
        }
    })
    .count()
}

// ---- records changed behind the server's back

/// A server that was shut down, with a record of twelve entries in `lobby`; `ada` has read all
/// of them, `bob` none.
struct Ended {
    /// The data directory, and copies of it with fewer entries.
    root: tempfile::TempDir,
    entries: Vec<Value>,
    ada: Person,
    bob: Person,
}

const ENTRIES: u64 = 12;
/// A byte of each field of an entry of ada in the log.
const FIELDS: [(&str, usize); 8] = [
    ("time", TIME_AT),
    ("message id", MESSAGE_ID_AT),
    ("kind", KIND_AT),
    ("commit", LINK_AT - 1),
    ("link", LINK_AT),
    ("sender", SENDER_AT),
    ("salt", BODY_AT - 1),
    ("body", BODY_AT),
];

impl Ended {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // The directory outlives the server.
        let mut host = Host::start_in(tempfile::tempdir_in(&root).unwrap(), &[]);
        let ada = host.owner();
        let bob = host.member(&ada, "bob");
        let mut last = 0;
        for (name, end) in [("first", 0), ("earlier", 4), ("later", ENTRIES - 1), ("data", ENTRIES)]
        {
            let lines = (last + 1..=end).map(|n| format!("entry {n}\n")).collect::<String>();
            ada.run_with(&["send", "lobby"], &lines).exits(0);
            ada.run(&["audit", "verify"]).exits(0);
            last = end;
            host.terminate().exits(0);
            copy_dir(&host.data(), &root.path().join(name));
            host.restart();
        }
        let entries = ada.reads("lobby");
        let [ada, bob] = [ada, bob].map(|person| {
            let home = root.path().join(person.home.file_name().unwrap());
            copy_dir(&person.home, &home);
            Person { home, address: None }
        });
        Self { root, entries, ada, bob }
    }

    /// Serves a copy whose data directory `change` has modified; the two people's homes are copies as well.
    fn changed(&self, change: impl FnOnce(&Path)) -> (Host, Person, Person) {
        let root = tempfile::tempdir().unwrap();
        copy_dir(self.root.path(), root.path());
        change(&root.path().join("data"));
        let host = Host::start_in(root, &[]);
        let [ada, bob] = [&self.ada, &self.bob].map(|person| Person {
            home: host.root().join(person.home.file_name().unwrap()),
            address: Some(host.address()),
        });
        (host, ada, bob)
    }
}

/// The verdict of `audit verify` on the lobby: the exit code, and the entry that it names.
fn verdict(person: &Person) -> (Option<i32>, Option<u64>) {
    let ran = person.run(&["audit", "verify", "--json"]);
    let lobby = ran.json().into_iter().find(|one| one["conversation"] == "lobby");
    let lobby = lobby.unwrap_or_else(|| panic!("{ran:?}"));
    assert_eq!(lobby["ok"], lobby["broken_at"].is_null(), "{lobby}");
    (ran.code, lobby["broken_at"].as_u64())
}

#[test]
fn audit__changed_entry_is_found_with_and_without_receipts() {
    let ended = Ended::new();
    let (_host, ada, bob) = ended.changed(|_| ());
    assert_eq!(verdict(&ada), (Some(0), None));
    assert_eq!(verdict(&bob), (Some(0), None));

    for (field, at) in FIELDS {
        let change = |data: &Path| logged(data, &ended.entries[6]).change(|entry| entry[at] ^= 1);
        let (_host, ada, bob) = ended.changed(change);
        // Ada holds receipts; bob has never read the record, but its links do not match.
        assert_eq!(verdict(&ada), (Some(8), Some(7)), "{field}");
        assert_eq!(verdict(&bob), (Some(8), Some(7)), "{field}");
        ada.run(&["history", "lobby"]).exits(8);
    }
}

#[test]
fn audit__truncated_record_is_exposed_by_receipts() {
    let ended = Ended::new();
    for (left, earlier) in [(ENTRIES - 1, "later"), (4, "earlier"), (0, "first")] {
        let (_host, ada, bob) = ended.changed(|data| {
            fs::remove_dir_all(data).unwrap();
            copy_dir(&ended.root.path().join(earlier), data);
        });
        assert_eq!(verdict(&ada), (Some(8), Some(left + 1)), "{left} left");
        // Bob knew nothing of the record, and a shorter record is consistent.
        assert_eq!(verdict(&bob), (Some(0), None), "{left} left");
        ada.run(&["history", "lobby"]).exits(8);
    }
}

#[test]
fn audit__rewritten_record_is_exposed_by_one_receipt() {
    // The strongest operator: another server with the same identity and without ada's entries.
    let root = tempfile::tempdir().unwrap();
    let mut host = Host::start_in(root, &[]);
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    host.terminate().exits(0);
    let before = tempfile::tempdir().unwrap();
    copy_dir(&host.data(), before.path());
    host.restart();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    host.terminate().exits(0);
    std::fs::remove_dir_all(host.data()).unwrap();
    copy_dir(before.path(), &host.data());
    host.restart();
    bob.run_with(&["send", "lobby"], "one\ntwo\nthree\nfour\n").exits(0);
    assert_eq!(verdict(&bob), (Some(0), None));
    // Ada's receipt is of the third entry, so she detects the difference there at the latest.
    let (code, at) = verdict(&ada);
    assert_eq!(code, Some(8));
    assert!(at.is_some_and(|at| at <= 3), "{at:?}");
}
