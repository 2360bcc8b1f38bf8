//! Every command retries while a server has no free connection slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::*;
use twinlock_testing::FaultyNetwork;
use twinlock_testing::faulty_network::Cut;

/// Nothing passes: the connection is closed before TLS.
const CLOSED: Cut = Cut { bytes: 1, time: Duration::MAX };
/// The server's first TLS messages pass.
const DURING_TLS: Cut = Cut { bytes: 2_000, time: Duration::MAX };

/// A network that closes the next `left` connections, and forwards later ones.
fn closing(host: &Host, left: &Arc<AtomicUsize>, cut: Cut) -> FaultyNetwork {
    let left = Arc::clone(left);
    let take = move |n: usize| n.checked_sub(1);
    FaultyNetwork::cutting(host.address(), move || {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| cut)
    })
}

#[test]
fn connection_slot__commands_retry_when_none_is_free() {
    let host = Host::start();
    let ada = host.owner();
    let password = ada.home.join("password");
    std::fs::write(&password, "open sesame now\n").unwrap();
    let password = password.to_str().unwrap();
    for cut in [CLOSED, DURING_TLS] {
        let left = Arc::new(AtomicUsize::new(0));
        let network = closing(&host, &left, cut);
        let through = ada.by(network.address);
        for args in [&["people"][..], &["status"], &["history", "lobby"], &["invite"], &["rooms"]] {
            left.store(3, Ordering::Relaxed);
            let ran = through.run(args).exits(0);
            assert_eq!(left.load(Ordering::Relaxed), 0, "{args:?}");
            assert!(ran.err.contains("no connection slot was free"), "{args:?}: {ran:?}");
        }
        let name = if cut.bytes == CLOSED.bytes { "bob" } else { "carl" };
        let link = ada.invites();
        left.store(2, Ordering::Relaxed);
        let join = ["join", "--user", name, "--password-file", password, &link];
        let guest = host.stranger().by(network.address);
        guest.run(&join).exits(0);
        left.store(2, Ordering::Relaxed);
        let account = format!("{name}@{}", network.address);
        let login = ["login", "--password-file", password, &account];
        host.stranger().run(&login).exits(0);
        assert_eq!(left.load(Ordering::Relaxed), 0);
    }
}

/// A connection may lose its slot to a newer one at any step before the server's READY.
#[test]
fn connection_slot__commands_retry_after_cut_during_login() {
    let host = Host::start();
    let ada = host.owner();
    // A login is 6.6 kB, both ways.
    for bytes in (500..=6_500).step_by(1_000) {
        let left = Arc::new(AtomicUsize::new(1));
        let network = closing(&host, &left, Cut { bytes, time: Duration::MAX });
        let ran = ada.by(network.address).run(&["people"]).exits(0);
        assert_eq!(network.accepted(), 2, "cut after {bytes} bytes");
        assert!(ran.err.contains("no connection slot was free"), "{bytes} bytes: {ran:?}");
    }
}

#[test]
fn connection_slot__commands_report_exhaustion_at_timeout() {
    let host = Host::start();
    let ada = host.owner();
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let network = closing(&host, &left, CLOSED);
    let through = ada.by(network.address);
    let ran = through.run(&["--timeout", "2s", "people"]).exits(5);
    assert!(ran.err.contains("no connection slot was free"), "{ran:?}");
    assert!(!ran.err.contains("is the server running"), "{ran:?}");
    assert!(left.load(Ordering::Relaxed) < usize::MAX - 2, "it tried again");
    let ran = through.run(&["send", "--timeout", "1s", "lobby", "later"]).exits(6);
    assert!(ran.err.contains("no connection slot was free"), "{ran:?}");
}

#[test]
fn connection_slot__many_concurrent_commands_all_succeed() {
    let host = Host::start();
    let ada = host.owner();
    let many: Vec<_> = (0..30).map(|_| ada.start(&["--quiet", "people"])).collect();
    for people in many {
        assert_eq!(people.ended(LONG).exits(0).out.lines().count(), 1);
    }
}
