//! Use of the password while outsiders guess it: on a device, everything still works. Each proof
//! costs a second and 256 MiB, so this is one test with few of them.

use std::net::Ipv4Addr;

use crate::common::raw::{Card, neighbour};
use crate::common::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use twinlock_core::credential::{Credential, Password};
use twinlock_core::handshake::AwaitChallenge;
use twinlock_core::id::Name;
use twinlock_transport::OsEntropy;

const FIRST: &str = "correct horse battery";
const SECOND: &str = "staple staple staple";

fn knowing(person: &Person, password: &str, args: &[&str]) -> Ran {
    let mut command = person.command(args);
    command.env("TWINLOCK_PASSWORD", password).env("TWINLOCK_NEW_PASSWORD", SECOND);
    Running::start(&mut command).ended(LONG)
}

/// Guesses bob's password from this address until the server answers BUSY; returns the number.
async fn guesses(card: &Card, from: Ipv4Addr) -> usize {
    for n in 0.. {
        let guess = Password::new("a wrong password").unwrap();
        let bob = Credential::User(Name::new("bob").unwrap(), guess);
        let (_, hello) = AwaitChallenge::start(bob, None, &mut OsEntropy).unwrap();
        let mut io = card.server.tls_from(from).await.unwrap();
        io.write_all(&hello).await.unwrap();
        io.flush().await.unwrap();
        let mut header = [0; 4];
        io.read_exact(&mut header).await.unwrap();
        match header {
            [0x02, ..] => {}
            [0x0e, ..] => return n,
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

#[test]
fn guessing__passwd_and_revoke_are_not_delayed() {
    let host = Host::start();
    let ada = host.owner();
    let account = format!("bob@{}", host.address());
    let laptop = host.stranger();
    knowing(&laptop, FIRST, &["join", "--user", "bob", &ada.invites()]).exits(0);
    let phone = host.stranger();
    knowing(&phone, FIRST, &["login", &account, "--device", "phone"]).exits(0);
    let devices = phone.run(&["devices", "--json"]).exits(0).json();
    let id_of = |current: bool| {
        let device = devices.iter().find(|device| device["current"] == current).unwrap();
        device["device"].as_str().unwrap().to_owned()
    };

    // From bob's address, and from others.
    let card = Card::of(&ada);
    crate::common::raw::here().block_on(async {
        assert_eq!(guesses(&card, Ipv4Addr::LOCALHOST).await, 5);
        let mut elsewhere = 0;
        for n in 1..10 {
            elsewhere += guesses(&card, neighbour(n)).await;
        }
        assert_eq!(elsewhere, 20);
    });
    let ran = knowing(&host.stranger(), FIRST, &["login", &account]).exits(5);
    assert!(ran.err.contains("busy"), "{ran:?}");

    // A device does not wait, and a wrong password is reported as such.
    let ran = knowing(&phone, "another password", &["devices", "revoke", &id_of(false)]).exits(3);
    assert!(ran.err.contains("wrong password"), "{ran:?}");
    laptop.run(&["status"]).exits(0);
    knowing(&phone, FIRST, &["devices", "revoke", &id_of(false)]).exits(0);
    let ran = laptop.run(&["status"]).exits(3);
    assert!(ran.err.contains("login refused"), "{ran:?}");
    knowing(&phone, FIRST, &["passwd"]).exits(0);
    let ran = knowing(&phone, FIRST, &["passwd"]).exits(3);
    assert!(ran.err.contains("wrong password"), "{ran:?}");
    phone.run(&["send", "lobby", "still here"]).exits(0);

    // A user without a password gets a clear error.
    let ran = knowing(&ada, FIRST, &["passwd"]).exits(3);
    assert!(ran.err.contains("has no password"), "{ran:?}");
}
