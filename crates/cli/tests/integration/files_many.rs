//! Many files and a large one, up and down: all arrive, and neither end needs much memory.
//!
//! `make files-run` does the same with 10,000 files of up to 1 MiB and one of 4 GiB. It uses a
//! release build, and prints times and memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Largest memory of a process at any time, bytes.
const MEMORY: u64 = 64 * MIB;
/// Timeout of one command; far more than it takes.
const TIME: Duration = Duration::from_secs(1200);

/// The amount of work.
struct Scale {
    files: u64,
    up_to: u64,
    large: u64,
}

fn scale() -> Scale {
    match std::env::var("TWINLOCK_TEST_FILES").as_deref() {
        Ok("full") => Scale { files: 10_000, up_to: MIB, large: 4 * KIB * MIB },
        Ok(other) => panic!("TWINLOCK_TEST_FILES={other}: only `full` is known"),
        Err(_) => Scale { files: 300, up_to: 64 * KIB, large: 192 * MIB },
    }
}

/// The peak memory of a process, as the kernel reports it.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().unwrap() * KIB)
}

/// Polls a process until it ends, because its peak memory is unknown afterwards.
struct Watched {
    most: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl Watched {
    fn of(pid: u32) -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let into = most.clone();
        let looking = std::thread::spawn(move || {
            while let Some(peak) = peak(pid) {
                into.store(peak, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { most, looking }
    }

    fn end(self) -> u64 {
        self.looking.join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}

struct Stage {
    host: Host,
    ada: Person,
}

impl Stage {
    /// Runs a command to its end; reports its duration, and its memory and the server's.
    fn run(&self, what: &str, bytes: u64, args: &[&str]) -> Ran {
        let began = Instant::now();
        let running = self.ada.start(args);
        let watched = Watched::of(running.pid());
        let ran = running.ended(TIME).exits(0);
        let took = began.elapsed();
        let (client, server) = (watched.end(), peak(self.host.running().pid()).unwrap());
        eprintln!(
            "{what}: {:.1} s, {:.0} MB/s; at most {:.1} MiB at the client and {:.1} at the server",
            took.as_secs_f64(),
            bytes as f64 / 1e6 / took.as_secs_f64(),
            client as f64 / MIB as f64,
            server as f64 / MIB as f64,
        );
        assert!(client > MIB, "{what}: its memory was not seen");
        assert!(client < MEMORY, "{what}: {client} bytes at the client");
        assert!(server < MEMORY, "{what}: {server} bytes at the server");
        ran
    }
}

/// Writes a file whose bytes occur in no other.
fn write(path: &Path, size: u64, rng: &mut Rng) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut file = BufWriter::with_capacity(256 * 1024, File::create(path).unwrap());
    let mut left = size;
    while left > 0 {
        let mut part = [0; 4096];
        let (seed, step) = (rng.draw(), rng.draw() | 1);
        for (at, word) in part.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&seed.wrapping_add(step.wrapping_mul(at as u64)).to_le_bytes());
        }
        let part = &part[..usize::try_from(left.min(4096)).unwrap()];
        hasher.update(part);
        file.write_all(part).unwrap();
        left -= part.len() as u64;
    }
    file.flush().unwrap();
    hasher.finalize()
}

fn hash_of(path: &Path) -> blake3::Hash {
    let (mut file, mut hasher) = (File::open(path).unwrap(), blake3::Hasher::new());
    let mut part = vec![0; 256 * 1024];
    while let got @ 1.. = file.read(&mut part).unwrap() {
        hasher.update(&part[..got]);
    }
    hasher.finalize()
}

#[test]
fn transfer__many_and_large_files_arrive_in_bounded_memory() {
    let Scale { files, up_to, large } = scale();
    let mut rng = Rng::from_env();
    let host = Host::start();
    let stage = Stage { ada: host.owner(), host };
    let (from, into) = (stage.host.root().join("from"), stage.host.root().join("into"));
    fs::create_dir(&into).unwrap();
    // Includes the smallest and the largest size.
    let mut sizes: Vec<_> = (2..files).map(|_| rng.within(0, up_to + 1)).collect();
    sizes.extend([0, up_to]);
    let bytes = sizes.iter().sum();
    let mut hashes = BTreeMap::new();
    for (at, size) in sizes.into_iter().enumerate() {
        let dir = from.join(format!("{}/{}", at % 7, at % 70));
        fs::create_dir_all(&dir).unwrap();
        let name = format!("f{at:05}.bin");
        let path = dir.join(name);
        let hash = write(&path, size, &mut rng);
        hashes.insert(path.strip_prefix(stage.host.root()).unwrap().to_owned(), hash);
    }
    let put = ["put", "-r", from.to_str().unwrap(), "lobby", "--quiet"];
    stage.run(&format!("{files} files up"), bytes, &put);
    fs::remove_dir_all(&from).unwrap();
    let (count, dir) = (files.to_string(), into.to_str().unwrap());
    let get = ["listen", "lobby", "--get", dir, "--since", "all", "--count", &count];
    let heard = stage.run(&format!("{files} files down"), bytes, &get);
    assert_eq!(heard.out.lines().count() as u64, files);
    let mut got = BTreeMap::new();
    let mut dirs = vec![into.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                got.insert(path.strip_prefix(&into).unwrap().to_owned(), hash_of(&path));
                fs::remove_file(path).unwrap();
            }
        }
    }
    assert!(got == hashes, "{} of {files} came as they were sent", got.len());

    let path = stage.host.root().join("large.bin");
    let hash = write(&path, large, &mut rng);
    let what = format!("{} MiB", large / MIB);
    let put = ["put", path.to_str().unwrap(), "lobby"];
    stage.run(&format!("{what} up"), large, &put);
    fs::remove_file(&path).unwrap();
    let n = (files + 1).to_string();
    let get = ["get", "lobby", &n, "-o", path.to_str().unwrap()];
    stage.run(&format!("{what} down"), large, &get);
    assert_eq!(hash_of(&path), hash);
    let partials = stage.host.data().join("files/partial/ada");
    assert_eq!(fs::read_dir(partials).unwrap().count(), 0);
}
