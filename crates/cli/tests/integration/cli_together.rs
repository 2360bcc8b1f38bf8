//! Several commands of one profile at the same time.

use crate::common::*;

#[test]
fn profile__concurrent_commands_do_not_interfere() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let mut chat = bob.start(&["chat"]);
    chat.write("from chat\n");
    chat.wait_lines(1);
    let listen = bob.start(&["listen", "--since", "all"]);
    listen.wait_lines(1);
    for round in 0..5 {
        bob.run(&["send", "lobby", &format!("beside {round}")]).exits(0);
        bob.run(&["status"]).exits(0);
        bob.run(&["history", "lobby"]).exits(0);
        bob.run(&["rooms"]).exits(0);
        ada.run(&["send", "lobby", &format!("from ada {round}")]).exits(0);
    }
    listen.wait_lines(11);
    chat.write("still here\n");
    chat.wait_lines(1 + 10 + 1);
    assert!(chat.is_running());
    chat.end_input();
    let chat = chat.ended(LONG).exits(0);
    // Neither was disconnected, and neither missed an entry.
    assert_eq!(chat.err, "");
    assert!(!listen.err().contains("again"), "{}", listen.err());
    assert_eq!(ada.reads("lobby").len(), 12);
    let said: Vec<_> = chat.out.lines().filter(|line| line.contains("from ada")).collect();
    assert_eq!(said.len(), 5, "{chat:?}");
}

#[test]
fn sessions__over_limit_exit_7_and_outbox_is_still_sent() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("few.toml");
    std::fs::write(&config, "[limits]\nsessions-per-device = 3\n").unwrap();
    let host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let listeners: Vec<_> = (0..3)
        .map(|n| {
            let send = ada.run(&["send", "lobby", &format!("before {n}")]).exits(0);
            assert_eq!(send.err, "");
            let listen = ada.start(&["listen", "--since", "all", "--json"]);
            listen.wait_lines(n + 1);
            listen
        })
        .collect();
    for args in [&["people"][..], &["rooms"], &["history", "lobby"]] {
        let ran = ada.run(args).exits(7);
        assert!(ran.err.contains("sessions-per-device"), "{ran:?}");
    }
    // One of the listeners sends a script's lines: they are recorded and reported.
    let ran = ada.run_with(&["chat"], "hello\nagain\n").exits(0);
    assert!(ran.out.contains(" hello\n") && ran.out.contains(" again\n"), "{ran:?}");
    let ran = ada.run_with(&["chat"], "last\n/who\n").exits(7);
    assert!(ran.out.contains(" last\n"), "{ran:?}");
    let ran = ada.run(&["send", "--json", "lobby", "sent by another"]).exits(0);
    assert_eq!(ran.json().len(), 1, "{ran:?}");
    assert!(listeners.into_iter().all(|mut listen| listen.is_running()));
    let said = bob.reads("lobby");
    for once in ["hello", "again", "last", "sent by another"] {
        assert_eq!(texts(&said).iter().filter(|text| **text == once).count(), 1, "{once}");
    }
}

#[test]
fn sessions__full_device_still_allows_revoke_and_passwd() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("few.toml");
    std::fs::write(&config, "[limits]\nsessions-per-device = 1\n").unwrap();
    let host = Host::start_in(root, &["--config", config.to_str().unwrap()]);
    let knowing = |person: &Person, args: &[&str]| {
        let mut command = person.command(args);
        command.env("TWINLOCK_PASSWORD", "correct horse battery");
        command.env("TWINLOCK_NEW_PASSWORD", "another long battery");
        Running::start(&mut command).ended(LONG)
    };
    let ada = host.stranger();
    knowing(&ada, &["join", "--user", "ada", &host.owner_link()]).exits(0);
    let phone = host.stranger();
    let account = format!("ada@{}", host.address());
    knowing(&phone, &["login", &account, "--device", "phone"]).exits(0);
    let devices = ada.run(&["devices", "--json"]).exits(0).json();
    let phone_id = devices.iter().find(|device| device["label"] == "phone").unwrap();
    ada.run(&["send", "lobby", "one"]).exits(0);
    let listen = ada.start(&["listen", "lobby", "--since", "all"]);
    listen.wait_lines(1);
    ada.run(&["devices"]).exits(7);
    knowing(&ada, &["devices", "revoke", phone_id["device"].as_str().unwrap()]).exits(0);
    phone.run(&["people"]).exits(3);
    knowing(&ada, &["passwd"]).exits(0);
    // The device itself stays logged in.
    ada.run(&["send", "lobby", "two"]).exits(0);
    listen.wait_lines(2);
}

#[test]
fn outbox__concurrent_sends_are_recorded_once_and_all_acked() {
    let mut host = Host::start();
    let ada = host.owner();
    host.kill();
    let sends: Vec<_> = (0..3)
        .map(|n| {
            let send = ada.start(&["send", "--json", "lobby", &format!("number {n}")]);
            send.wait_err("trying again");
            send
        })
        .collect();
    host.restart();
    for send in sends {
        assert_eq!(send.ended(LONG).exits(0).json().len(), 1);
    }
    let mut all: Vec<_> = texts(&ada.reads("lobby")).iter().map(ToString::to_string).collect();
    all.sort_unstable();
    assert_eq!(all, ["number 0", "number 1", "number 2"]);
}
