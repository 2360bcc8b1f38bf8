//! Power loss. A kill loses nothing that was written; here data that was not synced is lost. The
//! tests build images of the disk as a crash could leave it at any moment. The real server has to
//! start on each image with everything that was acknowledged by then.
//!
//! `TWINLOCK_CRASHES=200` sets the number of images.

// The shim needs the GNU libc's dynamic linker.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;
use crate::disk::life::{Acking, Life, Stage, WRITERS};
use crate::disk::{Disk, EIO, Orders, Unsynced};

/// Longest duration of a sync, microseconds: longer than an ack takes from the server to the log.
const SLOW: u32 = 8_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The server runs.
    Steady,
    /// It is killed at times: the next one finds data that was never synced.
    Killed,
    /// Syncs fail at times, and it is killed.
    Failing,
}

impl Life {
    fn lived(kind: Kind, unsynced: Unsynced, time: Duration, rng: &mut Rng) -> Self {
        let mut stage = Stage::new(Orders { longest_sync: SLOW, unsynced, ..Orders::default() });
        let (orders, ada) = (stage.orders, stage.people[0].clone());
        let stop = Arc::new(AtomicBool::new(false));
        let mut writing = Vec::new();
        for (person, (name, target)) in stage.people.iter().zip(WRITERS) {
            let send = ["send", "--json", target];
            let (child, stdin, acks) = Acking::start(person, &send, &stage.disk);
            let (stop, rng) = (Arc::clone(&stop), Rng::from_seed(rng.draw()));
            let feeding = std::thread::spawn(move || feed(stdin, name, &stop, rng));
            writing.push((child, acks, feeding));
        }
        let putting = {
            let (disk, stop) = (Arc::clone(&stage.disk), Arc::clone(&stop));
            let (mut rng, dir) = (Rng::from_seed(rng.draw()), stage.host.root().join("to-put"));
            std::thread::spawn(move || put_files(&ada, &disk, &stop, &mut rng, &dir))
        };
        let (until, limit) = (Instant::now() + time, Instant::now() + time + LONG);
        while Instant::now() < until || (kind == Kind::Failing && stage.disk.faults() < 3) {
            assert!(Instant::now() < limit, "nothing is synced: {}", stage.host.log());
            let sync_error = if kind == Kind::Failing { EIO } else { 0 };
            stage.disk.order(Orders { sync_error, one_in: 6, ..orders });
            if kind != Kind::Steady && rng.within(0, 3) > 0 {
                stage.disk.kill_after(rng.within(0, 600) as u32);
                assert_eq!(stage.host.gone().code, None, "it is killed");
                stage.disk.order(orders);
                stage.host.restart();
            } else {
                std::thread::sleep(Duration::from_millis(rng.within(50, 500)));
            }
        }
        stage.disk.order(orders);
        stop.store(true, Ordering::Relaxed);
        for (mut child, acks, feeding) in writing {
            feeding.join().unwrap();
            assert_eq!(child.ended(), Some(0));
            acks.join().unwrap();
        }
        putting.join().unwrap();
        stage.life(kind)
    }
}

/// Lines of all lengths, in bursts and with pauses.
fn feed(mut stdin: ChildStdin, name: &str, stop: &AtomicBool, mut rng: Rng) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let burst = if rng.within(0, 10) == 0 { 60 } else { rng.within(1, 4) };
        for _ in 0..burst {
            let length = rng.within(0, 40).pow(2) as usize;
            writeln!(stdin, "{name} {n:05} {}", "x".repeat(length)).unwrap();
            n += 1;
        }
        std::thread::sleep(Duration::from_millis(rng.within(1, 60)));
    }
}

/// Uploads files of all sizes one after the other, retrying each until it is recorded.
fn put_files(ada: &Person, disk: &Arc<Disk>, stop: &AtomicBool, rng: &mut Rng, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let path = dir.join("some.bin");
    while !stop.load(Ordering::Relaxed) {
        let size = rng.within(1, 600).pow(2);
        let content: Vec<_> =
            (0..size.div_ceil(8)).flat_map(|_| rng.draw().to_le_bytes()).collect();
        std::fs::write(&path, content).unwrap();
        let put = ["put", path.to_str().unwrap(), "lobby", "--json"];
        let limit = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < limit, "a file is refused for ever");
            let (mut child, _, acks) = Acking::start(ada, &put, disk);
            let code = child.ended();
            acks.join().unwrap();
            match code {
                Some(0) => break,
                // The server's disk failed, or the server was away for too long.
                Some(5 | 7) => {}
                code => panic!("put: {code:?}"),
            }
        }
    }
}

#[test]
fn power_loss__server_starts_with_every_ack_and_file() {
    let mut rng = Rng::from_env();
    let images = scale("TWINLOCK_CRASHES", 12);
    let time = Duration::from_millis(if images < 100 { 1_500 } else { 8_000 });
    let began = Instant::now();
    let mut all = HashMap::new();
    let mut broken = Vec::new();
    let (few, some) = ((images / 6).max(2), (images / 3).max(2));
    let most = images.saturating_sub(few + some).max(2);
    for (kind, part) in [(Kind::Steady, few), (Kind::Killed, some), (Kind::Failing, most)] {
        let life = Life::lived(kind, Unsynced::None, time, &mut rng);
        assert_eq!(life.faults > 0, kind == Kind::Failing, "{kind:?}: {} faults", life.faults);
        let (tally, more) = life.judge(part, &mut rng);
        eprintln!("power: {kind:?}: {} records, {} faults, {tally:?}", life.ops.len(), life.faults);
        broken.extend(more);
        all.insert(format!("{kind:?}"), tally);
    }
    for why in &broken {
        eprintln!("BROKEN: {}", why.replace('\n', " | "));
    }
    let made: usize = all.values().map(|tally| tally.images).sum();
    eprintln!("power: {made} images in {:.1?}, {} broken", began.elapsed(), broken.len());
    assert!(made >= images, "{made} of {images} images");
    assert_eq!(broken, [""; 0]);
    assert!(all.values().all(|tally| tally.acks > tally.images), "{all:?}");
}

#[test]
fn power_loss__disk_that_ignores_fsync_is_detected() {
    let mut rng = Rng::from_env();
    for unsynced in [Unsynced::Files, Unsynced::Directories] {
        let time = Duration::from_millis(300);
        let life = Life::lived(Kind::Steady, unsynced, time, &mut rng);
        let broken = life.keeps_its_last_ack().unwrap_err();
        eprintln!("{unsynced:?} are not synced: {}", broken.lines().next().unwrap());
    }
}

#[test]
fn fsync__failed_commit_is_rewritten_before_ack() {
    for killed in [false, true] {
        let mut stage = Stage::new(Orders::default());
        stage.acks(&["send", "--json", "lobby", "ada 00000 before"], 0);
        stage.disk.order(Orders { sync_error: EIO, ..Orders::default() });
        stage.acks(&["send", "--json", "--timeout", "1s", "lobby", "ada 00001 fails"], 6);
        assert!(stage.host.log().contains("a commit failed"), "{}", stage.host.log());
        stage.disk.order(Orders::default());
        if killed {
            // No request is in progress.
            stage.host.kill();
            stage.host.restart();
        }
        stage.acks(&["send", "--json", "lobby", "ada 00002 after"], 0);
        let life = stage.life(if killed { Kind::Killed } else { Kind::Steady });
        assert!(life.faults > 0);
        life.keeps_its_last_ack().unwrap();
    }
}

#[test]
fn fsync__failed_upload_is_rewritten_before_ack() {
    let stage = Stage::new(Orders::default());
    let path = stage.host.root().join("some.bin");
    let put = ["put", path.to_str().unwrap(), "lobby", "--json"];
    // Creates the directories that the next uploads need.
    std::fs::write(&path, [7; 10]).unwrap();
    stage.acks(&put, 0);
    std::fs::write(&path, vec![7; 300_000]).unwrap();
    stage.disk.order(Orders { sync_error: EIO, ..Orders::default() });
    stage.acks(&put, 7);
    stage.disk.order(Orders::default());
    stage.acks(&put, 0);
    let life = stage.life(Kind::Steady);
    assert!(life.faults > 0);
    life.keeps_its_last_ack().unwrap();
}
