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
    let refused = ada.run(&["send", "audit", "x"]).exits(7);
    assert!(refused.err.contains("you may read this room, and not write to it"), "{refused:?}");
    ada.run(&["audit", "verify"]).exits(0);
}

#[test]
fn people__lost_device_of_another_person_is_revoked() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let devices = ada.run(&["people", "devices", "bob", "--json"]).exits(0).json();
    assert_eq!(devices.len(), 1);
    let id = devices[0]["device"].as_str().unwrap().to_owned();
    let refused = bob.run(&["people", "devices", "ada"]).exits(7);
    assert!(refused.err.contains("it needs the role owner"), "{refused:?}");
    let unknown = ada.run(&["devices", "revoke", "--user", "bob", "ffff0000"]).exits(7);
    assert!(unknown.err.contains("twinlock people devices bob"), "{unknown:?}");
    ada.run(&["devices", "revoke", "--user", "ada", &id]).exits(2);
    let revoked = ada.run(&["devices", "revoke", "--user", "bob", &id[..8]]).exits(0);
    assert!(revoked.err.contains(&format!("device {id} of bob is locked out")), "{revoked:?}");
    bob.run(&["rooms"]).exits(3);
    assert!(ada.run(&["people", "devices", "bob"]).exits(0).out.is_empty());
    let audit = ada.run(&["history", "audit"]).exits(0);
    assert!(audit.out.contains(&format!("revoked device {id} of bob")), "{audit:?}");
}

#[test]
fn invites__are_listed_and_revoked() {
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let link = ada.run(&["invite", "--user", "carol"]).exits(0).out.trim().to_owned();
    let all = ada.run(&["invites", "--all", "--json"]).exits(0).json();
    let states: Vec<_> = all.iter().map(|invite| invite["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["used", "used", "unused"]);
    assert_eq!((&all[1]["used_by"], &all[1]["made_by"]), (&"bob".into(), &"ada".into()));
    let unused = ada.run(&["invites"]).exits(0).out;
    assert_eq!(unused.lines().count(), 1);
    assert!(unused.contains("until") && unused.contains("member, for carol, by ada"), "{unused}");
    let id = all[2]["invite"].as_str().unwrap();
    // A member sees none, and revokes none.
    assert!(bob.run(&["invites", "--all"]).exits(0).out.is_empty());
    bob.run(&["invites", "revoke", id]).exits(7);
    let used = ada.run(&["invites", "revoke", all[1]["invite"].as_str().unwrap()]).exits(7);
    assert!(used.err.contains("was used before"), "{used:?}");
    let revoked = ada.run(&["invites", "revoke", &id[..6]]).exits(0);
    assert!(revoked.err.contains(&format!("invite {id} is revoked")), "{revoked:?}");
    let carol = host.stranger();
    carol.run(&["join", "--no-password", "--user", "carol", &link]).exits(3);
    let audit = ada.run(&["history", "audit"]).exits(0).out;
    assert!(audit.contains(&format!("revoked invite {id} as member made by ada")), "{audit}");
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
