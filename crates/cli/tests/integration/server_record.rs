//! A server refuses to start when a part of its data is lost, foreign or damaged, and changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::common::data_dir::{full, move_away, serve};
use crate::common::*;
use rusqlite::Connection;
use rustix::process::Signal;
use tempfile::TempDir;

/// Everything below a directory, except files that each start may change.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let kind = fs::symlink_metadata(&path).unwrap();
            let changes = ["server.log", "record.lock"];
            if changes.iter().any(|start| name.starts_with(start)) || name.ends_with("-shm") {
                continue;
            }
            if kind.is_dir() {
                dirs.push(path);
            } else {
                let content =
                    if kind.is_file() { fs::read(&path).unwrap() } else { b"link".into() };
                all.insert(path.strip_prefix(dir).unwrap().to_owned(), content);
            }
        }
    }
    all
}

/// Asserts that the server refuses to start with these words, and changes nothing.
#[track_caller]
fn refuses(data: &Path, words: &[&str]) -> Ran {
    let before = tree(data);
    let ran = serve(data, &[]).ended(LONG).exits(2);
    for words in words {
        assert!(ran.err.contains(words), "{words:?}: {ran:?}");
    }
    assert_eq!(ran.err.matches("twinlock: ").count(), 1, "{ran:?}");
    assert_eq!(ran.err.lines().filter(|line| line.contains("not started")).count(), 0, "{ran:?}");
    let after = tree(data);
    let changed = |path: &&PathBuf| before.get(*path) != after.get(*path);
    let changed: Vec<_> = before.keys().chain(after.keys()).filter(changed).collect();
    assert!(changed.is_empty(), "something was changed: {changed:?}");
    ran
}

#[test]
fn start__lost_record_is_refused_without_changes() {
    for kill in [false, true] {
        let (mut host, ada) = full(kill);
        let record = host.data().join("record");
        let kept = move_away(&host, "record");
        let words = ["record is missing or empty", "shows that there was a record", "backup"];
        refuses(&host.data(), &words);
        fs::create_dir(&record).unwrap();
        refuses(&host.data(), &words);
        // The same if another part is lost as well.
        for also in ["heads", "files", "identity", "record.db"] {
            move_away(&host, also);
            refuses(&host.data(), &["record is missing or empty"]);
            fs::rename(host.root().join("kept").join(also), host.data().join(also)).unwrap();
        }
        fs::remove_dir(&record).unwrap();
        fs::rename(&kept, &record).unwrap();
        // One of its files.
        let marker = move_away(&host, "record/marker");
        refuses(
            &host.data(),
            &["record/marker: it is missing", "there are segments", "one backup"],
        );
        fs::rename(marker, record.join("marker")).unwrap();
        let segment = move_away(&host, "record/00000001.log");
        refuses(&host.data(), &["00000001.log", "missing", "backup"]);
        fs::rename(segment, record.join("00000001.log")).unwrap();
        host.restart();
        let read = ada.reads("lobby");
        assert_eq!(read.len(), 3, "{read:?}");
        let got = host.root().join("got.txt");
        ada.run(&["get", "lobby", "2", "-o", got.to_str().unwrap()]).exits(0);
        assert_eq!(fs::read_to_string(got).unwrap(), "content of a file");
    }
}

/// Replaces a directory by a copy of another one.
fn put_back(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy_dir(from, to);
}

#[test]
fn start__files_of_another_record_or_time_are_refused() {
    let (mut host, ada) = full(false);
    let (record, kept) = (host.data().join("record"), TempDir::new().unwrap());
    let [first, second] = ["first", "second"].map(|name| kept.path().join(name));
    copy_dir(&record, &first);
    host.restart();
    ada.run_with(&["send", "lobby"], "three\nfour\n").exits(0);
    let room = ["room", "create", "ops"];
    ada.run(&room).exits(0);
    host.terminate().exits(0);
    copy_dir(&record, &second);
    // Accounts that are newer than the log, and those of another server.
    let words = ["people.db", "another record, or to another time", "nothing was changed"];
    put_back(&first, &record);
    fs::copy(second.join("people.db"), record.join("people.db")).unwrap();
    refuses(&host.data(), &words);
    let (other, _) = full(false);
    put_back(&second, &record);
    fs::copy(other.data().join("record/people.db"), record.join("people.db")).unwrap();
    refuses(&host.data(), &words);
    // A segment of another server, and one with other content.
    put_back(&second, &record);
    let segment = record.join("00000001.log");
    fs::copy(other.data().join("record/00000001.log"), &segment).unwrap();
    refuses(&host.data(), &["00000001.log", "another record", "nothing was changed"]);
    fs::write(&segment, "not a segment ".repeat(1000)).unwrap();
    refuses(&host.data(), &["00000001.log", "does not begin with the header"]);
    // Older accounts are brought up to date.
    put_back(&second, &record);
    fs::copy(first.join("people.db"), record.join("people.db")).unwrap();
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 5);
    ada.run(&["send", "ops", "the room is there"]).exits(0);
}

#[test]
fn start__database_without_record_is_refused() {
    let (mut host, ada) = full(false);
    let (record, old) = (host.data().join("record"), host.data().join("record.db"));
    let kept = ["record", "record.db"].map(|part| move_away(&host, part));
    for sql in ["CREATE TABLE a (b); DROP TABLE a", "CREATE TABLE notes (text)"] {
        for user_version in [0, 3] {
            let other = Connection::open(&old).unwrap();
            other.execute_batch(sql).unwrap();
            other.pragma_update(None, "user_version", user_version).unwrap();
            drop(other);
            fs::set_permissions(&old, fs::Permissions::from_mode(0o600)).unwrap();
            refuses(&host.data(), &["record.db", "nothing was changed"]);
            fs::remove_file(&old).unwrap();
        }
    }
    fs::write(&old, "not a database ".repeat(1000)).unwrap();
    refuses(&host.data(), &["record.db", "it is not a database"]);
    for (from, to) in kept.iter().zip([&record, &old]) {
        fs::rename(from, to).unwrap();
    }
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 3);
}

#[test]
fn start__lost_or_foreign_identity_is_refused() {
    let (mut host, ada) = full(false);
    for (part, words) in [
        ("identity", "opaque-setup is missing"),
        ("identity/opaque-setup", "opaque-setup is missing"),
        ("identity/tls-key.pem", "tls-key.pem is missing"),
    ] {
        let kept = move_away(&host, part);
        refuses(&host.data(), &[words, "backup"]);
        fs::rename(kept, host.data().join(part)).unwrap();
    }
    // Key and certificate both: clients that pin the key would refuse another.
    let cert = move_away(&host, "identity/tls-cert.pem");
    let key = move_away(&host, "identity/tls-key.pem");
    refuses(&host.data(), &["tls-key.pem is missing", "tls-pin", "heads"]);
    fs::rename(key, host.data().join("identity/tls-key.pem")).unwrap();
    // A certificate alone is created again from the key.
    host.restart();
    ada.run(&["send", "lobby", "three"]).exits(0);
    drop((cert, host.terminate().exits(0)));
    // The identity of another server.
    let other = tempfile::tempdir().unwrap();
    let running = serve(&other.path().join("data"), &[]);
    running.wait_lines(1);
    running.signal(Signal::TERM);
    running.ended(LONG).exits(0);
    let kept = move_away(&host, "identity");
    let put = std::process::Command::new("cp")
        .arg("-a")
        .args([other.path().join("data/identity"), host.data().join("identity")])
        .status();
    assert!(put.unwrap().success());
    refuses(&host.data(), &["belongs to a server with another key"]);
    fs::remove_dir_all(host.data().join("identity")).unwrap();
    fs::rename(kept, host.data().join("identity")).unwrap();
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 4);
}

#[test]
fn start__unmounted_files_directory_is_refused() {
    let (mut host, ada) = full(false);
    let kept = move_away(&host, "files");
    refuses(&host.data(), &["/files is missing or empty", "Mount it"]);
    fs::create_dir(host.data().join("files")).unwrap();
    refuses(&host.data(), &["/files is missing or empty"]);
    // The documented remedy lets it start, and the log counts the missing content.
    fs::create_dir(host.data().join("files/partial")).unwrap();
    host.restart();
    host.running().wait_err("content of entries is missing");
    assert_eq!(ada.reads("lobby").len(), 3);
    host.terminate().exits(0);
    fs::remove_dir_all(host.data().join("files")).unwrap();
    fs::rename(kept, host.data().join("files")).unwrap();
    host.restart();
}

#[test]
fn start__older_record_is_warned_and_keeps_files() {
    let (mut host, ada) = full(false);
    let (record, kept) = (host.data().join("record"), host.root().join("record.old"));
    copy_dir(&record, &kept);
    host.restart();
    let file = host.root().join("newer.txt");
    fs::write(&file, "newer content").unwrap();
    ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    ada.run(&["send", "lobby", "newest"]).exits(0);
    host.terminate().exits(0);
    let newer = move_away(&host, "record");
    copy_dir(&kept, &record);
    let files = tree(&host.data().join("files"));
    assert_eq!(files.len(), 2);
    // Each start warns until the newer record is restored, and deletes no content.
    for _ in 0..2 {
        host.restart();
        host.running().wait_err("THE RECORD IS OLDER THAN IT WAS");
        let err = host.running().err();
        assert!(
            err.contains("entries=2") && err.contains("n=5") && err.contains("head=3"),
            "{err}"
        );
        host.terminate().exits(0);
        assert_eq!(tree(&host.data().join("files")), files);
    }
    fs::remove_dir_all(&record).unwrap();
    fs::rename(&newer, &record).unwrap();
    host.restart();
    assert!(host.log().contains("again has all entries"));
    assert!(!host.running().err().contains("OLDER"));
    assert!(!host.data().join("heads.missing").exists());
    assert_eq!(ada.reads("lobby").len(), 5);
}

#[test]
fn start__first_start_file_allows_new_record() {
    let (mut host, _ada) = full(false);
    for part in ["record", "record.db", "files", "heads"] {
        move_away(&host, part);
    }
    fs::remove_file(host.data().join("owner-invite")).ok();
    refuses(&host.data(), &["create an empty file `first-start` there"]);
    fs::write(host.data().join("first-start"), "").unwrap();
    host.restart();
    assert!(!host.data().join("first-start").exists());
    host.stranger().joins("eve", &host.owner_link());
    // A missing record counts as a loss again.
    host.terminate().exits(0);
    fs::remove_dir_all(host.data().join("record")).unwrap();
    refuses(&host.data(), &["record is missing or empty"]);
}
