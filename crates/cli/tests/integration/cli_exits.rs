//! Each documented exit code, from the real binary.

use std::net::TcpListener;

use crate::common::*;
use rustix::process::Signal;
use twinlock_core::id::ServerKey;
use twinlock_core::invite::server_words;

/// The text before the server key in a profile.
const SERVER_KEY: &str = "server_key = \"";

/// Sets the TLS pin of a profile to another key, as with a forged certificate.
fn with_another_pin(person: &Person) {
    change(person, "pins = [\"", &"0".repeat(64));
}

/// Sets the server key of a profile to another one.
fn with_another_server_key(person: &Person) {
    // The group's generator: well formed, and no server's key.
    change(person, SERVER_KEY, "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76");
}

/// Replaces the 64 digits after `head`.
fn change(person: &Person, head: &str, digits: &str) {
    let mut text = person.profile_text();
    let at = text.find(head).expect("it is in the profile") + head.len();
    text.replace_range(at..at + 64, digits);
    std::fs::write(person.profile_file(), text).unwrap();
}

#[test]
fn exit_code__each_error_has_code_and_reason() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let stranger = host.stranger();
    let revoked = host.member(&ada, "carl");
    let device = revoked.run(&["devices", "--json"]).exits(0).json()[0]["device"].clone();
    revoked.run(&["devices", "revoke", &device.as_str().unwrap()[..8]]).exits(0);
    let mispinned = host.member(&ada, "dora");
    with_another_pin(&mispinned);
    let miskeyed = host.member(&ada, "emil");
    let words = |person: &Person| {
        let text = person.profile_text();
        let at = text.find(SERVER_KEY).unwrap() + SERVER_KEY.len();
        server_words(&ServerKey::from_hex(&text[at..at + 64]).unwrap())
    };
    let shown = words(&miskeyed);
    with_another_server_key(&miskeyed);
    let known = words(&miskeyed);
    // A port without a listener: bound, then released.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = bob.by(closed);
    ada.run(&["room", "create", "ops"]).exits(0);
    let used = ada.invites();
    host.stranger().joins("fred", &used);
    let broken = used.replace("/#AQ", "/#AA");
    let too_long = "x".repeat(32 * 1024 + 1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let stuck = bob.by(silent.local_addr().unwrap());

    let table: &[(&Person, &[&str], i32, &str)] = &[
        (&bob, &["status"], 0, ""),
        (&bob, &["send", "lobby", "hello"], 0, ""),
        (&bob, &["send", "lobby", "hello", "--flag"], 2, "--flag"),
        (&bob, &["send", "no such room!", "hello"], 2, "no such room!"),
        (&bob, &["send", "lobby", ""], 2, "empty"),
        (&bob, &["send", "lobby", &too_long], 2, "32768"),
        (&bob, &["room", "join", "@ada"], 2, "person"),
        (&bob, &["--timeout", "soon", "status"], 2, "soon"),
        (&bob, &["--profile", "other", "status"], 2, "join"),
        (&stranger, &["send", "lobby", "hello"], 2, "join"),
        (&stranger, &["join", "--no-password", "--user", "gina", "nonsense"], 2, "link"),
        (&stranger, &["join", "--no-password", "--user", "gina", &broken], 2, "link"),
        (&stranger, &["join", "--user", "gina", &ada.invites()], 2, "--password-file"),
        (&bob, &["join", "--no-password", "--user", "gina", &ada.invites()], 2, "profile"),
        (&stranger, &["join", "--no-password", "--user", "gina", &used], 3, "works once"),
        (&revoked, &["status"], 3, "login refused"),
        (&revoked, &["send", "lobby", "hello"], 3, "login refused"),
        (&revoked, &["chat"], 3, "login refused"),
        (&revoked, &["listen"], 3, "login refused"),
        (&miskeyed, &["status"], 4, "not the server you know"),
        (&miskeyed, &["status"], 4, &shown),
        (&miskeyed, &["status"], 4, &known),
        (&mispinned, &["status"], 4, "not the server this profile knows"),
        (&mispinned, &["send", "lobby", "hello"], 4, "not the server this profile knows"),
        (&mispinned, &["listen"], 4, "not the server this profile knows"),
        (&away, &["status"], 5, "no connection"),
        (&away, &["history", "lobby"], 5, "no connection"),
        (&away, &["--timeout", "1s", "send", "lobby", "queued"], 6, "not recorded"),
        (&bob, &["room", "create", "ops"], 7, "taken"),
        (&bob, &["room", "join", "nowhere"], 7, "no such room"),
        (&bob, &["history", "nowhere"], 7, "nowhere"),
        (&bob, &["send", "nowhere", "hello"], 7, "no such room"),
        (&bob, &["send", "@nobody", "hello"], 7, "no such"),
        (&bob, &["listen", "nowhere"], 7, "nowhere"),
        (&bob, &["chat", "nowhere"], 7, "nowhere"),
        (&bob, &["invite"], 7, "may not"),
        (&bob, &["devices", "revoke", "zzzz"], 7, "zzzz"),
        (&bob, &["--timeout", "300ms", "listen"], 9, "timed out"),
        (&stuck, &["--timeout", "300ms", "status"], 9, "timed out"),
    ];
    for (person, args, code, words) in table {
        let ran = person.run_with(args, "hi\n");
        assert_eq!(ran.code, Some(*code), "{args:?}: {ran:#?}");
        assert!(ran.err.contains(words), "{args:?}: {ran:#?}");
        assert!(!ran.err.contains("panicked"), "{ran:#?}");
        if *code != 0 {
            assert!(ran.err.lines().count() <= 14, "short: {ran:#?}");
        }
    }
    // The next command that connects sends the queued message.
    bob.run(&["send", "lobby", "and this"]).exits(0);
    assert_eq!(texts(&bob.reads("lobby")), ["hello", "queued", "and this"]);
}

#[test]
fn exit_code__interrupt_and_terminate_give_130() {
    let host = Host::start();
    let ada = host.owner();
    for signal in [Signal::INT, Signal::TERM] {
        for args in [&["listen", "--since", "all"][..], &["chat"], &["send", "lobby"]] {
            // A text of its own: that of the round before is in the history already.
            let text = format!("up, {} {signal:?}?", args[0]);
            let mut running = ada.start(args);
            // The first output shows that it is up and handles signals.
            if args[0] == "listen" {
                ada.run(&["send", "lobby", &text]).exits(0);
                running.wait_lines(1);
            } else {
                running.write(&format!("{text}\n"));
                if args[0] == "chat" {
                    running.wait_lines(1);
                } else {
                    while !ada
                        .run(&["history", "lobby", "--limit", "1"])
                        .exits(0)
                        .out
                        .contains(&text)
                    {}
                }
            }
            // The end of its input would end it too, with success.
            let input = running.stdin.take();
            running.signal(signal);
            let ran = running.ended(LONG);
            drop(input);
            assert_eq!(ran.code, Some(130), "{args:?} {signal:?}: {ran:#?}");
        }
    }
}

#[test]
fn error__server_names_data_directory_or_port_in_use() {
    let host = Host::start();
    let data = host.data();
    let mut second = twinlock();
    second.args(["serve", "--port", "0", "--data"]).arg(&data);
    let ran = Running::start(&mut second).ended(LONG).exits(2);
    assert!(ran.err.contains("another"), "{ran:#?}");

    let taken = host.port().to_string();
    let mut same_port = twinlock();
    same_port.args(["serve", "--port", &taken, "--data"]).arg(host.root().join("other"));
    let ran = Running::start(&mut same_port).ended(LONG).exits(2);
    assert!(ran.err.contains(&taken), "{ran:#?}");
}

#[test]
fn error__refused_file_name_states_file_name_rule() {
    let host = Host::start();
    let ada = host.owner();
    let file = ada.home.join("two\nlines");
    std::fs::write(&file, "x").unwrap();
    let (file, long) = (file.to_str().unwrap(), "x".repeat(256));
    for args in [&["put", file, "lobby"][..], &["put", file, "lobby", "--name", &long]] {
        let ran = ada.run(args).exits(7);
        for words in ["255 bytes", "newlines", "--name"] {
            assert!(ran.err.contains(words), "{words}: {ran:?}");
        }
        assert!(!ran.err.contains("1 to 32"), "{ran:?}");
    }
    ada.run(&["put", file, "lobby", "--name", "one line"]).exits(0);
}

#[test]
fn error__refusal_names_room_or_person() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    bob.run(&["room", "create", "hidden"]).exits(0);
    let file = ada.home.join("file");
    std::fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    for (args, about) in [
        (&["send", "#hidden", "hello"][..], "hidden"),
        (&["send", "@nobody", "hello"], "@nobody"),
        (&["put", file, "hidden"], "hidden"),
        (&["get", "hidden", "1"], "hidden"),
        (&["history", "hidden"], "hidden"),
        (&["room", "members", "hidden"], "hidden"),
        (&["room", "topic", "hidden", "new"], "hidden"),
        (&["room", "create", "hidden"], "hidden"),
        (&["room", "join", "nowhere"], "nowhere"),
        (&["room", "leave", "lobby"], "cannot be left"),
    ] {
        let ran = ada.run(args).exits(7);
        assert!(ran.err.contains(about), "{args:?}: {ran:?}");
    }
}

#[test]
fn error__too_large_request_states_the_limit() {
    let host = Host::start();
    let ada = host.owner();
    let long = "x".repeat(70_000);
    for (args, words) in [
        (&["room", "topic", "lobby", &long][..], "at most 512 bytes"),
        (&["room", "create", "new", "--topic", &long], "at most 512 bytes"),
        (&["history", "lobby", "--search", &long], "at most 256 bytes"),
    ] {
        let ran = ada.run(args).exits(7);
        assert!(ran.err.contains(words), "{ran:?}");
    }
    let ran = ada.run(&["put", "--json", "missing", "lobby"]).exits(2);
    assert_eq!(ran.json()[0]["event"], "failed", "{ran:?}");
}

#[test]
fn notice__adjusted_or_missing_values_are_reported() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["send", "lobby", "morning"]).exits(0);
    let found = ada.run(&["history", "lobby", "--search", "m"]).exits(0);
    assert!(found.out.is_empty() && found.err.contains("nothing was found"), "{found:?}");
    assert_eq!(ada.run(&["history", "lobby", "--search", "mor"]).exits(0).err, "");
    let invite = ada.run(&["invite", "--json", "--expires", "100d"]).exits(0);
    for words in ["the server shortens the invite", "works on this machine only"] {
        assert!(invite.err.contains(words), "{words}: {invite:?}");
    }
    for public in ["[::ffff:127.0.0.1]:7", "ip6-localhost:7"] {
        let invite = ada.run(&["invite", "--public", public]).exits(0);
        assert!(invite.err.contains("works on this machine only"), "{invite:?}");
    }
    let account = format!("eve@{}", host.address());
    for file in ["/dev/null", "/etc/passwd"] {
        let mut login = ada.command(&["--profile", "eve", "login", "--ca", file, &account]);
        let ran = Running::start(login.env("TWINLOCK_PASSWORD", "correct horse battery"));
        let ran = ran.ended(LONG).exits(2);
        assert!(ran.err.contains("the file has no certificate"), "{ran:?}");
    }
    let no = ada.run(&["devices", "revoke", "0123456789"]);
    assert!(no.err.contains("no device of yours begins with"), "{no:?}");
}
