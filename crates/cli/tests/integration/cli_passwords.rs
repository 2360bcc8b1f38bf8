//! Passwords: their sources, their uses, and that they appear nowhere else. Each use costs a second
//! and 256 MiB, so this is one test with few of them.

use crate::common::*;

const FIRST: &str = "correct horse battery";
const SECOND: &str = "staple staple staple";

/// Runs a command with `password` in the environment.
fn knowing(person: &Person, password: &str, args: &[&str]) -> Ran {
    let mut command = person.command(args);
    Running::start(command.env("TWINLOCK_PASSWORD", password)).ended(LONG)
}

#[test]
fn password__restores_account_without_devices_and_is_not_logged() {
    let mut host = Host::start_with(&["--log-level", "debug", "--log-messages"]);
    // Shown once, by design; the log does not have it either.
    let owner_link = host.owner_link();
    let ada = host.owner();
    let file = host.root().join("password");
    std::fs::write(&file, format!("{FIRST}\r\n")).unwrap();
    let file = file.to_str().unwrap();
    let link = ada.invites();
    let bob = host.stranger();
    let ran =
        bob.run(&["join", "--user", "Bob", "--password-file", file, "--device", "laptop", &link]);
    assert!(ran.exits(0).err.contains("You are bob"));
    bob.run(&["-v", "send", "lobby", "from the laptop"]).exits(0);

    // Every device is lost; the server words are shown for comparison.
    let address = host.address().to_string();
    let account = format!("bob@{address}");
    let phone = host.stranger();
    let ran = knowing(&phone, "another password", &["login", &account]).exits(3);
    assert!(ran.err.contains("login refused: wrong password"), "{ran:?}");
    assert!(!phone.profile_file().exists());
    let ran =
        phone.run_with(&["login", &account, "--device", "phone", "--password-file", "-"], FIRST);
    assert!(ran.exits(0).err.contains("Server words"));
    assert_eq!(texts(&phone.reads("lobby")), ["from the laptop"]);
    let devices = phone.run(&["devices", "--json"]).exits(0).json();
    let labels: Vec<_> = devices.iter().map(|device| device["label"].clone()).collect();
    assert_eq!(labels, ["laptop", "phone"]);
    let laptop = devices[0]["device"].as_str().unwrap();

    // Revoking another device needs the password, and takes effect at once.
    let listen = bob.start(&["listen", "--since", "all"]);
    listen.wait_lines(1);
    let ran = phone.run(&["devices", "revoke", laptop]).exits(2);
    assert!(ran.err.contains("--password-file"), "{ran:?}");
    knowing(&phone, FIRST, &["devices", "revoke", &laptop[..6]]).exits(0);
    let ran = listen.ended(LONG).exits(3);
    assert!(ran.err.contains("revoked"), "{ran:?}");
    bob.run(&["status"]).exits(3);

    // A revoked device can log in again with the same profile.
    knowing(&bob, FIRST, &["login", &account]).exits(0);
    assert_eq!(bob.run(&["status", "--json"]).exits(0).json()[0]["user"], "bob");
    // But another user's profile is not overwritten.
    let ran = knowing(&ada, FIRST, &["login", &account]).exits(2);
    assert!(ran.err.contains("profile"), "{ran:?}");

    let mut passwd = phone.command(&["passwd"]);
    passwd.env("TWINLOCK_PASSWORD", FIRST).env("TWINLOCK_NEW_PASSWORD", SECOND);
    Running::start(&mut passwd).ended(LONG).exits(0);
    phone.run(&["status"]).exits(0);
    let tablet = host.stranger();
    knowing(&tablet, FIRST, &["login", &account]).exits(3);
    knowing(&tablet, SECOND, &["login", &account]).exits(0);

    // A device revokes itself without the password.
    let own = tablet.run(&["devices", "--json"]).exits(0).json();
    let own = own.iter().find(|device| device["current"] == true).unwrap();
    tablet.run(&["devices", "revoke", own["device"].as_str().unwrap()]).exits(0);
    tablet.run(&["status"]).exits(3);

    // No log contains a secret, at any level.
    let console = host.terminate().exits(0);
    let mut logs = vec![host.log(), console.out, console.err.replace(&owner_link, "")];
    for person in [&ada, &bob, &phone] {
        let log = person.home.join("state/default/client.log");
        logs.push(std::fs::read_to_string(log).unwrap());
    }
    let secrets = [&bob, &phone].map(|person| {
        let profile = person.profile_text();
        let line = profile.lines().find(|line| line.starts_with("secret")).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    });
    for log in &logs {
        assert!(!log.contains(FIRST) && !log.contains(SECOND));
        assert!(!log.contains("another password"));
        assert!(secrets.iter().all(|secret| !log.contains(secret.as_str())));
        for link in [&link, &owner_link] {
            assert!(!log.contains(link.split('#').nth(1).unwrap()));
        }
    }
    // The texts are there, because they were requested.
    assert!(logs[0].contains("from the laptop"));
}

#[test]
fn password__invalid_is_refused_and_keeps_invite_valid() {
    let host = Host::start();
    let ada = host.owner();
    let short = host.root().join("short");
    std::fs::write(&short, "short\n").unwrap();
    let join = ["join", "--user", "bob", "--password-file"];
    let link = ada.invites();
    let bob = host.stranger();
    let ran = bob.run(&[&join[..], &[short.to_str().unwrap(), &link]].concat()).exits(2);
    assert!(ran.err.contains("at least 8"), "{ran:?}");
    let ran = bob.run(&[&join[..], &["/nowhere/at/all", &link]].concat()).exits(2);
    assert!(ran.err.contains("/nowhere/at/all"), "{ran:?}");
    let ran = bob.run(&["login", "bob@127.0.0.1:1"]).exits(2);
    assert!(ran.err.contains("no terminal"), "{ran:?}");
    // The invite is still valid, also from standard input.
    let ran = bob.run_with(&["join", "--no-password", "--user", "bob", "-"], &format!("{link}\n"));
    ran.exits(0);
}
