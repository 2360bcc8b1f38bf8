//! Servers and clients that stop, cleanly or not, and return.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::common::*;
use rusqlite::Connection;
use rustix::process::Signal;

#[test]
fn outbox__offline_messages_are_sent_once_by_next_send() {
    let mut host = Host::start();
    let ada = host.owner();
    host.terminate().exits(0);
    for text in ["first", "second"] {
        let began = Instant::now();
        let ran = ada.run(&["send", "--timeout", "1s", "--json", "lobby", text]).exits(6);
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        assert_eq!(ran.out, "", "nothing is acknowledged");
        assert!(ran.err.contains("not recorded"), "{ran:?}");
    }
    // A command that only asks has no connection, and sends nothing.
    ada.run(&["rooms"]).exits(5);
    host.restart();
    ada.run(&["rooms"]).exits(0);
    assert_eq!(texts(&ada.reads("lobby")), Vec::<&str>::new());
    ada.run(&["send", "lobby", "third"]).exits(0);
    assert_eq!(texts(&ada.reads("lobby")), ["first", "second", "third"]);
    ada.run(&["send", "lobby", "fourth"]).exits(0);
    assert_eq!(texts(&ada.reads("lobby")), ["first", "second", "third", "fourth"]);
}

#[test]
fn outbox__killed_send_loses_and_duplicates_nothing() {
    const LINES: usize = 5_000;
    let mut rng = Rng::from_env();
    let host = Host::start();
    let ada = host.owner();
    let outbox = ada.home.join("state/default");
    let (mut next, mut acked, mut kills) = (0, 0, 0);
    while next < LINES {
        let mut sending = ada.start(&["send", "--json", "lobby"]);
        let mut stdin = sending.stdin.take().unwrap();
        let feeding = std::thread::spawn(move || {
            for n in next..LINES {
                // Until it is killed.
                if writeln!(stdin, "line {n:05}").is_err() {
                    return;
                }
                if n % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        if kills < 5 {
            kills += 1;
            // While it reads, sends and receives acks.
            sending.wait_lines(1);
            std::thread::sleep(Duration::from_millis(rng.within(0, 60)));
            acked += sending.killed().json().len();
        } else {
            sending.ended(LONG).exits(0);
        }
        feeding.join().unwrap();
        // The outbox has all lines that were read, sent or not: the rest starts after them.
        next = in_outbox(&outbox);
        assert!(next >= acked, "{next} {acked}");
    }
    eprintln!("{kills} kills, {acked} acks told before them");
    let wanted = (0..LINES).map(|n| format!("line {n:05}")).collect::<Vec<_>>();
    // The last command sent the messages that earlier ones had left.
    ada.run(&["send", "lobby", "end"]).exits(0);
    let read = ada.reads("lobby");
    let (end, lines) = read.split_last().unwrap();
    assert_eq!(end["text"], "end");
    assert_eq!(texts(lines), wanted);
    ada.run(&["audit", "verify"]).exits(0);
}

/// Messages that an outbox contains or has contained.
fn in_outbox(state: &std::path::Path) -> usize {
    let files = std::fs::read_dir(state).unwrap().map(|file| file.unwrap().path());
    let file = files.into_iter().find(|file| file.extension().is_some_and(|e| e == "db")).unwrap();
    let count = "SELECT count(*) FROM outbox";
    let n: i64 = Connection::open(file).unwrap().query_row(count, (), |row| row.get(0)).unwrap();
    usize::try_from(n).unwrap()
}

#[test]
fn shutdown__keeps_every_ack_and_clients_reconnect() {
    const LINES: usize = 3_000;
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("server.toml");
    std::fs::write(&config, "[timing]\ncome-back = 1\n").unwrap();
    let mut host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let count = LINES.to_string();
    let listening = bob.start(&["listen", "lobby", "--since", "all", "--json", "--count", &count]);
    let mut sending = ada.start(&["send", "--json", "lobby"]);
    let mut stdin = sending.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || {
        for n in 0..LINES {
            writeln!(stdin, "line {n:05}").unwrap();
            if n % 10 == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    for acks in [200, 800, 1_400] {
        sending.wait_lines(acks);
        let asked = Instant::now();
        host.terminate().exits(0);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        host.restart();
    }
    feeding.join().unwrap();
    let sent = sending.ended(LONG).exits(0);
    let heard = listening.ended(LONG).exits(0);
    let wanted = (0..LINES).map(|n| format!("line {n:05}")).collect::<Vec<_>>();
    assert_eq!(texts(&heard.json()), wanted);
    let read = ada.reads("lobby");
    assert_eq!(read, heard.json());
    let acks = sent.json();
    assert_eq!(acks.len(), LINES);
    for ack in &acks {
        let n = usize::try_from(ack["n"].as_u64().unwrap()).unwrap();
        assert_eq!(ack["link"], read[n - 1]["link"]);
    }
    for person in [&ada, &bob] {
        person.run(&["audit", "verify"]).exits(0);
    }
}

#[test]
fn shutdown__second_signal_is_immediate_and_record_intact() {
    let mut host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "kept"]).exits(0);
    let listening = ada.start(&["listen", "lobby"]);
    // A stalled client delays the drain: it does not read its CLOSE.
    listening.signal(Signal::STOP);
    host.running().signal(Signal::TERM);
    host.running().signal(Signal::INT);
    let asked = Instant::now();
    let code = host.gone().code;
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    listening.signal(Signal::CONT);
    host.restart();
    assert_eq!(texts(&ada.reads("lobby")), ["kept"]);
}
