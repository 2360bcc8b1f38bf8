//! Uploads and downloads through the real binary: files arrive intact, and only at allowed paths.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::common::*;

fn write(path: &Path, content: &[u8]) -> String {
    fs::write(path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn numbers(upto: u64) -> Vec<String> {
    (1..=upto).map(|n| n.to_string()).collect()
}

#[test]
fn transfer__files_arrive_with_names_modes_and_times() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let from = host.root().join("from");
    let deep = from.join("deep/er");
    fs::create_dir_all(&deep).unwrap();
    let sizes =
        [0, 1, 2, 255, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1 << 20, 3_456_789];
    for (at, size) in sizes.into_iter().enumerate() {
        let dir = if at % 2 == 0 { &from } else { &deep };
        let path = dir.join(format!("f-{size}"));
        write(&path, &bytes(size, at as u64));
        let mode = [0o644, 0o600, 0o755, 0o666][at % 4];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123 + at as u64);
        fs::File::open(&path).unwrap().set_modified(time).unwrap();
    }
    for name in ["レポート.txt", "דוח.pdf", "with blank's & \"quotes\".md", "👍🏽"] {
        write(&from.join(name), name.as_bytes());
    }
    // Files that -r skips are reported, and the rest is sent.
    symlink("/etc/passwd", from.join("link")).unwrap();
    let sent = ada.run(&["put", "-r", from.to_str().unwrap(), "lobby", "--jobs", "4"]).exits(0);
    assert!(sent.err.contains("link is a symbolic link"), "{}", sent.err);
    let count = sizes.len() as u64 + 4;
    assert_eq!(sent.err.matches("sent ").count() as u64, count);

    let into = host.root().join("into");
    fs::create_dir(&into).unwrap();
    let mut get = vec!["get", "lobby", "-o", into.to_str().unwrap(), "--keep-mode"];
    let all = numbers(count);
    get.extend(all.iter().map(String::as_str));
    bob.run(&get).exits(0);
    assert_eq!(names(&into), ["from"]);
    for (at, size) in sizes.into_iter().enumerate() {
        let dir = into.join(if at % 2 == 0 { "from" } else { "from/deep/er" });
        let got = dir.join(format!("f-{size}"));
        assert!(fs::read(&got).unwrap() == bytes(size, at as u64), "{size}");
        let found = fs::metadata(&got).unwrap();
        let umask = 0o022;
        let mode = [0o644, 0o600, 0o755, 0o666][at % 4] & !umask;
        assert_eq!(found.mode() & 0o7777, mode, "{size}");
        let modified = found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(modified.as_millis(), 1_234_567_890_123 + at as u128);
    }
    assert_eq!(fs::read_to_string(into.join("from/👍🏽")).unwrap(), "👍🏽");
    // The record names them, and its links are valid.
    for entry in bob.reads("lobby") {
        let file = &entry["file"];
        let dir = into.join(file["dir"].as_str().unwrap());
        let got = fs::read(dir.join(file["name"].as_str().unwrap())).unwrap();
        assert_eq!(file["size"].as_u64().unwrap(), got.len() as u64);
        assert_eq!((entry["kind"].as_str(), entry["text"].is_null()), (Some("file"), true));
        assert_eq!(file["blake3"].as_str().unwrap().len(), 64);
    }
    for person in [&ada, &bob] {
        person.run(&["audit", "verify"]).exits(0);
    }
}

#[test]
fn transfer__stdin_to_stdout_is_byte_exact() {
    let host = Host::start();
    let ada = host.owner();
    for size in [0, 100_000, 2_000_001] {
        let content = bytes(size, 9);
        let mut putting = ada.start(&["put", "-", "--name", "all.tar", "--json", "@ada"]);
        putting.stdin.take().unwrap().write_all(&content).unwrap();
        let events = putting.ended(LONG).exits(0).json();
        let done = events.last().unwrap();
        assert_eq!(
            (done["event"].as_str(), done["file"]["size"].as_u64()),
            (Some("done"), Some(size as u64))
        );
        let mut command = ada.command(&["get", "@ada", &done["n"].to_string(), "-o", "-"]);
        let got = command.output().unwrap();
        assert!(got.status.success(), "{got:?}");
        assert!(got.stdout == content, "{size}");
    }
    let spool = ada.home.join("state/default/spool");
    assert_eq!(names(&spool), [""; 0], "what was sent is not kept");
    ada.run(&["put", "-", "lobby"]).exits(2);
    ada.run(&["put", "-", "-", "--name", "x", "lobby"]).exits(2);
    ada.run(&["put", "lobby"]).exits(2);
    ada.run(&["put", "/dev", "lobby"]).exits(2);
    ada.run(&["put", "/nowhere/at/all", "lobby"]).exits(2);
    assert_eq!(ada.reads("lobby").len(), 0);
}

#[test]
fn get__overwrite_needs_force_and_foreign_mode_is_dropped() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let source = host.root().join("tool");
    let path = write(&source, b"#!/bin/sh\necho boo\n");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o6755)).unwrap();
    ada.run(&["put", &path, "lobby"]).exits(0);
    let into = host.root().join("into");
    fs::create_dir(&into).unwrap();
    let tool = into.join("tool");
    let get = |person: &Person, more: &[&str]| {
        let mut args = vec!["get", "lobby", "1", "-o", into.to_str().unwrap()];
        args.extend(more);
        person.run(&args)
    };
    let mode = || fs::symlink_metadata(&tool).unwrap().mode() & 0o7777;
    get(&bob, &[]).exits(0);
    assert_eq!(mode(), 0o644);
    fs::write(&tool, "mine").unwrap();
    let refused = get(&bob, &[]).exits(2);
    assert!(
        refused.err.contains("exists already") && refused.err.contains("--force"),
        "{refused:?}"
    );
    assert_eq!(fs::read(&tool).unwrap(), b"mine");
    get(&bob, &["--force", "--keep-mode"]).exits(0);
    assert_eq!(mode(), 0o755, "executable, and neither set-uid nor set-gid");
    get(&ada, &["--force"]).exits(0);
    assert_eq!(mode(), 0o755, "it is her own");
    // A symbolic link at the final name counts as existing; --force replaces the link itself.
    let victim = host.root().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::remove_file(&tool).unwrap();
    symlink(&victim, &tool).unwrap();
    get(&bob, &[]).exits(2);
    get(&bob, &["--force"]).exits(0);
    assert!(!fs::symlink_metadata(&tool).unwrap().is_symlink());
    // A symbolic link at the part file is neither followed nor changed.
    fs::remove_file(&tool).unwrap();
    symlink(&victim, into.join(".tool.part")).unwrap();
    let refused = get(&bob, &[]).exits(2);
    assert!(refused.err.contains("symbolic link"), "{}", refused.err);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(names(&into), [".tool.part"], "nothing under the final name");
    fs::remove_file(into.join(".tool.part")).unwrap();
    get(&bob, &[]).exits(0);
    // Another destination, under a chosen name.
    let other = host.root().join("other.sh");
    bob.run(&["get", "lobby", "1", "-o", other.to_str().unwrap()]).exits(0);
    assert_eq!(fs::read(other).unwrap(), fs::read(&source).unwrap());
}

#[test]
fn transfer__hostile_names_are_refused_or_sanitized() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let path = write(&host.root().join("f"), b"content");
    let long = "x".repeat(255);
    let mut accepted = Vec::new();
    for name in [
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        ".ssh",
        "CON",
        "nul.txt",
        "a\u{1b}[2Jb",
        "two\nlines",
        "gpj.\u{202e}exe",
        "-rf",
        "trailing. ",
        "back\\slash",
        &long,
        &"é".repeat(128),
    ] {
        let ran = ada.run(&["put", &path, "lobby", &format!("--name={name}")]);
        match ran.code {
            Some(0) => accepted.push(name.to_owned()),
            Some(7) => assert!(ran.out.is_empty(), "{name:?}"),
            other => panic!("{name:?}: {other:?} {ran:?}"),
        }
    }
    for bad in ["../../x", "/etc/passwd", "..", "."] {
        assert!(!accepted.iter().any(|name| name == bad), "{bad:?} was taken");
    }
    assert!(accepted.contains(&long) && accepted.contains(&".ssh".to_owned()), "{accepted:?}");
    let into = host.root().join("deep/in/to");
    fs::create_dir_all(&into).unwrap();
    let mut get = vec!["get", "lobby", "-o", into.to_str().unwrap()];
    let all = numbers(accepted.len() as u64);
    get.extend(all.iter().map(String::as_str));
    let got = bob.run(&get).exits(0);
    let names = names(&into);
    assert_eq!(names.len(), accepted.len(), "{names:?}");
    for name in &names {
        assert!(!name.starts_with(['.', '-']) && !name.ends_with(['.', ' ']), "{name:?}");
        assert!(!name.chars().any(|c| c.is_control() || c == '\u{202e}'), "{name:?}");
        assert_eq!(fs::read(into.join(name)).unwrap(), b"content");
    }
    for safe in ["_ssh", "_CON", "_rf", long.as_str()] {
        assert!(names.iter().any(|name| name == safe), "{safe}: {names:?}");
    }
    assert_eq!(super_names(&into), ["to"], "nothing beside it");
    // Neither messages nor displayed names act on a terminal.
    let shown = bob.run(&["history", "lobby"]).exits(0).out + &got.err;
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{shown:?}");
    assert_eq!(shown.lines().filter(|line| line.starts_with("lines")).count(), 0);
}

fn super_names(dir: &Path) -> Vec<String> {
    names(dir.parent().unwrap())
}

#[test]
fn transfer__no_file_or_no_access_has_its_exit_code() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "only words"]).exits(0);
    let ran = bob.run(&["get", "lobby", "1"]).exits(2);
    assert!(ran.err.contains("is not a file"), "{}", ran.err);
    assert!(bob.run(&["get", "lobby", "9"]).exits(7).err.contains("no entry 9"));
    ada.run(&["room", "create", "secret"]).exits(0);
    let path = write(&host.root().join("f"), b"content");
    ada.run(&["put", &path, "secret"]).exits(0);
    bob.run(&["get", "secret", "1"]).exits(7);
    bob.run(&["put", &path, "secret"]).exits(7);
    bob.run(&["put", &path, "nowhere"]).exits(7);
    // A refused upload does not block a later one.
    bob.run(&["room", "join", "secret"]).exits(0);
    bob.run(&["put", &path, "secret"]).exits(0);
    let files = bob.reads("secret").into_iter().filter(|entry| entry["kind"] == "file");
    assert_eq!(files.count(), 2);
}

#[test]
fn transfer__json_events_have_stable_fields() {
    let host = Host::start();
    let ada = host.owner();
    let path = write(&host.root().join("f.bin"), &bytes(300_000, 1));
    let sent = ada.run(&["put", &path, "lobby", "--json", "--quiet"]).exits(0);
    assert_eq!(sent.err, "");
    let events = sent.json();
    let (start, done) = (&events[0], events.last().unwrap());
    assert_eq!(start["event"], "start");
    assert_eq!(
        (&start["name"], &start["size"], &start["from"]),
        (&"f.bin".into(), &300_000.into(), &0.into())
    );
    assert_eq!(done["event"], "done");
    let entry = &ada.reads("lobby")[0];
    for field in ["conversation", "n", "time", "id", "link", "file"] {
        assert_eq!(done[field], entry[field], "{field}");
    }
    assert_eq!(start["id"], entry["id"]);
    let into = host.root().join("g.bin");
    let into = into.to_str().unwrap();
    let got = ada.run(&["get", "lobby", "1", "-o", into, "--json"]).exits(0).json();
    let done = got.last().unwrap();
    for field in
        ["conversation", "n", "time", "from", "device", "kind", "id", "text", "link", "file"]
    {
        assert_eq!(done[field], entry[field], "{field}");
    }
    assert_eq!((done["event"].as_str(), done["path"].as_str()), (Some("done"), Some(into)));
    let failed = ada.run(&["put", &path, "nowhere", "--json"]).exits(7).json();
    let failed = failed.last().unwrap();
    assert_eq!((failed["event"].as_str(), failed["exit"].as_u64()), (Some("failed"), Some(7)));
    assert!(failed["error"].as_str().unwrap().contains("nowhere"));
    ada.run(&["get", "lobby", "1", "-o", "-", "--json"]).exits(2);
}

#[test]
fn listen__get_downloads_each_file_once_in_order() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let into = host.root().join("inbox");
    fs::create_dir(&into).unwrap();
    let inbox = into.to_str().unwrap();
    let listen = ["listen", "lobby", "--get", inbox, "--json", "--since", "all", "--count", "5"];
    let listening = bob.start(&listen);
    let (one, two) = (host.root().join("1"), host.root().join("2"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    let (one, two) = (one.join("report.txt"), two.join("report.txt"));
    ada.run(&["send", "lobby", "here they come"]).exits(0);
    ada.run(&["put", &write(&one, b"first"), "lobby"]).exits(0);
    ada.run(&["put", &write(&two, b"second"), "lobby"]).exits(0);
    ada.run(&["put", &write(&one, b"first"), "lobby"]).exits(0);
    ada.run(&["send", "lobby", "that was all"]).exits(0);
    let heard = listening.ended(LONG).exits(0).json();
    let kinds: Vec<_> = heard.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "file", "file", "file", "text"]);
    let path = |at: usize| heard[at]["file"]["path"].as_str().unwrap();
    assert_eq!(fs::read_to_string(path(1)).unwrap(), "first");
    assert_eq!(fs::read_to_string(path(2)).unwrap(), "second");
    assert_eq!(path(3), path(1), "what is there already is not fetched again");
    assert_eq!(names(&into), ["report-3.txt", "report.txt"]);
    // Again from the beginning: nothing new, nothing lost.
    let again = bob.run(&listen).exits(0).json();
    assert_eq!(again, heard);
    assert_eq!(names(&into).len(), 2);
    // A command gets the entry once its file is complete.
    let seen = host.root().join("seen");
    let exec = format!("jq -r .file.path >> {0} 2>/dev/null || cat >> {0}", seen.display());
    let args = ["listen", "lobby", "--get", inbox, "--since", "1", "--count", "1", "--exec", &exec];
    bob.run(&args).exits(0);
    assert!(fs::read_to_string(seen).unwrap().contains("report.txt"));
    bob.run(&["listen", "--get", "/nowhere/at/all"]).exits(2);
}

#[test]
fn chat__put_and_get_complete_before_exit() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let content = bytes(2_000_000, 4);
    let path = write(&host.root().join("a file.bin"), &content);
    let talk = ada.run_with(&["chat"], &format!("/put {path}\nhello\n")).exits(0);
    assert!(talk.out.contains("a file.bin (1.91 MiB) to lobby"), "{}", talk.out);
    assert!(!talk.out.contains("sent a file"), "her own is not shown again: {}", talk.out);
    let file = ada.reads("lobby").into_iter().find(|entry| entry["kind"] == "file").unwrap();
    let n = &file["n"];
    let dir = host.root().join("here");
    fs::create_dir(&dir).unwrap();
    let mut command = bob.command(&["chat"]);
    command.current_dir(&dir);
    let mut talking = Running::start(&mut command);
    talking.write(&format!("/history\n/get {n}\n/get 99\n"));
    // The file before the failing line still arrives.
    let talk = talking.ended(LONG).exits(7);
    assert!(talk.out.contains(&format!("get it with: /get {n}")), "{}", talk.out);
    assert!(talk.out.contains("saved a file.bin"), "{}", talk.out);
    assert!(talk.err.contains("no entry 99"), "{}", talk.err);
    assert!(fs::read(dir.join("a file.bin")).unwrap() == content);
}

#[test]
fn transfer__rate_limit_covers_all_files_together() {
    let host = Host::start();
    let ada = host.owner();
    let paths: Vec<_> =
        (0..3).map(|at| write(&host.root().join(format!("f{at}")), &bytes(200_000, at))).collect();
    let began = std::time::Instant::now();
    let mut put = vec!["put", "--limit", "400K", "lobby"];
    put.splice(1..1, paths.iter().map(String::as_str));
    ada.run(&put).exits(0);
    // 600,000 bytes at 409,600 a second, minus the burst of a quarter of a second.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1100), "{took:?}");
    ada.run(&["put", &paths[0], "lobby", "--limit", "1K"]).exits(2);
}
