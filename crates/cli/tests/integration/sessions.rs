//! Sessions as a user sees them: rekeys, the logs, and how long `chat` waits at its end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::device::{Device, Line, Origin, Ports, add_key};
use crate::common::*;
use data_encoding::HEXLOWER;
use rustix::process::Signal;
use serde_json::{Value, json};

fn client_log(person: &Person) -> String {
    std::fs::read_to_string(person.home.join("state/default/client.log")).unwrap()
}

/// The lines that contain all of these words.
fn with<'l>(log: &'l str, words: &[&str]) -> Vec<&'l str> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

/// The number after `field`.
fn number(line: &str, field: &str) -> u64 {
    let (_, after) = line.split_once(&format!(" {field}=")).unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

fn set_rekey_after(person: &Person, value: &str) {
    let text = person.profile_text();
    let old = text.lines().find(|line| line.starts_with("rekey-after"));
    let text = old.map_or(text.clone(), |old| text.replacen(&format!("{old}\n"), "", 1));
    let text = text.replacen("[device]", &format!("rekey-after = {value}\n[device]"), 1);
    std::fs::write(person.profile_file(), text).unwrap();
}

// ---- rekeys

#[test]
fn rekey__status_shows_epochs_and_both_logs_record_one() {
    let mut host = Host::start();
    let ada = host.owner();
    let status = ada.run(&["status", "--rekey", "--json"]).exits(0).json();
    assert_eq!(status[0]["rekey"], json!({"epoch_before": 0, "epoch_after": 1}));
    let session = &status[0]["lock2"];
    assert_eq!((&session["epoch"], &session["rekeys"]), (&json!(1), &json!(1)));
    assert!(session["last_rekey_seconds"].is_u64(), "{session}");
    let sid = format!("sid={}", session["session"].as_str().unwrap());
    for log in [host.log(), client_log(&ada)] {
        let rekeys = with(&log, &[" INFO ", "rekeyed", &sid]);
        assert_eq!(rekeys.len(), 1, "{log}");
        assert!(rekeys[0].contains("epoch=1"), "{rekeys:?}");
    }
    let shown = ada.run(&["status", "--rekey"]).exits(0).out;
    assert!(shown.contains("\nrekey    epoch 0 before, epoch 1 now"), "{shown}");
    assert!(shown.contains("epoch 1, ") && shown.contains("1 rekeys, the last "), "{shown}");
    // Without the option there is no rekey.
    let plain = ada.run(&["status", "--json"]).exits(0).json();
    assert_eq!((&plain[0]["rekey"], &plain[0]["lock2"]["epoch"]), (&Value::Null, &json!(0)));
    assert_eq!(plain[0]["lock2"]["last_rekey_seconds"], Value::Null);
    host.kill();
    let away = ada.run(&["status", "--rekey", "--json"]).exits(5).json();
    assert_eq!((&away[0]["rekey"], &away[0]["lock2"]), (&Value::Null, &Value::Null));
}

#[test]
fn rekey__interval_out_of_range_is_refused_with_range() {
    let host = Host::start();
    let ada = host.owner();
    for value in ["1", "14", "601", "-15"] {
        set_rekey_after(&ada, value);
        let text = ada.profile_text();
        let line = 1 + text.lines().position(|line| line.starts_with("rekey-after")).unwrap();
        let refused = ada.run(&["send", "lobby", "hello"]).exits(2);
        let words = format!("default.toml:{line}: rekey-after is 15 to 600 seconds");
        assert!(refused.err.contains(&words), "{value}: {refused:?}");
    }
    for value in ["15", "600"] {
        set_rekey_after(&ada, value);
        ada.run(&["send", "lobby", "hello"]).exits(0);
    }
    assert_eq!(ada.reads("lobby").len(), 2);
}

#[test]
fn rekey__interval_elapses_under_traffic_without_loss() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    for person in [&ada, &bob] {
        set_rekey_after(person, "15");
    }
    let listening = bob.start(&["listen", "lobby", "--since", "all", "--json"]);
    let mut chat = ada.start(&["chat"]);
    let (mut said, mut more) = (0, 20);
    let until = Instant::now() + 2 * LONG;
    while more > 0 {
        assert!(Instant::now() < until, "no rekey\n{}", host.log());
        chat.write(&format!("line {said}\n"));
        said += 1;
        std::thread::sleep(Duration::from_millis(20));
        let is_rekeyed = |person| !with(&client_log(person), &["rekeyed", "epoch=1"]).is_empty();
        more -= i32::from(is_rekeyed(&ada) && is_rekeyed(&bob));
    }
    listening.wait_lines(said);
    let heard = json_lines(&listening.out());
    let all: Vec<String> = (0..said).map(|n| format!("line {n}")).collect();
    assert_eq!(texts(&heard), all);
    // The running session, as chat shows it.
    chat.write("/status\n");
    chat.end_input();
    let chat = chat.ended(LONG).exits(0);
    let session = with(&chat.out, &["-- lock 2: session "]);
    assert_eq!(session.len(), 1, "{chat:?}");
    assert!(session[0].contains("epoch 1, "), "{session:?}");
    assert!(session[0].contains("1 rekeys, the last ") && session[0].ends_with(" ago"));
    for user in ["user=\"ada\"", "user=\"bob\""] {
        let log = host.log();
        assert!(!with(&log, &[" INFO ", "rekeyed", user, "epoch=1"]).is_empty(), "{log}");
    }
    listening.killed();
}

// ---- logs

#[test]
fn client_log__has_sessions_and_sums_but_no_content() {
    let mut host = Host::start();
    let ada = host.owner();
    let lines: String = (0..300).map(|n| format!("a text of mine {n}\n")).collect();
    ada.run_with(&["send", "lobby"], &lines).exits(0);
    let log = client_log(&ada);
    let server = format!("server={}", host.address());
    let begun = with(&log, &[" INFO ", "session begun", &server]);
    assert_eq!(begun.len(), 1, "{log}");
    for fact in ["sid=", "key=", "software=\"twinlock", "tls=\"", "suite=\"", "binding=Bound"] {
        assert!(begun[0].contains(fact), "{fact}: {begun:?}");
    }
    let sums = with(&log, &[" INFO ", "messages recorded", "to=\"lobby\" conversation=1"]);
    assert!((1..=3).contains(&sums.len()), "{log}");
    assert_eq!(sums.iter().map(|line| number(line, "count")).sum::<u64>(), 300);
    assert_eq!(sums.iter().map(|line| number(line, "last")).max(), Some(300));
    let ended = with(&log, &[" INFO ", "session ended", "seconds=", "rekeys=0"]);
    assert_eq!(ended.len(), 1, "{log}");
    assert!(!ended[0].contains("error="), "{ended:?}");
    // A file has a separate connection.
    let file = host.root().join("name-of-a-file");
    std::fs::write(&file, "content of it").unwrap();
    ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    let log = client_log(&ada);
    assert_eq!(with(&log, &[" INFO ", "session begun"]).len(), 2, "{log}");
    assert_eq!(with(&log, &[" INFO ", "file recorded", "n=301", "bytes=13"]).len(), 1, "{log}");
    host.terminate().exits(0);
    ada.run(&["people"]).exits(5);
    let log = client_log(&ada);
    assert_eq!(with(&log, &[" INFO ", "no session", &server]).len(), 1, "{log}");
    // No text, no file name, no secret, and nothing that needs `--verbose`.
    let profile = ada.profile_text();
    let secret = profile.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap();
    let secret = secret.trim_matches('"');
    for absent in ["a text of mine", "name-of-a-file", "content of it", secret, "DEBUG"] {
        assert!(!log.contains(absent), "{absent}");
    }
}

#[test]
fn debug_log__classic_bytes_are_sealed_without_text_or_key() {
    let ports = ["--classic-port", "0", "--origin-port", "0", "--log-level", "debug"];
    let mut host = Host::start_with(&ports);
    let ada = host.owner();
    let ports = Ports::of(&host);
    let (lamp, old) =
        (add_key(&ada, "lamp", "lobby", "jwe"), add_key(&ada, "old", "lobby", "origin"));
    let text = "a text of a device";
    Line::new(&ports, "lamp", &lamp).unwrap().say(text).unwrap();
    Origin::new(&ports, &old).unwrap().say(text).unwrap();
    // The server may write its last log line after the client has its answer.
    host.terminate().exits(0);
    let log = host.log();
    for way in [" received ", " sent "] {
        // Lines of sessions contain their `sid`.
        let lines = with(&log, &["DEBUG", way, " peer=127.0.0.1:", " bytes="]);
        let mut peers = BTreeSet::new();
        for line in lines {
            peers.insert(line.split_once(" peer=").unwrap().1.split_once(' ').unwrap().0);
            let shown = line.split_once(" bytes=").unwrap().1.trim();
            let bytes = HEXLOWER.decode(shown.trim_end_matches("..").as_bytes()).unwrap();
            assert!(!bytes.is_empty() && bytes.is_ascii(), "{line}");
            assert!(number(line, "n") >= bytes.len() as u64, "{line}");
        }
        assert_eq!(peers.len(), 2, "{way}: {log}");
    }
    assert!(!log.contains(text) && !log.contains(&HEXLOWER.encode(text.as_bytes())));
    for key in [lamp, old] {
        assert!(!log.contains(&HEXLOWER.encode(&key)));
    }
}

// ---- time

#[test]
fn chat__exit_timeout_excludes_time_while_stopped() {
    let mut host = Host::start();
    let ada = host.owner();
    host.kill();
    let mut chat = ada.start(&["chat", "--timeout", "6s"]);
    chat.write("said while it was away\nexit\n");
    chat.wait_err("waiting at most 6 s");
    chat.signal(Signal::STOP);
    // Longer than the patience limit; the exact time does not matter.
    std::thread::sleep(Duration::from_secs(8));
    host.restart();
    chat.signal(Signal::CONT);
    chat.ended(LONG).exits(0);
    assert_eq!(texts(&ada.reads("lobby")), ["said while it was away"]);
}
