//! `listen`: goes on where it ended, and hands each entry to a command until that is content.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod common;

use std::time::Duration;

use common::*;

#[test]
fn listen_goes_on_where_the_last_one_of_the_profile_ended() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run_with(&["send", "lobby"], "1\n2\n3\n4\n5\n").exits(0);
    let hear = |args: &[&str]| {
        let ran = bob.run(&[&["listen", "--json"][..], args].concat()).exits(0).json();
        texts(&ran).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(hear(&["lobby", "--since", "all", "--count", "2"]), ["1", "2"]);
    assert_eq!(hear(&["lobby", "--count", "2"]), ["3", "4"]);
    assert_eq!(hear(&["--count", "1"]), ["5"]);
    // Reading it again moves nothing back.
    assert_eq!(hear(&["lobby", "--since", "all", "--count", "1"]), ["1"]);
    assert_eq!(hear(&["lobby", "--since", "3", "--count", "1"]), ["4"]);
    ada.run(&["send", "lobby", "6"]).exits(0);
    assert_eq!(hear(&["lobby", "--count", "1"]), ["6"]);
}

#[test]
fn the_first_listen_begins_with_what_comes_and_names_where_it_came_from() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", "before"]).exits(0);
    for room in ["ops", "dev"] {
        ada.run(&["room", "create", room]).exits(0);
        bob.run(&["room", "join", room]).exits(0);
    }
    // It is not told when it has begun: what was said before that, it does not hear.
    let first = bob.start(&["listen", "--count", "1"]);
    while ada.run(&["send", "lobby", "now?"]).code == Some(0)
        && !first.wait_lines_for(1, Duration::from_secs(2))
    {}
    let first = first.ended(LONG).exits(0);
    assert!(first.out.contains("lobby ada: now?") && !first.out.contains("before"), "{first:?}");
    ada.run(&["send", "ops", "to ops"]).exits(0);
    ada.run(&["send", "@bob", "to bob"]).exits(0);
    ada.run(&["send", "lobby", "after"]).exits(0);
    let all = bob.run(&["listen", "--count", "3", "--json"]).exits(0).json();
    let mut heard: Vec<_> = all
        .iter()
        .filter(|entry| entry["kind"] == "text")
        .map(|e| format!("{} {}", e["conversation"].as_str().unwrap(), e["text"].as_str().unwrap()))
        .collect();
    heard.sort_unstable();
    assert_eq!(heard, ["@ada to bob", "lobby after", "ops to ops"]);
    ada.run(&["send", "dev", "deaf"]).exits(0);
    ada.run(&["send", "ops", "again"]).exits(0);
    let several = bob.run(&["listen", "ops", "lobby", "--count", "1"]).exits(0);
    assert!(several.out.contains(" ops ada: again"), "{several:?}");
    let one = bob.run(&["listen", "dev", "--count", "1"]).exits(0);
    assert!(one.out.contains(" ada: deaf") && !one.out.contains("dev"), "{one:?}");
}

#[test]
fn an_entry_is_handled_once_its_command_ended_with_0() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    let log = host.root().join("handled");
    // Takes `two` only at the second attempt.
    let script = format!(
        "read -r line; echo \"$line\" >>{log}; case $line in *two*) [ $(grep -c two {log}) = 2 ];; esac",
        log = log.display()
    );
    let ran =
        ada.run(&["listen", "lobby", "--since", "all", "--count", "3", "--exec", &script]).exits(0);
    assert!(ran.err.contains("exit status: 1 for entry 2 of lobby; trying again"), "{ran:?}");
    assert_eq!(ran.out, "");
    let handled = json_lines(&std::fs::read_to_string(&log).unwrap());
    assert_eq!(texts(&handled), ["one", "two", "two", "three"]);
    assert_eq!(handled[0]["conversation"], "lobby");
}

#[test]
fn after_a_kill_the_entry_whose_command_had_not_ended_comes_again() {
    let host = Host::start();
    let ada = host.owner();
    ada.run_with(&["send", "lobby"], "one\ntwo\nthree\n").exits(0);
    let script = "read -r line; echo \"$line\"; case $line in *two*) exit 7;; esac";
    let first = ada.start(&["listen", "lobby", "--since", "all", "--exec", script]);
    first.wait_err("for entry 2 of lobby");
    let first = first.killed();
    assert_eq!(texts(&first.json())[..2], ["one", "two"]);
    let second = ada.run(&["listen", "lobby", "--count", "2", "--exec", "cat"]).exits(0);
    assert_eq!(texts(&second.json()), ["two", "three"]);
    // A command that reads nothing of it handles it as well as any.
    ada.run(&["send", "lobby", &"x".repeat(32 * 1024)]).exits(0);
    ada.run(&["listen", "lobby", "--count", "1", "--exec", "true"]).exits(0);
    ada.run(&["send", "lobby", "last"]).exits(0);
    let last = ada.run(&["listen", "lobby", "--count", "1", "--exec", "cat"]).exits(0);
    assert_eq!(texts(&last.json()), ["last"]);
}
