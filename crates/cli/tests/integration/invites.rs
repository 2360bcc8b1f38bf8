//! One invite admits one person.

use crate::common::*;

#[test]
fn invite__concurrent_use_admits_one_and_refuses_other() {
    let host = Host::start();
    let ada = host.owner();
    for round in 0..5 {
        let link = ada.invites();
        let names = [format!("bob{round}"), format!("eve{round}")];
        let ends = names.clone().map(|name| {
            let person = host.stranger();
            let running = person.start(&["join", "--no-password", "--user", &name, &link]);
            (person, running)
        });
        let ended = ends.map(|(person, running)| (person, running.ended(LONG)));
        let mut codes = ended.iter().map(|(_, ran)| ran.code.unwrap()).collect::<Vec<_>>();
        codes.sort_unstable();
        assert_eq!(codes, [0, 3], "{ended:#?}");
        let people = ada.run(&["people", "--json"]).exits(0).json();
        for (name, (person, ran)) in names.iter().zip(&ended) {
            let is_in = people.iter().any(|one| one["user"] == **name);
            assert_eq!(is_in, ran.code == Some(0), "{name}: {people:?}");
            if is_in {
                person.run(&["send", "lobby", "here"]).exits(0);
            } else {
                // The loser of the race is refused inside its session, or at the login.
                assert!(
                    ran.err.contains("already used") || ran.err.contains("works once"),
                    "{ran:#?}"
                );
                assert!(!person.profile_file().exists());
            }
        }
        // A later use is refused as well.
        let late = host.stranger();
        let ran = late.run(&["join", "--no-password", "--user", "late", &link]).exits(3);
        assert!(ran.err.contains("works once"), "{ran:#?}");
        assert!(!late.profile_file().exists());
    }
    let people = ada.run(&["people", "--json"]).exits(0).json();
    assert_eq!(people.len(), 1 + 5, "{people:?}");
}

#[test]
fn invite__owner_invite_is_single_use_and_removed_from_disk() {
    let mut host = Host::start();
    let link = host.owner_link();
    let ada = host.owner();
    assert!(!host.data().join("owner-invite").exists());
    host.stranger().run(&["join", "--no-password", "--user", "eve", &link]).exits(3);
    // The next start does not mention it.
    host.terminate().exits(0);
    host.restart();
    assert!(!host.data().join("owner-invite").exists());
    assert!(!host.running().err().contains("twinlock://"), "{}", host.running().err());
    let people = ada.run(&["people", "--json"]).exits(0).json();
    assert_eq!(people.len(), 1);
}

#[test]
fn invite__names_public_or_requested_address() {
    let host = Host::start_with(&["--public-host", "chat.example.org:9000"]);
    assert!(host.owner_link().starts_with("twinlock://chat.example.org:9000/#"));
    let ada = host.stranger().by(host.address()).joins("ada", &host.owner_link());
    let link = |args: &[&str]| ada.run(args).exits(0).out.trim().to_owned();
    // The profile connects to another address than the links name.
    assert!(link(&["invite"]).starts_with("twinlock://chat.example.org:9000/#"));
    assert!(
        link(&["invite", "--public", "[2001:db8::1]:7"])
            .starts_with("twinlock://[2001:db8::1]:7/#")
    );
    let own_port = format!("twinlock://other.example.org:{}/#", host.port());
    let named = link(&["invite", "--public", "other.example.org"]);
    assert!(named.starts_with(&own_port), "{named}");
    // The address is only written into the link; the invite works through another one.
    host.stranger().by(host.address()).joins("bob", &named);
    for bad in ["", "a b", "x:0", "x:99999", "x:y"] {
        let ran = ada.run(&["invite", "--public", bad]).exits(2);
        assert!(ran.err.contains("--public"), "{bad}: {ran:?}");
    }
    // Without --public-host the link names the address that the profile connects to.
    let host = Host::start();
    let ada = host.owner();
    assert!(ada.invites().starts_with(&format!("twinlock://127.0.0.1:{}/#", host.port())));
}

#[test]
fn join__next_step_suggests_invite_to_owner_only() {
    let host = Host::start();
    let stranger = host.stranger();
    let link = host.owner_link();
    let ran = stranger.run(&["join", "--no-password", "--user", "ada", &link]).exits(0);
    assert!(ran.err.contains("twinlock invite") && ran.err.contains("twinlock chat"), "{ran:?}");
    let member = host.stranger();
    let link = stranger.invites();
    let ran = member.run(&["join", "--no-password", "--user", "bob", &link]).exits(0);
    assert!(!ran.err.contains("twinlock invite"), "members may not: {ran:?}");
}

#[test]
fn host_and_port__override_profile_address() {
    let host = Host::start_with(&["--host", "localhost"]);
    let ada = host.owner();
    let nowhere = ada.by(([127, 0, 0, 1], 1).into());
    let port = host.port().to_string();
    for args in [
        &["status", "--port", &port][..],
        &["--host", "localhost", "--port", &port, "people"],
        &["send", "--port", &port, "lobby", "hello"],
        &["history", "lobby", "--host", "127.0.0.1", "--port", &port],
    ] {
        nowhere.run(args).exits(0);
    }
    ada.run(&["--host", "localhost", "status"]).exits(0);
    let ran = ada.run(&["--timeout", "2s", "status", "--port", "1"]).exits(5);
    assert!(ran.err.contains("127.0.0.1:1"), "{ran:?}");
    for bad in [&["--host", "a b"][..], &["--host", ""], &["--port", "0"]] {
        let ran = ada.run(&[bad, &["status"]].concat()).exits(2);
        assert!(ran.err.contains("--host") && ran.err.contains("--port"), "{bad:?}: {ran:?}");
    }
    let mut unresolved = twinlock();
    unresolved.args(["serve", "--port", "0", "--host", "no such host", "--data"]);
    unresolved.arg(host.root().join("other"));
    let ran = Running::start(&mut unresolved).ended(LONG).exits(2);
    assert!(ran.err.contains("no such host") && ran.err.contains("0.0.0.0"), "{ran:?}");
}
