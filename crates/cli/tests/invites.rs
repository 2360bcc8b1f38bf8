//! One invite, one person.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod common;

use common::*;

#[test]
fn of_two_who_use_one_invite_at_once_one_is_in_and_the_other_is_told_that_it_was_used() {
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
                // The loser of the race hears it from the session, or at the door.
                assert!(
                    ran.err.contains("used already") || ran.err.contains("works once"),
                    "{ran:#?}"
                );
                assert!(!person.profile_file().exists());
            }
        }
        // Later it is worth as little.
        let late = host.stranger();
        let ran = late.run(&["join", "--no-password", "--user", "late", &link]).exits(3);
        assert!(ran.err.contains("works once"), "{ran:#?}");
        assert!(!late.profile_file().exists());
    }
    let people = ada.run(&["people", "--json"]).exits(0).json();
    assert_eq!(people.len(), 1 + 5, "{people:?}");
}

#[test]
fn the_owners_invite_makes_one_owner_and_is_gone_from_the_disk() {
    let mut host = Host::start();
    let link = host.owner_link();
    let ada = host.owner();
    assert!(!host.data().join("owner-invite").exists());
    host.stranger().run(&["join", "--no-password", "--user", "eve", &link]).exits(3);
    // The next start is silent about it.
    host.terminate().exits(0);
    host.restart();
    assert!(!host.data().join("owner-invite").exists());
    assert!(!host.running().err().contains("twinlock://"), "{}", host.running().err());
    let people = ada.run(&["people", "--json"]).exits(0).json();
    assert_eq!(people.len(), 1);
}
