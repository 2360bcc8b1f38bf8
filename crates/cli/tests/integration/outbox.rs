//! The outbox, the local part of `status`, and entries selected by number, time or `last`.

use crate::common::*;
use rustix::process::Signal;

#[test]
fn outbox__queued_messages_are_listed_dropped_and_sent() {
    let mut host = Host::start();
    let ada = host.owner();
    let empty = ada.run(&["outbox", "list"]).exits(0);
    assert!(empty.out.is_empty() && empty.err.contains("empty"), "{empty:?}");
    ada.run(&["send", "later", "too early"]).exits(7);
    host.kill();
    for text in ["one", "two\nlines", "three"] {
        ada.run(&["send", "--timeout", "300ms", "lobby", text]).exits(6);
    }
    let listed = ada.run(&["outbox", "list", "--json"]).exits(0).json();
    let fields = |name: &str| listed.iter().map(|m| m[name].clone()).collect::<Vec<_>>();
    assert_eq!(fields("text"), ["one", "two\nlines", "three", "too early"]);
    assert_eq!(fields("state"), ["queued", "queued", "queued", "refused"]);
    assert_eq!(fields("conversation"), ["lobby", "lobby", "lobby", "later"]);
    assert!(listed[0]["reason"].is_null() && listed[3]["reason"].is_string(), "{listed:?}");
    let people = ada.run(&["outbox", "list"]).exits(0).out;
    assert_eq!(people.lines().count(), 4, "{people}");
    assert!(people.contains("lobby: two lines") && people.contains("refused"), "{people}");

    // Dropping a message needs no connection.
    let id = listed[0]["id"].as_str().unwrap();
    for (wanted, words) in [("ffff", "no message"), ("abc", "at least 4"), ("", "at least 4")] {
        let ran = ada.run(&["outbox", "drop", wanted]).exits(2);
        assert!(ran.err.contains(words), "{wanted}: {ran:?}");
    }
    ada.run(&["outbox", "drop", &id[id.len() - 12..]]).exits(0);
    assert_eq!(ada.run(&["outbox", "list", "--json"]).exits(0).json().len(), 3);
    let late = ada.run(&["--timeout", "300ms", "outbox", "retry"]).exits(6);
    assert!(late.err.contains("3 messages are queued"), "{late:?}");

    host.restart();
    ada.run(&["room", "create", "later"]).exits(0);
    let sent = ada.run(&["outbox", "retry"]).exits(0);
    assert!(sent.err.contains("3 messages are recorded"), "{sent:?}");
    assert_eq!(texts(&ada.reads("lobby")), ["two\nlines", "three"]);
    assert_eq!(ada.reads("later").last().unwrap()["text"], "too early");
    assert!(ada.run(&["outbox", "list"]).exits(0).out.is_empty());
    ada.run(&["outbox", "retry"]).exits(0);
}

#[test]
fn outbox__drop_ends_the_waiting_send() {
    let mut host = Host::start();
    let ada = host.owner();
    host.kill();
    let drop_all = || {
        let until = std::time::Instant::now() + LONG;
        loop {
            let listed = ada.run(&["outbox", "list", "--json"]).exits(0).json();
            if let Some(message) = listed.first() {
                ada.run(&["outbox", "drop", message["id"].as_str().unwrap()]).exits(0);
                return;
            }
            assert!(std::time::Instant::now() < until, "nothing is queued");
        }
    };
    let send = ada.start(&["send", "--timeout", "50s", "lobby", "one"]);
    drop_all();
    let send = send.ended(LONG).exits(7);
    assert!(send.err.contains("another command dropped it from the outbox"), "{send:?}");
    let mut chat = ada.start(&["--timeout", "50s", "chat"]);
    chat.write("two\n");
    drop_all();
    chat.end_input();
    let chat = chat.ended(LONG).exits(7);
    assert!(chat.out.contains("another command dropped it from the outbox"), "{chat:?}");
    host.restart();
    assert!(ada.reads("lobby").is_empty());
}

#[test]
fn status__without_server_shows_local_state() {
    let mut host = Host::start();
    let ada = host.owner();
    let up = ada.run(&["status", "--json"]).exits(0).json().remove(0);
    host.kill();
    ada.run(&["send", "--timeout", "300ms", "lobby", "later"]).exits(6);
    let ran = ada.run(&["status", "--json"]).exits(5);
    let down = ran.json().remove(0);
    for same in ["profile", "user", "device", "server", "server_key", "server_words", "pins"] {
        assert_eq!(up[same], down[same], "{same}");
        assert!(!up[same].is_null(), "{same}");
    }
    for unknown in ["role", "server_software", "tls", "lock2"] {
        assert!(down[unknown].is_null() && !up[unknown].is_null(), "{unknown}");
    }
    assert_eq!(down["outbox"]["queued"], 1);
    let people = ada.run(&["status"]).exits(5);
    let pin = up["pins"][0].as_str().unwrap();
    for words in ["profile  default", "you      ada, device", "outbox   1 queued, 0 refused", pin] {
        assert!(people.out.contains(words), "{words}: {people:?}");
    }
    assert!(people.err.contains("no connection"), "{people:?}");
}

#[test]
fn status__unresponsive_server_still_shows_local_state() {
    let host = Host::start();
    let ada = host.owner();
    host.running().signal(Signal::STOP);
    let ran = ada.run(&["status", "--timeout", "1s"]).exits(9);
    host.running().signal(Signal::CONT);
    assert!(ran.out.contains("ada") && ran.err.contains("timed out"), "{ran:?}");
}

#[test]
fn listen__until_now_processes_existing_and_exits() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    // No room has entries yet.
    assert!(bob.run(&["listen", "--until-now"]).exits(0).out.is_empty());
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    ada.run(&["send", "@bob", "psst"]).exits(0);
    let got = bob.run(&["listen", "--until-now", "--json"]).exits(0).json();
    let mut said = texts(&got);
    said.sort_unstable();
    assert_eq!(said, ["one", "psst", "three", "two"]);
    assert!(bob.run(&["listen", "--until-now", "--json"]).exits(0).out.is_empty());
    let all = ["listen", "lobby", "--until-now", "--since", "all", "--exec", "cat"];
    let got = bob.run(&all).exits(0).json();
    assert_eq!(texts(&got), ["one", "two", "three"]);
}

#[test]
fn history_and_get__accept_number_time_and_last() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    for (name, text) in [("a.txt", "first"), ("b.txt", "second")] {
        std::fs::write(ada.home.join(name), text).unwrap();
        let file = ada.home.join(name);
        ada.run(&["put", file.to_str().unwrap(), "lobby"]).exits(0);
    }
    ada.run(&["send", "lobby", "six"]).exits(0);
    let shown = ada.run(&["history", "lobby", "--limit", "2"]).exits(0).out;
    let numbers: Vec<_> = shown.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(numbers, ["#5", "#6"], "{shown}");
    let all = ada.reads("lobby");
    let times: Vec<_> = all.iter().map(|entry| entry["time"].as_str().unwrap()).collect();
    let numbers = |args: &[&str]| -> Vec<u64> {
        let args = [&["history", "lobby", "--json"], args].concat();
        ada.run(&args).exits(0).json().iter().map(|entry| entry["n"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&["--since", "3", "--before", "5"]), [3, 4]);
    assert_eq!(numbers(&["--since", "#2", "--limit", "2"]), [2, 3]);
    assert_eq!(numbers(&["--before", "last", "--limit", "2"]), [4, 5]);
    assert_eq!(numbers(&["--since", "last"]), [6]);
    assert_eq!(numbers(&["--since", "1h"]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(&["--before", "1h"]), [] as [u64; 0]);
    assert_eq!(numbers(&["--since", "2999-01-01"]), [] as [u64; 0]);
    // The first of the entries that were recorded in that millisecond.
    let at = |n: usize| times.iter().position(|time| *time == times[n - 1]).unwrap() as u64 + 1;
    let from_four: Vec<u64> = (at(4)..=6).collect();
    assert_eq!(numbers(&["--since", times[3]]), from_four);
    assert_eq!(numbers(&["--search", "three", "--since", "3"]), [3]);
    assert_eq!(numbers(&["--search", "three", "--since", "4"]), [] as [u64; 0]);
    assert_eq!(numbers(&["--search", "three", "--before", "3"]), [] as [u64; 0]);
    for (point, text) in
        [("last", "second"), ("#4", "first"), ("1h", "first"), (times[4], "second")]
    {
        let got = ada.run(&["get", "lobby", point, "-o", "-"]).exits(0);
        assert_eq!(got.out, text, "{point}");
    }
    let none = ada.run(&["get", "lobby", "2999-01-01", "-o", "-"]).exits(7);
    assert!(none.err.contains("no such file"), "{none:?}");
    for bad in ["0", "soon", ""] {
        ada.run(&["history", "lobby", "--before", bad]).exits(2);
        ada.run(&["get", "lobby", bad]).exits(2);
    }
    ada.run(&["room", "create", "empty"]).exits(0);
    ada.run(&["get", "empty", "last"]).exits(7);
}
