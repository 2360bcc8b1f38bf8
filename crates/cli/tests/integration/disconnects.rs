//! Messages are delivered exactly once over many disconnects: 200, with `make torture` 1000.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::raw::full;
use crate::common::*;
use twinlock_testing::FaultyNetwork;
use twinlock_testing::faulty_network::{Cut, ESTABLISHED};

/// Messages for each cut.
const PER_CUT: usize = 20;
/// An idle connection is cut as well.
const IDLE: Duration = Duration::from_millis(60);
/// The last line is sent after this time, even with fewer cuts.
const LAST: Duration = Duration::from_secs(150);

#[test]
fn reconnect__many_disconnects_deliver_once_in_order() {
    let cuts_wanted = if full() { 1_000 } else { 200 };
    let lines_sent = cuts_wanted * PER_CUT;
    let host = Host::start();
    let ada = host.owner();
    let bob = host.member(&ada, "bob");
    let mut rng = Rng::from_env();
    // Some more, because a connection may end before it is cut.
    let mut left = cuts_wanted + cuts_wanted / 50;
    let network = Arc::new(FaultyNetwork::cutting(host.address(), move || {
        left = left.checked_sub(1)?;
        let mut cut = Cut { bytes: u64::MAX, time: Duration::from_millis(rng.within(8, 45)) };
        match rng.within(0, 100) {
            // Within one of the two handshakes.
            0 | 1 => cut.bytes = rng.within(0, ESTABLISHED),
            // Anywhere in the data after them.
            2..20 => cut = Cut { bytes: rng.within(ESTABLISHED, 40_000), time: IDLE },
            // At a random time.
            _ => {}
        }
        Some(cut)
    }));
    let listen =
        ["listen", "lobby", "--since", "all", "--json", "--count", &lines_sent.to_string()];
    let listening = bob.by(network.address).start(&listen);
    let mut sending = ada.by(network.address).start(&["send", "--json", "lobby"]);
    let began = Instant::now();
    // Lines are fed at the pace of the cuts, so that there is always data in flight to cut.
    let mut stdin = sending.stdin.take().unwrap();
    let pace = Arc::clone(&network);
    let feeding = std::thread::spawn(move || {
        let mut lines = 0..lines_sent;
        for turn in 0.. {
            if lines.is_empty() {
                break;
            }
            // On a slow machine too, the lines must not run out before the cuts. If the cuts are
            // behind, feed a line only now and then, so that the next connection has something to
            // lose.
            let behind = (lines_sent - lines.len()) / PER_CUT > pace.cuts();
            // The last line follows the last cut; a connection that waits for its cut needs no
            // lines.
            let last = lines.len() == 1 && pace.cuts() < cuts_wanted && began.elapsed() < LAST;
            let some = match (last, behind) {
                (true, _) => 0,
                (_, false) => 8.min(lines.len().saturating_sub(1).max(1)),
                (_, true) => usize::from(turn % 16 == 0),
            };
            for n in lines.by_ref().take(some) {
                writeln!(stdin, "line {n:05}").unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let limit = Duration::from_secs(200);
    let sent = sending.ended(limit).exits(0);
    let heard = listening.ended(limit).exits(0);
    feeding.join().unwrap();
    let (cuts, made) = (network.cuts(), network.accepted());
    eprintln!(
        "network: {lines_sent} messages over {cuts} cuts of {made} connections in {:?}",
        began.elapsed()
    );

    assert!(cuts >= cuts_wanted, "{cuts}");
    let wanted = (0..lines_sent).map(|n| format!("line {n:05}")).collect::<Vec<_>>();
    let heard = heard.json();
    assert_eq!(texts(&heard), wanted);
    // Every ack matches the entry that all readers get.
    let acks = sent.json();
    assert_eq!(acks.len(), lines_sent);
    let read = bob.reads("lobby");
    assert_eq!(texts(&read), wanted);
    for (read, heard) in read.iter().zip(&heard) {
        assert_eq!(read, heard);
    }
    for ack in &acks {
        let n = usize::try_from(ack["n"].as_u64().unwrap()).unwrap();
        for field in ["n", "time", "id", "link"] {
            assert_eq!(ack[field], read[n - 1][field], "{field} of {n}");
        }
    }
    for person in [&ada, &bob] {
        person.run(&["audit", "verify"]).exits(0);
    }
}
