//! Edge cases of files: sources without a size, files that change during a transfer, destinations
//! that cannot be written to, directories, paths that are not UTF-8, and stopped processes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::malicious_server::{MaliciousServer, Said};
use crate::common::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::item::What;

fn write(path: &Path, content: &[u8]) -> String {
    fs::write(path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn dir(host: &Host, name: &str) -> (PathBuf, String) {
    let dir = host.root().join(name);
    fs::create_dir_all(&dir).unwrap();
    let text = dir.to_str().unwrap().to_owned();
    (dir, text)
}

/// Fetches entry `n` of the lobby.
fn content(person: &Person, n: u64) -> Vec<u8> {
    person.command(&["get", "lobby", &n.to_string(), "-o", "-"]).output().unwrap().stdout
}

fn hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

// ---- sources

#[test]
fn put__source_without_size_is_read_to_its_end() {
    let host = Host::start();
    let ada = host.owner();
    // Files with a size of 0, and on most machines one of 4096, neither of which is their real
    // size.
    let sources = ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let there: Vec<_> = sources.into_iter().filter(|path| Path::new(path).exists()).collect();
    assert!(there.contains(&"/proc/version"));
    for (at, source) in there.iter().enumerate() {
        let expected = fs::read(source).unwrap();
        assert!(!expected.is_empty());
        let done = ada.run(&["put", source, "lobby", "--json"]).exits(0).json().pop().unwrap();
        assert_eq!(done["file"]["size"], expected.len(), "{source}");
        assert_eq!(done["file"]["blake3"], hash(&expected), "{source}");
        assert_eq!(content(&ada, at as u64 + 1), expected, "{source}");
    }
    let fifo = host.root().join("fifo");
    pipe(&fifo);
    let sent = bytes(300_000, 1);
    let (into, through) = (fifo.clone(), sent.clone());
    let writer = std::thread::spawn(move || fs::write(into, through).unwrap());
    let done = ada.run(&["put", fifo.to_str().unwrap(), "lobby", "--json"]).exits(0).json();
    writer.join().unwrap();
    let done = done.last().unwrap();
    assert_eq!((&done["file"]["size"], &done["file"]["name"]), (&300_000.into(), &"fifo".into()));
    assert_eq!(content(&ada, done["n"].as_u64().unwrap()), sent);
    // A device is read to its end; an empty file is valid.
    let empty = write(&host.root().join("empty"), b"");
    for source in ["/dev/null", &empty] {
        let done = ada.run(&["put", source, "lobby", "--json"]).exits(0).json().pop().unwrap();
        assert_eq!(done["file"]["size"], 0, "{source}");
    }
    let talk = ada.run_with(&["chat"], "/put /proc/version\n").exits(0);
    let last = ada.reads("lobby").pop().unwrap();
    assert_eq!(last["file"]["size"], fs::read("/proc/version").unwrap().len(), "{talk:?}");
    let spool = ada.home.join("state/default/spool");
    assert_eq!(fs::read_dir(spool).unwrap().count(), 0, "what was sent is not kept");
}

#[test]
fn put__silent_pipe_times_out_and_leaves_no_spool() {
    let host = Host::start();
    let ada = host.owner();
    let fifo = host.root().join("fifo");
    pipe(&fifo);
    let path = fifo.to_str().unwrap();
    let spooled =
        || fs::read_dir(ada.home.join("state/default/spool")).map_or(0, std::iter::Iterator::count);
    // The pipe has no writer.
    let ran = ada.run(&["put", path, "lobby", "--timeout", "1s"]).exits(9);
    assert!(ran.err.contains("timed out"), "{ran:?}");
    // The writer stops midway. It opens the pipe for both directions, so that the open does not
    // block.
    let mut writer = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    std::io::Write::write_all(&mut writer, b"half").unwrap();
    ada.run(&["put", path, "lobby", "--timeout", "1s"]).exits(9);
    assert_eq!(spooled(), 0);
    let mut put = ada.start(&["put", "-", "--name", "f", "lobby"]);
    put.write("half");
    let until = std::time::Instant::now() + LONG;
    while spooled() == 0 {
        assert!(std::time::Instant::now() < until, "it is not copied");
        std::thread::sleep(Duration::from_millis(10));
    }
    put.signal(Signal::INT);
    // Its input stays open until it has ended.
    let input = put.stdin.take();
    put.ended(LONG).exits(130);
    drop(input);
    assert_eq!(spooled(), 0);
    assert!(ada.reads("lobby").is_empty());
}

#[test]
fn put__recursive_refuses_name_for_many_and_empty_dir() {
    let host = Host::start();
    let ada = host.owner();
    let (from, text) = dir(&host, "logs");
    let ran = ada.run(&["put", "-r", &text, "lobby"]).exits(2);
    assert!(ran.err.contains("nothing is sent"), "{ran:?}");
    fs::write(from.join("a"), "a").unwrap();
    ada.run(&["put", "-r", &text, "lobby", "--name", "other"]).exits(0);
    fs::write(from.join("b"), "b").unwrap();
    let ran = ada.run(&["put", "-r", &text, "lobby", "--name", "other"]).exits(2);
    assert!(ran.err.contains("--name goes with one file only"), "{ran:?}");
    let names: Vec<_> = ada.reads("lobby").iter().map(|e| e["file"]["name"].clone()).collect();
    assert_eq!(names, ["other"]);
}

#[test]
fn put__recursive_skips_too_deep_files_with_an_error() {
    let host = Host::start();
    let ada = host.owner();
    let (from, text) = dir(&host, "d");
    // With `d` itself, 32 directories and one too many.
    let deepest = from.join(vec!["d"; 31].join("/"));
    fs::create_dir_all(deepest.join("d")).unwrap();
    fs::write(deepest.join("kept"), "x").unwrap();
    fs::write(deepest.join("d/left"), "x").unwrap();
    let ran = ada.run(&["put", "-r", &text, "lobby"]).exits(2);
    assert!(ran.err.contains("is below more than 32 directories"), "{ran:?}");
    let (inbox, get) = dir(&host, "inbox");
    ada.run(&["listen", "lobby", "--since", "all", "--until-now", "--get", &get]).exits(0);
    let path = vec!["d"; 32].join("/");
    assert!(inbox.join(path).join("kept").exists());
    assert_eq!(ada.reads("lobby").len(), 1);
}

#[test]
fn chat_put__pipe_device_or_directory_is_refused() {
    let host = Host::start();
    let ada = host.owner();
    let fifo = host.root().join("fifo");
    pipe(&fifo);
    for (path, words) in [
        (fifo.to_str().unwrap(), "fifo is a pipe, not a file"),
        ("/dev/zero", "/dev/zero is a device"),
        ("/", "/ is a directory"),
    ] {
        let talk = ada.run_with(&["chat"], &format!("/put {path}\nhello\n")).exits(2);
        assert!(talk.out.contains(words), "{words}: {talk:?}");
    }
    assert!(ada.reads("lobby").is_empty());
}

#[test]
fn put__changing_source_reports_the_recorded_file() {
    let host = Host::start();
    let ada = host.owner();
    let path = host.root().join("f.bin");
    for (at, size) in [100_000, 900_000].into_iter().enumerate() {
        // More than the read-ahead.
        let text = write(&path, &bytes(5_000_000, 2));
        let putting = ada.start(&["put", &text, "lobby", "--limit", "1M", "--json"]);
        putting.wait_lines(1);
        let new = bytes(size, 3);
        fs::write(&path, &new).unwrap();
        let done = putting.ended(LONG).exits(0).json().pop().unwrap();
        let entry = ada.reads("lobby").pop().unwrap();
        assert_eq!(done["event"], "done");
        for side in [&done, &entry] {
            assert_eq!(side["file"]["size"], size, "{side}");
            assert_eq!(side["file"]["blake3"], hash(&new), "{side}");
        }
        assert_eq!(content(&ada, at as u64 + 1), new);
    }
}

#[test]
fn put__after_lost_ack_reports_the_recorded_file() {
    let host = Host::start();
    let ada = host.owner();
    let malicious = MaliciousServer::start(&host, &ada);
    let victim = ada.by(malicious.address());
    let path = host.root().join("f.bin");
    let (old, new) = (bytes(50_000, 4), bytes(50_000, 5));
    let text = write(&path, &old);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    // The ack of the complete file never arrives.
    malicious.install(|said| {
        if let Said::Item(item) = said
            && let Some(What::Answer(answer)) = &item.what
            && matches!(answer.result, Some(Answered::Ack(_)))
        {
            item.what = None;
        }
    });
    victim.run(&["put", &text, "lobby", "--timeout", "2s"]).exits(9);
    assert_eq!(ada.reads("lobby").len(), 1);
    // Different content with the same size and time.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &new, 0).unwrap();
    file.set_modified(modified).unwrap();
    let done = ada.run(&["put", &text, "lobby", "--json"]).exits(0).json().pop().unwrap();
    let entries = ada.reads("lobby");
    let entry = entries.iter().find(|entry| entry["n"] == done["n"]).unwrap();
    assert_eq!(done["file"], entry["file"], "what is said is what is recorded");
    assert_eq!(done["file"]["blake3"], hash(&new), "and what is in the file");
}

// ---- destinations

#[test]
fn listen_get__position_is_kept_when_file_cannot_be_saved() {
    let host = Host::start();
    let ada = host.owner();
    let (into, inbox) = dir(&host, "inbox");
    let path = write(&host.root().join("f.txt"), b"content");
    ada.run(&["send", "lobby", "long ago"]).exits(0);
    ada.run(&["listen", "lobby", "--since", "all", "--count", "1"]).exits(0);
    ada.run(&["send", "lobby", "before"]).exits(0);
    ada.run(&["put", &path, "lobby"]).exits(0);
    ada.run(&["send", "lobby", "after"]).exits(0);
    let part = into.join(".f.txt.part");
    let listen = |dir: &str, count: &str| {
        ada.run(&["listen", "lobby", "--get", dir, "--count", count, "--timeout", "20s"])
    };
    let mut count = "3";
    // In the last one nothing can be created, not even by root.
    for place in ["a link", "a directory", "another's", "/proc"] {
        match place {
            "a link" => symlink("/nowhere", &part).unwrap(),
            "a directory" => fs::create_dir(&part).unwrap(),
            "another's" => {
                fs::write(host.root().join("other"), "").unwrap();
                fs::hard_link(host.root().join("other"), &part).unwrap();
            }
            _ => {}
        }
        let dir = if place == "/proc" { place } else { &inbox };
        let ran = listen(dir, count).exits(2);
        assert!(ran.err.contains("f.txt of entry 3 of lobby was not fetched"), "{place}: {ran:?}");
        assert!(!ran.out.contains("after"), "{place}: {ran:?}");
        assert_eq!(ran.out.contains("before"), count == "3", "{place}: {ran:?}");
        count = "2";
        let _none = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
    }
    // `--exec` does not skip the entry either.
    symlink("/nowhere", &part).unwrap();
    ada.run(&["listen", "lobby", "--since", "2", "--count", "1", "--exec", "true"]);
    let exec = ["listen", "lobby", "--get", &inbox, "--since", "2", "--exec", "cat >/dev/null"];
    ada.run(&[&exec[..], &["--count", "1"]].concat()).exits(2);
    fs::remove_file(&part).unwrap();
    let heard = listen(&inbox, "2").exits(0).out;
    assert!(heard.contains("saved as") && heard.contains("after"), "{heard}");
    assert_eq!(fs::read(into.join("f.txt")).unwrap(), b"content");
}

#[test]
fn listen_get__name_collision_picks_a_free_name() {
    let host = Host::start();
    let ada = host.owner();
    let (into, inbox) = dir(&host, "inbox");
    for taken in ["f.txt", "f-1.txt", "f-lobby-1.txt"] {
        fs::write(into.join(taken), "mine").unwrap();
    }
    let path = write(&host.root().join("f.txt"), b"content");
    ada.run(&["put", &path, "lobby"]).exits(0);
    ada.run(&["listen", "lobby", "--since", "all", "--count", "1", "--get", &inbox]).exits(0);
    assert_eq!(fs::read(into.join("f-lobby-1-2.txt")).unwrap(), b"content");
    assert_eq!(fs::read(into.join("f.txt")).unwrap(), b"mine");
}

#[test]
fn get__replaces_only_a_regular_file() {
    let host = Host::start();
    let ada = host.owner();
    let path = write(&host.root().join("f.txt"), b"content");
    ada.run(&["put", &path, "lobby"]).exits(0);
    let fifo = host.root().join("fifo");
    pipe(&fifo);
    let socket = host.root().join("socket");
    let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut places = vec![fifo, socket, PathBuf::from("/dev/null")];
    let device = host.root().join("device");
    // Only as root; `get` must not replace even a device that the user owns.
    let null = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o600);
    if mknodat(CWD, &device, FileType::CharacterDevice, mode, null).is_ok() {
        places.push(device);
    }
    for place in &places {
        for force in [&["--force"][..], &[]] {
            let get = ["get", "lobby", "1", "-o", place.to_str().unwrap()];
            let ran = ada.run(&[&get[..], force].concat()).exits(2);
            assert!(ran.err.contains("it is not overwritten"), "{ran:?}");
            let kind = fs::symlink_metadata(place).unwrap().file_type();
            assert!(kind.is_fifo() || kind.is_socket() || kind.is_char_device(), "{place:?}");
        }
    }
    let file = write(&host.root().join("old"), b"old");
    ada.run(&["get", "lobby", "1", "-o", &file, "--force"]).exits(0);
    assert_eq!(fs::read(file).unwrap(), b"content");
}

// ---- directories

#[test]
fn put__recursive_keeps_structure_and_follows_no_symlink() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let (from, text) = dir(&host, "logs");
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::create_dir_all(from.join("c")).unwrap();
    let files = ["top.txt", "a/same.txt", "a/b/same.txt", "c/same.txt"];
    for name in files {
        fs::write(from.join(name), name).unwrap();
    }
    symlink("/etc/passwd", from.join("link")).unwrap();
    symlink("/etc", from.join("a/dirlink")).unwrap();
    let sent = ada.run(&["put", "-r", &text, "lobby"]).exits(0);
    for link in ["logs/link is a symbolic link", "dirlink is a symbolic link"] {
        assert!(sent.err.contains(link), "{sent:?}");
    }
    let (into, out) = dir(&host, "into");
    bob.run(&["get", "lobby", "1", "2", "3", "4", "-o", &out]).exits(0);
    for name in files {
        assert_eq!(fs::read_to_string(into.join("logs").join(name)).unwrap(), name);
    }
    let (inbox, get) = dir(&host, "inbox");
    let listen = ["listen", "lobby", "--since", "all", "--count", "4", "--get", &get, "--json"];
    let heard = bob.run(&listen).exits(0).json();
    for name in files {
        assert_eq!(fs::read_to_string(inbox.join("logs").join(name)).unwrap(), name);
    }
    assert!(heard.iter().any(|entry| entry["file"]["dir"] == "logs/a/b"), "{heard:?}");
    assert_eq!(bob.run(&listen).exits(0).json(), heard, "nothing is fetched twice");
    let shown = bob.run(&["history", "lobby"]).exits(0).out;
    assert!(shown.contains("logs/a/b/same.txt"), "{shown}");
    // A symbolic link in place of a directory is not followed.
    let victim = dir(&host, "victim").0;
    fs::remove_dir_all(into.join("logs")).unwrap();
    symlink(&victim, into.join("logs")).unwrap();
    let ran = bob.run(&["get", "lobby", "1", "2", "-o", &out]).exits(2);
    assert!(ran.err.contains("logs is a symbolic link"), "{ran:?}");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    // `listen` puts such a file into the target directory itself.
    bob.run(&["listen", "lobby", "--since", "all", "--count", "4", "--get", &out]).exits(0);
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(into.join("top.txt")).unwrap(), "top.txt");
    bob.run(&["audit", "verify"]).exits(0);
}

#[test]
fn get__invalid_entry_number_does_not_stop_the_others() {
    let host = Host::start();
    let ada = host.owner();
    let path = write(&host.root().join("f.txt"), b"content");
    ada.run(&["put", &path, "lobby"]).exits(0);
    ada.run(&["send", "lobby", "words"]).exits(0);
    ada.run(&["put", &path, "lobby", "--name", "g.txt"]).exits(0);
    let (into, out) = dir(&host, "into");
    let get = ["get", "lobby", "2", "1", "99", "3", "-o", &out, "--json"];
    let ran = ada.run(&get).exits(7);
    assert!(ran.err.contains("entry 2 of lobby is not a file"), "{ran:?}");
    assert!(ran.err.contains("no entry 99 in lobby"), "{ran:?}");
    for name in ["f.txt", "g.txt"] {
        assert_eq!(fs::read(into.join(name)).unwrap(), b"content");
    }
    let failed: Vec<_> = ran.json().into_iter().filter(|e| e["event"] == "failed").collect();
    let failed: Vec<_> = failed.iter().map(|e| (e["n"].clone(), e["exit"].clone())).collect();
    assert_eq!(failed, [(2.into(), 2.into()), (99.into(), 7.into())]);
}

// ---- paths

#[test]
fn json_output__non_utf8_path_gives_valid_objects() {
    let host = Host::start();
    let ada = host.owner();
    let path = host.root().join(OsStr::from_bytes(b"caf\xe9\\1"));
    fs::write(&path, "content").unwrap();
    let mut command = ada.command(&["put", "--json"]);
    let ran = Running::start(command.arg(&path).arg("lobby")).ended(LONG).exits(0);
    let events = ran.json();
    assert!(events.iter().all(serde_json::Value::is_object), "{ran:?}");
    let escaped = |event: &serde_json::Value| event["path"].as_str().unwrap().to_owned();
    assert_eq!(events[0]["event"], "start");
    for event in [&events[0], events.last().unwrap()] {
        assert!(escaped(event).ends_with("/caf\\xe9\\\\1"), "{event}");
    }
    let into = host.root().join(OsStr::from_bytes(b"got\xff"));
    fs::create_dir(&into).unwrap();
    let mut command = ada.command(&["get", "lobby", "1", "--json", "-o"]);
    let got = Running::start(command.arg(&into)).ended(LONG).exits(0).json();
    assert!(escaped(got.last().unwrap()).contains("/got\\xff/"), "{got:?}");
    let mut command = ada.command(&["get", "lobby", "1", "--json", "-o"]);
    let failed = Running::start(command.arg(&into)).ended(LONG).exits(2).json();
    assert!(failed.iter().all(serde_json::Value::is_object), "{failed:?}");
    let mut command =
        ada.command(&["listen", "lobby", "--since", "all", "--count", "1", "--json", "--get"]);
    let heard = Running::start(command.arg(&into)).ended(LONG).exits(0).json();
    assert!(heard[0]["file"]["path"].as_str().unwrap().contains("/got\\xff/"), "{heard:?}");
}

// ---- time

#[test]
fn transfer__stopped_process_continues_without_timeout() {
    let host = Host::start();
    let ada = host.owner();
    let path = write(&host.root().join("f.bin"), &bytes(600_000, 6));
    let into = host.root().join("g.bin");
    let put = ["put", &path, "lobby", "--limit", "200K", "--timeout", "2s", "--json"];
    let get = ["get", "lobby", "1", "--limit", "200K", "--timeout", "2s", "--json", "-o"];
    let get = [&get[..], &[into.to_str().unwrap()]].concat();
    for args in [&put[..], &get] {
        let moving = ada.start(args);
        moving.wait_lines(1);
        moving.signal(Signal::STOP);
        // Longer than the patience limit; the exact time does not matter.
        std::thread::sleep(Duration::from_secs(4));
        moving.signal(Signal::CONT);
        moving.ended(LONG).exits(0);
    }
    assert_eq!(fs::read(into).unwrap(), fs::read(path).unwrap());
}
