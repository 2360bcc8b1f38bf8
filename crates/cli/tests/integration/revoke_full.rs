//! Revocations on a full disk: they take effect at once, are reported as not recorded, and are
//! recorded once there is space.

#![cfg(target_os = "linux")]

use crate::common::*;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const PASSWORD: &str = "correct horse battery";

/// Limits the size of the server's files, as on a full disk; `None`: no limit.
fn limit(running: &Running, room: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(running.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: room, maximum: None }).unwrap();
}

fn knowing(person: &Person, args: &[&str]) -> Ran {
    let mut command = person.command(args);
    Running::start(command.env("TWINLOCK_PASSWORD", PASSWORD)).ended(LONG)
}

#[test]
fn revocation__full_disk_bars_at_once_and_records_first() {
    let mut host = Host::start_with(&["--classic-port", "0"]);
    let ada = host.stranger();
    let link = host.owner_link();
    knowing(&ada, &["join", "--user", "ada", "--device", "laptop", &link]).exits(0);
    let phone = host.stranger();
    let account = format!("ada@{}", host.address());
    knowing(&phone, &["login", &account, "--device", "phone"]).exits(0);
    let devices = ada.run(&["devices", "--json"]).exits(0).json();
    let stolen = devices.iter().find(|device| device["label"] == "phone").unwrap();
    let stolen = stolen["device"].as_str().unwrap();
    ada.run(&["classic", "add", "lamp", "--to", "lobby"]).exits(0);
    let listening = phone.start(&["listen", "lobby", "--since", "all"]);
    ada.run(&["send", "lobby", "before"]).exits(0);
    listening.wait_lines(1);

    limit(host.running(), Some(0));
    let no = knowing(&ada, &["devices", "revoke", stolen]).exits(7);
    assert!(no.err.contains("revoked until the server restarts, but not recorded"), "{no:?}");
    let no = ada.run(&["classic", "revoke", "lamp"]).exits(7);
    assert!(no.err.contains("revoked until the server restarts, but not recorded"), "{no:?}");
    // The sessions have ended, and no new one is accepted.
    assert!(listening.ended(LONG).exits(3).err.contains("revoked"));
    phone.run(&["history", "lobby"]).exits(3);
    // Another device is not affected.
    assert_eq!(texts(&ada.reads("lobby")), ["before"]);

    limit(host.running(), None);
    ada.run(&["send", "lobby", "after"]).exits(0);
    // The revocations were recorded before any text, so they now survive a kill.
    host.kill();
    host.restart();
    phone.run(&["history", "lobby"]).exits(3);
    let devices = ada.run(&["devices", "--json"]).exits(0).json();
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!(ada.run(&["classic", "list", "--json"]).exits(0).out.trim(), "");
    assert_eq!(texts(&ada.reads("lobby")), ["before", "after"]);
}
