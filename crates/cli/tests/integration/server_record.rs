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
            if name.starts_with("server.log") || name == "record.db.lock" || name == "record.db-shm"
            {
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
    assert!(tree(data) == before, "something was changed");
    ran
}

#[test]
fn start__lost_record_is_refused_without_changes() {
    for kill in [false, true] {
        let (mut host, ada) = full(kill);
        let record = host.data().join("record.db");
        let kept = move_away(&host, "record.db");
        let words = ["record.db is missing or empty", "shows that there was a record", "backup"];
        refuses(&host.data(), &words);
        fs::write(&record, "").unwrap();
        refuses(&host.data(), &words);
        // The same if another part is lost as well.
        for also in ["heads", "files", "identity"] {
            move_away(&host, also);
            refuses(&host.data(), &["record.db is missing or empty"]);
            fs::rename(host.root().join("kept").join(also), host.data().join(also)).unwrap();
        }
        fs::rename(&kept, &record).unwrap();
        host.restart();
        let read = ada.reads("lobby");
        assert_eq!(read.len(), 3, "{read:?}");
        let got = host.root().join("got.txt");
        ada.run(&["get", "lobby", "2", "-o", got.to_str().unwrap()]).exits(0);
        assert_eq!(fs::read_to_string(got).unwrap(), "content of a file");
    }
}

#[test]
fn start__mismatched_wal_is_refused() {
    let (mut host, ada) = full(false);
    let (record, wal) = (host.data().join("record.db"), host.data().join("record.db-wal"));
    let kept = TempDir::new().unwrap();
    let keep = |name: &str, file: &Path| fs::copy(file, kept.path().join(name)).map(drop).unwrap();
    let put_back =
        |name: &str, file: &Path| fs::copy(kept.path().join(name), file).map(drop).unwrap();
    let texts =
        |n: usize| (0..n).map(|n| format!("{n} {}\n", "x".repeat(2000))).collect::<String>();
    keep("first", &record);
    host.restart();
    ada.run_with(&["send", "lobby"], &texts(200)).exits(0);
    host.terminate().exits(0);
    host.restart();
    ada.run_with(&["send", "lobby"], &texts(20)).exits(0);
    host.kill();
    keep("second", &record);
    keep("wal", &wal);
    // The WAL next to an older record.
    put_back("first", &record);
    let words = ["record.db-wal do not belong together", "nothing was changed"];
    refuses(&host.data(), &words);
    put_back("second", &record);
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 223);
    // The WAL next to a newer record, which was closed without one.
    ada.run_with(&["send", "lobby"], &texts(200)).exits(0);
    host.terminate().exits(0);
    assert!(!wal.exists());
    keep("third", &record);
    put_back("wal", &wal);
    refuses(&host.data(), &words);
    // A server that is killed before its first write leaves an empty WAL.
    fs::remove_file(&wal).unwrap();
    host.restart();
    host.kill();
    host.restart();
    assert!(!host.log().contains("its WAL is missing"), "{}", host.log());
    host.kill();
    // An older record with its own WAL starts with a warning, as one without a WAL does.
    put_back("second", &record);
    put_back("wal", &wal);
    host.restart();
    assert!(host.log().contains("OLDER THAN IT WAS"), "{}", host.log());
    host.terminate().exits(0);
    put_back("third", &record);
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 423);
    host.terminate().exits(0);
    // The WAL of another server.
    let (other, _) = full(true);
    fs::copy(other.data().join("record.db-wal"), &wal).unwrap();
    refuses(&host.data(), &words);
    fs::remove_file(&wal).unwrap();
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 423);
}

#[test]
fn start__database_without_record_is_refused() {
    let (mut host, ada) = full(false);
    let record = host.data().join("record.db");
    let kept = move_away(&host, "record.db");
    for sql in ["CREATE TABLE a (b); DROP TABLE a", "CREATE TABLE notes (text)"] {
        for user_version in [0, 3] {
            let other = Connection::open(&record).unwrap();
            other.execute_batch(sql).unwrap();
            other.pragma_update(None, "user_version", user_version).unwrap();
            drop(other);
            fs::set_permissions(&record, fs::Permissions::from_mode(0o600)).unwrap();
            refuses(&host.data(), &["is a database without the record of this server"]);
            fs::remove_file(&record).unwrap();
        }
    }
    fs::rename(&kept, &record).unwrap();
    host.restart();
    assert_eq!(ada.reads("lobby").len(), 3);
}

#[test]
fn start__damaged_record_beside_wal_is_refused() {
    let (mut host, ada) = full(true);
    assert!(fs::metadata(host.data().join("record.db-wal")).unwrap().len() > 0);
    let kept = move_away(&host, "record.db");
    fs::write(host.data().join("record.db"), "not a database ".repeat(1000)).unwrap();
    refuses(&host.data(), &["record.db is not a database", "record.db-wal"]);
    fs::rename(&kept, host.data().join("record.db")).unwrap();
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
    let kept = host.root().join("record.old");
    fs::copy(host.data().join("record.db"), &kept).unwrap();
    host.restart();
    let file = host.root().join("newer.txt");
    fs::write(&file, "newer content").unwrap();
    ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    ada.run(&["send", "lobby", "newest"]).exits(0);
    host.terminate().exits(0);
    let newer = move_away(&host, "record.db");
    fs::copy(&kept, host.data().join("record.db")).unwrap();
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
    fs::rename(&newer, host.data().join("record.db")).unwrap();
    host.restart();
    assert!(host.log().contains("again has all entries"));
    assert!(!host.running().err().contains("OLDER"));
    assert!(!host.data().join("heads.missing").exists());
    assert_eq!(ada.reads("lobby").len(), 5);
}

#[test]
fn start__first_start_file_allows_new_record() {
    let (mut host, _ada) = full(false);
    for part in ["record.db", "files", "heads"] {
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
    move_away(&host, "record.db");
    refuses(&host.data(), &["record.db is missing or empty"]);
}
