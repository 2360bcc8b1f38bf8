//! One file over a connection that breaks repeatedly: it is cut, its client killed, its server
//! killed. The transferred bytes hardly exceed the file.
//!
//! `TWINLOCK_TORN=1024x100` sets the size to 1 GiB and the number of breaks to 100. The default has
//! fewer breaks, further apart: with so few, the overhead varies too much for a tighter bound.

use std::fs;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::*;
use twinlock_testing::FaultyNetwork;

const MIB: u64 = 1 << 20;
/// Bytes after a break that exceed a login.
const MOVES: u64 = 128 * 1024;

/// MiB and breaks.
fn scale() -> (u64, u64) {
    let scale = std::env::var("TWINLOCK_TORN").unwrap_or("128x6".into());
    let (size, breaks) = scale.split_once('x').expect("TWINLOCK_TORN is MIBxBREAKS");
    (size.parse().unwrap(), breaks.parse().unwrap())
}

/// Limit on the time from a break until bytes move again; on an idle machine it is rarely a tenth
/// of this.
const RESUMED: Duration = Duration::from_secs(5);

struct Torn {
    host: Host,
    ada: Person,
    network: FaultyNetwork,
    path: PathBuf,
    size: u64,
    breaks: u64,
    rng: Rng,
}

impl Torn {
    fn new() -> Self {
        let (mib, breaks) = scale();
        let size = mib * MIB + 4321;
        let host = Host::start();
        let ada = host.owner();
        let network = FaultyNetwork::start(host.address());
        let mut rng = Rng::from_env();
        let path = host.root().join("big.bin");
        let mut file = BufWriter::new(fs::File::create(&path).unwrap());
        for _ in 0..size / 8 {
            file.write_all(&rng.draw().to_le_bytes()).unwrap();
        }
        file.write_all(&[7; 7][..(size % 8) as usize]).unwrap();
        file.into_inner().unwrap().sync_all().unwrap();
        Self { host, ada, network, path, size, breaks, rng }
    }

    /// Runs the command until it ends, breaks it repeatedly, and asserts the transferred bytes.
    fn tear(&mut self, args: &[&str]) {
        let person = self.ada.by(self.network.address);
        let start = self.network.bytes();
        let mut running = person.start(args);
        let first = self.rng.within(0, 3);
        let (mut slowest, mut last) = (Duration::ZERO, start);
        for done in 0..self.breaks {
            // Spread over the file, at random.
            let part = self.size / (self.breaks + 1);
            let at = start + part * done + self.rng.within(part / 4, part);
            let at = at.max(last + MOVES);
            assert!(self.network.wait_bytes(at, LONG), "{at}: {}", running.err());
            // Each kind equally often.
            let kind = (done + first) % 3;
            match kind {
                0 => drop(self.network.cut()),
                1 => {
                    running.killed();
                    running = person.start(args);
                }
                _ => {
                    self.host.kill();
                    self.host.restart();
                }
            }
            let broken = Instant::now();
            last = self.network.bytes();
            assert!(self.network.wait_bytes(last + MOVES, LONG), "{kind}: {}", running.err());
            slowest = slowest.max(broken.elapsed());
        }
        running.ended(LONG).exits(0);
        let carried = self.network.bytes() - start;
        let ratio = carried as f64 / self.size as f64;
        eprintln!(
            "{}: {} breaks, {ratio:.4} of its size on the wire, moves again after {slowest:?}",
            args[0], self.breaks
        );
        assert!(ratio <= 1.02, "{ratio}");
        // After a kill of the server, this includes its start.
        assert!(slowest < RESUMED, "{slowest:?}");
    }

    /// Whether the file at `path` is identical, byte for byte.
    fn is(&self, path: &Path) -> bool {
        let open = |path: &Path| BufReader::with_capacity(1 << 20, fs::File::open(path).unwrap());
        let (mut ours, mut got) = (open(&self.path), open(path));
        loop {
            let (a, b) = (ours.fill_buf().unwrap(), got.fill_buf().unwrap());
            let n = a.len().min(b.len());
            if n == 0 || a[..n] != b[..n] {
                return a.is_empty() && b.is_empty();
            }
            ours.consume(n);
            got.consume(n);
        }
    }
}

#[test]
fn transfer__interruptions_cost_at_most_2_percent_extra() {
    let mut torn = Torn::new();
    let path = torn.path.to_str().unwrap().to_owned();
    torn.tear(&["put", &path, "lobby"]);
    let got = torn.host.root().join("got.bin");
    torn.tear(&["get", "lobby", "1", "-o", got.to_str().unwrap()]);
    assert!(torn.is(&got));
    assert_eq!(torn.ada.reads("lobby").len(), 1);
}
