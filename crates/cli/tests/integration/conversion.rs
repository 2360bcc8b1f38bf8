//! A server of version 0.1 is updated: its record becomes a log, and its users notice nothing.

use std::fs;
use std::process::Command;

use crate::common::data_dir::serve;
use crate::common::*;
use rusqlite::Connection;
use rustix::process::Signal;
use tempfile::TempDir;

/// Unpacks the fixture: the data directory of a killed server of version 0.1, and two users' homes.
fn before() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let archive = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data-0.1.tar.gz");
    let done = Command::new("tar").args(["-xzf", archive, "-C"]).arg(root.path()).status();
    assert!(done.unwrap().success());
    root
}

/// What a command of version 0.1 printed.
fn answer(host: &Host, name: &str) -> String {
    fs::read_to_string(host.root().join("answers").join(name)).unwrap()
}

/// Asserts that both users see what they saw before.
fn sees_the_same(host: &Host, ada: &Person, bob: &Person) {
    for (person, letter) in [(ada, "A"), (bob, "B")] {
        let history = |room| person.run(&["history", room, "--json"]).exits(0).out;
        for room in ["lobby", "ops"] {
            assert_eq!(history(room), answer(host, &format!("{letter}-history-{room}")));
        }
        let rooms = person.run(&["rooms", "--json"]).exits(0).out;
        assert_eq!(rooms, answer(host, &format!("{letter}-rooms")));
        // Every link, and the receipts that the client has kept.
        person.run(&["audit", "verify"]).exits(0);
    }
    let direct = ada.run(&["history", "@bob", "--json"]).exits(0).out;
    assert_eq!(direct, answer(host, "A-history-dm"));
    assert_eq!(ada.run(&["classic", "list", "--json"]).exits(0).out, answer(host, "A-classic"));
}

#[test]
fn conversion__users_of_version_0_1_notice_nothing() {
    let mut host = Host::start_in(before(), &[]);
    host.running().wait_err("the record is converted");
    let [ada, bob] = ["ada", "bob"]
        .map(|name| Person { home: host.root().join(name), address: Some(host.address()) });
    sees_the_same(&host, &ada, &bob);
    assert!(host.data().join("record.db.before-log").exists());
    // A second start converts nothing.
    host.terminate().exits(0);
    host.restart();
    assert!(!host.running().err().contains("convert"), "{}", host.running().err());
    sees_the_same(&host, &ada, &bob);
    // Files, a new entry, the password.
    for (person, target, file, size) in
        [(&ada, ["ops", "15"], "f.txt", 17), (&bob, ["lobby", "31"], "z.bin", 70_000)]
    {
        let to = host.root().join(file);
        person.run(&["get", target[0], target[1], "-o", to.to_str().unwrap()]).exits(0);
        assert_eq!(fs::metadata(to).unwrap().len(), size);
    }
    bob.run(&["send", "ops", "after the update"]).exits(0);
    assert_eq!(ada.reads("ops").len(), 16);
    let found = ada.run(&["history", "lobby", "--search", "line 7", "--json"]).exits(0);
    assert_eq!(found.json().len(), 1, "{found:?}");
    let password = host.root().join("password");
    fs::write(&password, "correct horse battery\n").unwrap();
    let phone = host.stranger();
    let server = format!("bob@{}", host.address());
    let ca = host.data().join("identity/tls-cert.pem");
    let login = ["login", &server, "--password-file", password.to_str().unwrap()];
    let login = [&login[..], &["--ca", ca.to_str().unwrap()]].concat();
    phone.run(&login).exits(0);
    assert_eq!(phone.reads("ops").len(), 16);
}

#[test]
fn conversion__damaged_record_is_refused_unchanged() {
    let root = before();
    let data = root.path().join("data");
    let database = data.join("record.db");
    let change = |sql| {
        let record = Connection::open(&database).unwrap();
        assert_eq!(record.execute(sql, []).unwrap(), 1);
    };
    change("UPDATE entries SET time_ms = time_ms + 1 WHERE conversation = 1 AND n = 17");
    let damaged = fs::read(&database).unwrap();
    let ran = serve(&data, &[]).ended(LONG).exits(2);
    for words in ["entry 17 of conversation 1", "nothing was changed"] {
        assert!(ran.err.contains(words), "{ran:?}");
    }
    assert!(fs::read(&database).unwrap() == damaged);
    assert!(!data.join("record").exists() && !data.join("record.new").exists());
    // The whole record is converted then.
    change("UPDATE entries SET time_ms = time_ms - 1 WHERE conversation = 1 AND n = 17");
    let running = serve(&data, &[]);
    running.wait_err("the record is converted");
    running.wait_lines(1);
    running.signal(Signal::TERM);
    running.ended(LONG).exits(0);
}
