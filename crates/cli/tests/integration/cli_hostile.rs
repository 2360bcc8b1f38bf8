//! Hostile text is harmless to the terminal and to the log.

use crate::common::*;
use twinlock_client::enrol::{self, NewUser};
use twinlock_client::home::Home;
use twinlock_core::id::Name;
use twinlock_core::invite::InviteLink;

/// Clears the screen, sets a title, colours, moves up, changes the reading direction, hides text,
/// and continues with forged lines.
const EVIL: &str = "start\u{1b}[2J\u{1b}]0;title\u{7}\u{1b}[31m\u{9b}1A\u{90}q\u{9c}\r\u{8}\u{7f}\
                    \u{202e}drow\u{2066}\u{200b}\u{feff}\u{e0041}\u{2028}12:00 bob: unsaid\n\
                    12:00 bob: forged\n2026-01-01T00:00:00.000Z  INFO root logged in\nend";

/// Asserts that nothing in the text acts on a terminal or misleads a reader.
#[track_caller]
fn assert_harmless(text: &str) {
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{2028}'..='\u{202e}').contains(&c)
            || ('\u{2060}'..='\u{206f}').contains(&c)
            || ('\u{e0000}'..='\u{e0fff}').contains(&c)
            || c == '\u{feff}'
    };
    let found = text.chars().find(|c| harmful(*c));
    assert_eq!(found, None, "{text:?}");
}

/// Asserts that no line begins with a forged part of `EVIL`.
#[track_caller]
fn assert_unforged(text: &str) {
    for line in text.lines() {
        for forged in ["12:00 bob", "2026-01-01T00:00:00", "end", "* root"] {
            assert!(!line.starts_with(forged), "{text:?}");
        }
    }
}

#[test]
fn untrusted_text__is_harmless_in_history_listen_and_chat() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    ada.run(&["send", "lobby", EVIL]).exits(0);

    let read = bob.run(&["history", "lobby"]).exits(0);
    assert_harmless(&read.out);
    assert_unforged(&read.out);
    assert!(read.out.contains(" ada: start[2J]0;title[31m1Aqdrow\n      12:00 bob: unsaid\n"));

    for args in [
        &["listen", "lobby", "--since", "all", "--count", "1"][..],
        &["history", "lobby", "--search", "forged"],
    ] {
        let heard = bob.run(args).exits(0);
        assert_harmless(&heard.out);
        assert_unforged(&heard.out);
        assert!(heard.out.contains("forged"), "{heard:?}");
    }
    for args in [
        &["listen", "lobby", "--since", "all", "--count", "1", "--json"][..],
        &["history", "lobby", "--json"],
    ] {
        let heard = bob.run(args).exits(0);
        assert_harmless(&heard.out);
        // In JSON it is one line, and the text is complete.
        assert_eq!(heard.out.lines().count(), 1);
        assert_eq!(heard.json()[0]["text"], EVIL);
    }

    let mut chat = bob.start(&["chat"]);
    chat.write("here\n");
    chat.wait_lines(1);
    ada.run(&["send", "lobby", EVIL]).exits(0);
    chat.wait_lines(5);
    chat.write("/history\n");
    chat.end_input();
    let chat = chat.ended(LONG).exits(0);
    assert_harmless(&chat.out);
    assert_unforged(&chat.out);
    assert!(chat.out.matches("forged").count() >= 2, "{chat:?}");
}

#[test]
fn untrusted_text__topics_and_labels_are_harmless_in_lists() {
    let host = Host::start();
    let ada = host.owner();
    ada.run(&["room", "create", "ops", "--topic", EVIL]).exits(0);
    ada.run(&["room", "topic", "ops", EVIL]).exits(0);
    let home = host.root().join("evil");
    let link = InviteLink::parse(&ada.invites()).unwrap();
    // A profile rejects control characters, but accepts all other characters.
    let label = EVIL.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
    assert!(label.contains('\u{202e}'));
    let user = Name::new("eve").unwrap();
    let route = twinlock_client::Route::default();
    let new = NewUser { user, label, password: None, require_binding: false, route };
    let at = Home::at(&home);
    let profile = Name::new("default").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let joined = runtime.block_on(enrol::join(&at, &profile, &link, new));
    joined.expect("a label is any text");
    let eve = Person { home, address: None };

    for args in [&["rooms"][..], &["room", "topic", "ops"], &["history", "ops"]] {
        let seen = ada.run(args).exits(0);
        assert_harmless(&seen.out);
        assert_unforged(&seen.out);
        assert!(seen.out.contains("start"), "{seen:?}");
    }
    for args in [&["rooms", "--joinable"][..], &["devices"], &["people"], &["status"]] {
        let seen = eve.run(args).exits(0);
        assert_harmless(&seen.out);
        assert_unforged(&seen.out);
        let json = eve.run(&[args, &["--json"][..]].concat()).exits(0);
        assert_harmless(&json.out);
    }
    assert_eq!(ada.run(&["rooms"]).out.lines().count(), 2);
    assert_eq!(eve.run(&["devices"]).out.lines().count(), 1);
    let room = ada.run(&["rooms", "--json"]).exits(0).json();
    assert_eq!(room[1]["topic"], EVIL);
    let chat = eve.run_with(&["chat"], "/rooms\n").exits(0);
    assert_harmless(&chat.out);
    assert_unforged(&chat.out);
    assert!(chat.out.contains("ops"), "{chat:?}");
}

#[test]
fn untrusted_text__cannot_forge_a_log_line() {
    for json in [false, true] {
        let mut host = Host::start_with(if json {
            &["--log-messages", "--log-json", "--log-level", "debug"]
        } else {
            &["--log-messages"]
        });
        let ada = host.owner();
        ada.run(&["send", "lobby", EVIL]).exits(0);
        ada.run(&["room", "create", "ops", "--topic", EVIL]).exits(0);
        host.running().wait_err("start");
        let console = host.terminate().exits(0);
        let log = host.log();
        for log in [&log, &console.err] {
            assert_harmless(log);
            assert_unforged(log);
        }
        let told = log.lines().find(|line| line.contains("start")).expect("it was logged");
        assert!(told.contains("forged") && told.contains("root logged in"), "{told}");
        // The server itself wrote each line of the file.
        for line in log.lines() {
            let own = if json {
                serde_json::from_str::<serde_json::Value>(line).is_ok()
            } else {
                line.starts_with("20") && !line.starts_with("2026-01-01T00:00:00")
            };
            assert!(own, "{line:?}");
        }
    }
}
