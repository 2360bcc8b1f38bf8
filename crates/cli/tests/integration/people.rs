//! People: roles, suspension and removal, as commands.

use crate::common::*;
use twinlock_testing::SOON;

/// The users as `people` prints them: name, state and role.
fn listed(person: &Person) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    person.run(&["people"]).exits(0).out.lines().map(words).collect()
}

#[test]
fn people__owner_changes_suspends_restores_and_removes() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let carol = host.member(&ada, "carol");
    let role = ada.run(&["people", "role", "bob", "admin"]).exits(0);
    assert!(role.err.contains("the role of bob is admin"), "{role:?}");
    assert!(listed(&carol).contains(&"bob - admin".to_owned()), "{:?}", listed(&carol));
    // An admin manages members, and no one else.
    bob.run(&["people", "suspend", "carol"]).exits(0);
    carol.run(&["rooms"]).exits(3);
    assert!(listed(&bob).contains(&"carol suspended".to_owned()));
    bob.run(&["people", "restore", "Carol"]).exits(0);
    carol.run(&["send", "lobby", "here again"]).exits(0);
    let refused = bob.run(&["people", "suspend", "ada"]).exits(7);
    assert!(refused.err.contains("it needs the role owner"), "{refused:?}");
    let refused = carol.run(&["people", "remove", "bob", "--yes"]).exits(7);
    assert!(refused.err.contains("it needs the role owner"), "{refused:?}");
    let refused = ada.run(&["people", "role", "ada", "member"]).exits(7);
    assert!(refused.err.contains("the server would have no owner"), "{refused:?}");
    // A removal wants a confirmation, and ends a `listen` at once.
    let asks = ada.run(&["people", "remove", "carol"]).exits(2);
    assert!(asks.err.contains("--yes"), "{asks:?}");
    let listen = carol.start(&["listen", "lobby", "--since", "all"]);
    listen.wait_lines(1);
    let removed = ada.run(&["people", "remove", "carol", "--yes"]).exits(0);
    assert!(removed.err.contains("carol is removed"), "{removed:?}");
    listen.ended(SOON).exits(3);
    assert_eq!(listed(&ada).len(), 2);
    let audit = ada.run(&["history", "audit"]).exits(0);
    let expected =
        ["changed the role of bob", "suspended carol", "restored carol", "removed carol"];
    for (line, expected) in audit.out.lines().zip(expected) {
        assert!(line.contains(expected), "{line}");
    }
    assert_eq!(audit.out.lines().count(), expected.len());
    bob.run(&["history", "audit"]).exits(7);
    ada.run(&["send", "audit", "x"]).exits(7);
    ada.run(&["audit", "verify"]).exits(0);
}

#[test]
fn people__own_account_is_removed_with_its_password() {
    const PASSWORD: &str = "correct horse battery";
    let host = Host::start();
    let ada = host.owner();
    let bob = host.stranger();
    let with = |password: &str, args: &[&str]| {
        let mut command = bob.command(args);
        Running::start(command.env("TWINLOCK_PASSWORD", password)).ended(LONG)
    };
    with(PASSWORD, &["join", "--user", "bob", &ada.invites()]).exits(0);
    let remove = ["people", "remove", "bob", "--yes"];
    let wrong = with("not the password", &remove).exits(3);
    assert!(wrong.err.contains("wrong password"), "{wrong:?}");
    assert_eq!(listed(&ada).len(), 2);
    let removed = with(PASSWORD, &remove).exits(0);
    assert!(removed.err.contains("your account bob is removed"), "{removed:?}");
    assert_eq!(listed(&ada).len(), 1);
    bob.run(&["rooms"]).exits(3);
}
