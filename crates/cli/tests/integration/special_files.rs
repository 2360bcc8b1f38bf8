//! Files that are pipes or devices, and a client's state that was lost.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::*;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use tempfile::TempDir;

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// The writing end, once a process waits to read.
fn writer(path: &Path) -> File {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let until = Instant::now() + LONG;
    loop {
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(file) => return file,
            Err(error) => assert!(Instant::now() < until, "nobody reads the pipe: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn special_file__pipe_or_device_fails_with_the_reason() {
    let host = Host::start();
    let ada = host.owner();
    let root = TempDir::new().unwrap();
    let fifo = root.path().join("pipe");
    pipe(&fifo);
    let data = root.path().join("data");
    let serve = ["serve", "--port", "0", "--data", data.to_str().unwrap()];
    for path in [fifo.to_str().unwrap(), "/dev/zero"] {
        let tls = ["--tls-cert", path, "--tls-key", path];
        let ran = ada.run(&[&serve[..], &tls].concat()).exits(2);
        assert!(ran.err.contains("not a regular file"), "{path}: {ran:?}");
    }
    // Settings may come through a pipe, up to a size.
    let ran = ada.run(&[&serve[..], &["--config", "/dev/zero"]].concat()).exits(2);
    assert!(ran.err.contains("longer than 1048576 bytes"), "{ran:?}");
    let running = ada.start(&[&serve[..], &["--config", fifo.to_str().unwrap()]].concat());
    writer(&fifo).write_all(b"port = \"x\"\n").unwrap();
    let ran = running.ended(LONG).exits(2);
    assert!(ran.err.contains("pipe:1: "), "{ran:?}");
    let profile = ada.home.join("profiles/default.toml");
    fs::remove_file(&profile).unwrap();
    pipe(&profile);
    let ran = ada.run(&["status"]).exits(2);
    assert!(ran.err.contains("not a regular file"), "{ran:?}");
}

#[test]
fn special_file__secret_pipe_is_read_and_wait_interruptible() {
    let host = Host::start_with(&["--origin-port", "0"]);
    let ada = host.owner();
    let fifo = ada.home.join("pipe");
    pipe(&fifo);
    let path = fifo.to_str().unwrap();
    let link = ada.invites();
    let bob = host.stranger();
    let waits = [
        (&bob, &["join", "--user", "bob", "--password-file", path, &link][..]),
        (&bob, &["login", "ada@127.0.0.1:1", "--password-file", path]),
        (
            &ada,
            &["classic", "add", "lamp", "--to", "lobby", "--format", "origin", "--key-file", path],
        ),
    ];
    for (who, args) in waits {
        let running = who.start(args);
        // It reads, and no data comes.
        let held = writer(&fifo);
        running.signal(Signal::TERM);
        running.ended(LONG).exits(130);
        drop(held);
    }
    let running = bob.start(waits[0].1);
    writer(&fifo).write_all(b"correct horse battery\n").unwrap();
    running.ended(LONG).exits(0);
    assert!(ada.run(&["people"]).exits(0).out.contains("bob"));
}

#[test]
fn client_state__lost_file_is_refused_and_nothing_changed() {
    let mut host = Host::start();
    let ada = host.owner();
    host.terminate();
    ada.run(&["send", "--timeout", "1s", "lobby", "queued"]).exits(6);
    let state = ada.home.join("state/default");
    let kept = TempDir::new().unwrap();
    let files = ["state.db", "state.db-wal"];
    for file in files {
        fs::copy(state.join(file), kept.path().join(file)).unwrap();
    }
    for empty in [true, false] {
        fs::remove_file(state.join("state.db")).unwrap();
        if empty {
            File::create(state.join("state.db")).unwrap();
        }
        for args in [&["outbox", "list"][..], &["send", "--timeout", "1s", "lobby", "x"]] {
            let ran = ada.run(args).exits(2);
            let words = if empty { "is empty" } else { "is missing" };
            assert!(ran.err.contains(words) && ran.err.contains("state.db-wal"), "{ran:?}");
        }
        // Nothing was changed, so restoring the file restores the message.
        let wal = fs::read(state.join("state.db-wal")).unwrap();
        assert!(wal == fs::read(kept.path().join("state.db-wal")).unwrap());
        fs::copy(kept.path().join("state.db"), state.join("state.db")).unwrap();
        assert!(ada.run(&["outbox", "list"]).exits(0).out.contains("queued"));
    }
    fs::remove_file(state.join("state.db-wal")).unwrap();
    let ran = ada.run(&["outbox", "list"]).exits(2);
    let words = "state.db-wal is missing, but";
    assert!(ran.err.contains(words) && ran.err.contains("state.db-shm"), "{ran:?}");
    fs::copy(kept.path().join("state.db-wal"), state.join("state.db-wal")).unwrap();
    assert!(ada.run(&["outbox", "list"]).exits(0).out.contains("queued"));
    // Another program may move the WAL into the database, and remove it.
    let other = rusqlite::Connection::open(state.join("state.db")).unwrap();
    other.query_row("SELECT COUNT(*) FROM account", [], |_| Ok(())).unwrap();
    drop(other);
    assert!(!state.join("state.db-wal").exists());
    for _ in 0..2 {
        assert!(ada.run(&["outbox", "list"]).exits(0).out.contains("queued"));
    }
}
