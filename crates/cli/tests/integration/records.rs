//! `records check` on the record of a real server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::common::*;

/// All files of a directory, with times and contents.
fn files(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => {
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                found.insert(path.clone(), (time, fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// The server's record as a whole, after it was killed or has ended in order.
fn checked(killed: bool) {
    let mut host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let lines: String = (0..50).map(|n| format!("line {n}\n")).collect();
    ada.run_with(&["send", "lobby"], &lines).exits(0);
    bob.run(&["send", "@ada", "a changed word"]).exits(0);
    ada.run(&["room", "create", "ops", "--topic", "work"]).exits(0);
    ada.run_with(&["put", "-", "--name", "file", "ops"], "content").exits(0);
    let data = host.data();
    let stranger = host.stranger();
    let check = |args: &[&str], code| {
        stranger.run(&[&["records", "check", data.to_str().unwrap()], args].concat()).exits(code)
    };
    let in_use = check(&[], 2);
    assert!(in_use.err.contains("in use"), "{in_use:?}");
    if killed {
        host.kill();
    } else {
        host.terminate().exits(0);
    }
    let before = files(&data);
    let said = check(&[], 0);
    assert!(said.out.contains("1 segment, "), "{said:?}");
    assert!(said.out.contains("(0 erased), 3 conversations, 2 accounts, "), "{said:?}");
    assert!(said.out.trim_end().ends_with(": ok"), "{said:?}");
    let json = check(&["--json"], 0).json().remove(0);
    assert_eq!((&json["ok"], &json["more"]), (&Value::Bool(true), &Value::from(0)), "{json:#}");
    assert!(json["entries"].as_u64() >= Some(52), "{json:#}");
    assert_eq!(json["findings"].as_array().map(Vec::len), Some(0), "{json:#}");
    assert!(files(&data) == before, "files have changed");

    // What an earlier start found missing, and a damaged file. One that was killed at once knew nothing.
    if !killed {
        let heads = fs::read_to_string(data.join("heads")).unwrap();
        let entry = heads.lines().find(|line| line.starts_with("entry ")).unwrap();
        let words: Vec<_> = entry.split(' ').collect();
        let [_, seq, conversation, _, time, link] = words[..] else { panic!("{entry}") };
        let later = format!("entry {seq} {conversation} 9999 {time} {link}");
        fs::write(data.join("heads.missing"), heads.replace(entry, &later)).unwrap();
        assert!(check(&[], 8).out.contains("was acknowledged"));
        fs::write(data.join("heads.missing"), "damaged").unwrap();
        assert!(check(&[], 0).out.contains("heads.missing is damaged"));
        fs::remove_file(data.join("heads.missing")).unwrap();
    }

    let segment = data.join("record/00000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|part| part == b"changed").unwrap();
    bytes[at] = b'C';
    fs::write(&segment, bytes).unwrap();
    let damaged = check(&["--json"], 8);
    assert!(damaged.err.contains("damaged"), "{damaged:?}");
    let json = damaged.json().remove(0);
    let finding = &json["findings"][0];
    assert_eq!((&json["ok"], &finding["n"]), (&Value::Bool(false), &Value::from(1)), "{json:#}");
    assert!(finding["file"].as_str().unwrap().ends_with("00000001.log"), "{json:#}");
    assert!(finding["offset"].as_u64().unwrap() < at as u64, "{json:#}");
    let said = check(&[], 8);
    assert!(said.out.contains("entry 1 of conversation"), "{said:?}");
    assert!(said.out.contains("DAMAGED"), "{said:?}");
}

#[test]
fn records_check__server_that_ended_in_order() {
    checked(false);
}

#[test]
fn records_check__server_that_was_killed() {
    checked(true);
}

#[test]
fn records_check__no_record_or_one_of_version_0_1() {
    let mut host = Host::start();
    host.owner();
    host.terminate().exits(0);
    let (data, stranger) = (host.data(), host.stranger());
    let check = |dir: &Path| {
        let before = files(dir);
        let ran = stranger.run(&["records", "check", dir.to_str().unwrap()]).exits(2);
        assert!(files(dir) == before, "files have changed");
        ran
    };
    let setup = data.join("identity/opaque-setup");
    fs::rename(&setup, data.join("aside")).unwrap();
    assert!(check(&data).err.contains("opaque-setup is missing"));
    fs::rename(data.join("aside"), &setup).unwrap();
    fs::remove_dir_all(data.join("record")).unwrap();
    assert!(check(&data).err.contains("is missing"));
    fs::remove_file(data.join("record.db")).unwrap();
    assert!(check(&data).err.contains("has no record"));
    let old =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../store-embedded/tests/fixtures/old-record.db");
    fs::copy(old, data.join("record.db")).unwrap();
    let old = check(&data);
    assert!(old.err.contains("converts it") && old.out.is_empty(), "{old:?}");
}
