//! Several commands of one profile that use one file at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::*;
use twinlock_testing::FaultyNetwork;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB + 77;
/// Slow enough for all of them to run at the same time.
const RATE: &str = "4M";

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All content of the server, by hash.
fn stored(host: &Host) -> Vec<String> {
    let files = host.data().join("files");
    let dirs = names(&files).into_iter().filter(|dir| dir != "partial");
    dirs.flat_map(|dir| names(&files.join(dir))).collect()
}

struct Stage {
    host: Host,
    ada: Person,
    path: PathBuf,
    content: Vec<u8>,
    into: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let host = Host::start();
        let ada = host.owner();
        let (path, content) = (host.root().join("big.bin"), bytes(SIZE as usize, 3));
        fs::write(&path, &content).unwrap();
        let into = host.root().join("into");
        fs::create_dir(&into).unwrap();
        Self { host, ada, path, content, into }
    }

    /// Asserts that there is one content, with this number of entries, and nothing else.
    fn holds(&self, entries: usize) -> BTreeSet<String> {
        let read = self.ada.reads("lobby");
        assert_eq!(read.len(), entries, "{read:?}");
        let hash = blake3(&self.content);
        let hashes = read.iter().map(|entry| entry["file"]["blake3"].as_str().unwrap());
        assert!(hashes.into_iter().all(|got| got == hash), "{read:?}");
        assert_eq!(stored(&self.host), [hash]);
        assert_eq!(names(&self.host.data().join("files/partial/ada")), [""; 0]);
        self.ada.run(&["audit", "verify"]).exits(0);
        read.iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn blake3(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

fn id(ran: &Ran) -> String {
    ran.json().last().unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn put__concurrent_same_file_stores_content_once() {
    let stage = Stage::new();
    let put = ["put", stage.path.to_str().unwrap(), "lobby", "--json", "--limit", RATE];
    // Exactly one of them resumes the upload that a third command began.
    let network = FaultyNetwork::start(stage.host.address());
    let killed = stage.ada.by(network.address).start(&put);
    assert!(network.wait_bytes(2 * MIB, LONG), "{}", network.bytes());
    let begun = id(&killed.killed());
    let both = [stage.ada.start(&put), stage.ada.start(&put)];
    let sent = both.map(|putting| putting.ended(LONG).exits(0));
    let from = |ran: &Ran| ran.json()[0]["from"].as_u64().unwrap();
    assert_eq!(sent.iter().filter(|ran| from(ran) > 0).count(), 1, "{sent:?}");
    let ids: BTreeSet<_> = sent.iter().map(id).collect();
    assert!(ids.contains(&begun), "{begun} {ids:?}");
    assert_eq!(stage.holds(2), ids);
}

#[test]
fn put__concurrent_stdin_records_both_and_keeps_no_spool() {
    let stage = Stage::new();
    let put = ["put", "-", "--name", "in.bin", "lobby", "--json", "--limit", RATE];
    let start = || {
        let mut command = stage.ada.command(&put);
        let mut sh = std::process::Command::new("sh");
        // Its own standard input is the file.
        sh.args(["-c", "exec \"$0\" \"$@\" < \"$SOURCE\""]).env("SOURCE", &stage.path);
        sh.arg(command.get_program()).args(command.get_args());
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => _ = sh.env(name, value),
            None => _ = sh.env_remove(name),
        });
        command = sh;
        Running::start(&mut command)
    };
    let sent = [start(), start()].map(|putting| putting.ended(LONG).exits(0));
    assert_eq!(stage.holds(2), sent.iter().map(id).collect());
    assert_eq!(names(&stage.ada.home.join("state/default/spool")), [""; 0]);
}

#[test]
fn get__concurrent_same_destination_succeeds_once() {
    let stage = Stage::new();
    let put = ["put", stage.path.to_str().unwrap(), "lobby"];
    stage.ada.run(&put).exits(0);
    let file = stage.into.join("big.bin");
    let get = ["get", "lobby", "1", "-o", stage.into.to_str().unwrap()];
    let first = stage.ada.start(&[&get[..], &["--limit", RATE, "--json"]].concat());
    first.wait_lines(1);
    let second = stage.ada.run(&get).exits(2);
    assert!(second.err.contains("is being fetched by another program"), "{second:?}");
    assert!(!file.exists());
    first.ended(LONG).exits(0);
    assert!(fs::read(&file).unwrap() == stage.content);
    // In any order of their starts.
    for _ in 0..10 {
        fs::remove_file(&file).unwrap();
        let several: [_; 5] = std::array::from_fn(|_| stage.ada.start(&get));
        let mut won = 0;
        for getting in several {
            let ran = getting.ended(LONG);
            match ran.code {
                Some(0) => won += 1,
                Some(2) => assert!(
                    ran.err.contains("fetched by another program") || ran.err.contains("exists"),
                    "{ran:?}"
                ),
                _ => panic!("{ran:?}"),
            }
        }
        assert_eq!(won, 1);
        assert_eq!(names(&stage.into), ["big.bin"], "nothing is left over");
        assert!(fs::read(&file).unwrap() == stage.content);
    }
}
