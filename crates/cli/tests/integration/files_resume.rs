//! Files always arrive: after any kill or cut, a transfer resumes where it stopped. The transferred
//! bytes hardly exceed the file.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::common::*;
use rustix::process::Signal;
use twinlock_testing::FaultyNetwork;
use twinlock_testing::faulty_network::Cut;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB + 12_345;
/// Slow enough for a kill at a chosen point.
const RATE: &str = "16M";
/// Bytes that may be sent again after a kill: those in flight.
const LOST: u64 = MIB;

struct Stage {
    host: Host,
    ada: Person,
    network: FaultyNetwork,
    path: PathBuf,
    content: Vec<u8>,
}

impl Stage {
    fn new() -> Self {
        Self::with(|| None)
    }

    fn with(plan: impl FnMut() -> Option<Cut> + Send + 'static) -> Self {
        let host = Host::start();
        let ada = host.owner();
        let network = FaultyNetwork::cutting(host.address(), plan);
        let (path, content) = (host.root().join("big.bin"), bytes(SIZE as usize, 7));
        fs::write(&path, &content).unwrap();
        Self { host, ada, network, path, content }
    }

    /// A client that connects through the network.
    fn person(&self) -> Person {
        self.ada.by(self.network.address)
    }

    fn put(&self) -> [&str; 6] {
        ["put", self.path.to_str().unwrap(), "lobby", "--json", "--limit", RATE]
    }

    /// Uploads the file directly, without the faulty network.
    fn is_there(&self) {
        self.ada.run(&["put", self.path.to_str().unwrap(), "lobby"]).exits(0);
    }

    fn wait(&self, bytes: u64) {
        assert!(self.network.wait_bytes(bytes, LONG), "{} of {bytes}", self.network.bytes());
    }

    /// Asserts that the only file of the lobby has this content.
    fn holds(&self, content: &[u8]) {
        let entries = self.ada.reads("lobby");
        assert_eq!(entries.len(), 1, "{entries:?}");
        let got = self.host.root().join("check.bin");
        self.ada.run(&["get", "lobby", "1", "--force", "-o", got.to_str().unwrap()]).exits(0);
        assert!(fs::read(got).unwrap() == content);
    }

    fn carried_at_most(&self, most: u64, what: &str) {
        let carried = self.network.bytes();
        eprintln!("{what}: {carried} bytes for {SIZE}, {} more", carried.saturating_sub(SIZE));
        assert!(carried <= most, "{what}: {carried} bytes, at most {most}");
    }
}

fn parts(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn resume__killed_put_continues_as_the_same_message() {
    let stage = Stage::new();
    let mut ids = Vec::new();
    for at in [6, 13] {
        let putting = stage.person().start(&stage.put());
        stage.wait(at * MIB);
        let killed = putting.killed();
        ids.push(json_lines(&killed.out)[0]["id"].clone());
    }
    let done = stage.person().run(&stage.put()).exits(0).json();
    assert!(done[0]["from"].as_u64().unwrap() >= 12 * MIB, "{}", done[0]);
    ids.extend([done[0]["id"].clone(), done.last().unwrap()["id"].clone()]);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    stage.carried_at_most(SIZE * 102 / 100 + 2 * MIB, "put killed twice");
    stage.holds(&stage.content);
    // A finished upload is not resumed: the same command creates another entry.
    let again = stage.ada.run(&stage.put()).exits(0).json();
    assert_ne!(again.last().unwrap()["id"], ids[0]);
    assert_eq!(stage.ada.reads("lobby").len(), 2);
}

#[test]
fn resume__put_survives_server_kill() {
    let mut stage = Stage::new();
    let putting = stage.person().start(&stage.put());
    for at in [5, 12] {
        stage.wait(at * MIB);
        stage.host.kill();
        stage.host.restart();
    }
    let done = putting.ended(LONG).exits(0).json();
    assert!(
        done.iter().any(|event| event["from"].as_u64().is_some_and(|from| from > 0)),
        "{done:?}"
    );
    stage.carried_at_most(SIZE * 102 / 100 + 2 * LOST, "server killed twice");
    stage.holds(&stage.content);
}

#[test]
fn resume__cut_connections_add_few_bytes_to_put_and_get() {
    let mut rng = Rng::from_env();
    let mut left = 16;
    let stage = Stage::with(move || {
        left -= 1;
        let bytes = rng.within(2 * MIB, 4 * MIB);
        (left >= 0).then_some(Cut { bytes, time: LONG })
    });
    let path = stage.path.to_str().unwrap();
    stage.person().run(&["put", path, "lobby"]).exits(0);
    let (up, cuts) = (stage.network.bytes(), stage.network.cuts());
    eprintln!("up: {} more for {cuts} cuts", up - SIZE);
    assert!(cuts >= 5, "{cuts}");
    // A cut loses half a frame, and a login takes 10 KB.
    assert!(up < SIZE * 102 / 100 + cuts as u64 * MIB / 2, "{up}");
    let got = stage.host.root().join("down.bin");
    stage.person().run(&["get", "lobby", "1", "-o", got.to_str().unwrap()]).exits(0);
    let (down, cuts) = (stage.network.bytes() - up, stage.network.cuts() - cuts);
    eprintln!("down: {} more for {cuts} cuts", down - SIZE);
    assert!(down < SIZE * 102 / 100 + cuts as u64 * MIB / 2, "{down}");
    assert!(fs::read(got).unwrap() == stage.content);
    // Also to standard output, where nothing can be taken back.
    let streamed = stage.person().command(&["get", "lobby", "1", "-o", "-"]).output().unwrap();
    assert!(streamed.status.success() && streamed.stdout == stage.content);
    stage.ada.run(&["audit", "verify"]).exits(0);
}

#[test]
fn resume__killed_get_continues_from_its_part_file() {
    let stage = Stage::new();
    stage.is_there();
    let into = stage.host.root().join("into");
    fs::create_dir(&into).unwrap();
    let get = ["get", "lobby", "1", "-o", into.to_str().unwrap(), "--json", "--limit", RATE];
    for at in [8, 16] {
        let getting = stage.person().start(&get);
        stage.wait(at * MIB);
        getting.killed();
        assert_eq!(parts(&into), [".big.bin.part"]);
    }
    let had = fs::metadata(into.join(".big.bin.part")).unwrap().len();
    let done = stage.person().run(&get).exits(0).json();
    assert_eq!(done[0]["from"].as_u64(), Some(had), "all that had come counts");
    assert_eq!(parts(&into), ["big.bin"]);
    assert!(fs::read(into.join("big.bin")).unwrap() == stage.content);
    stage.carried_at_most(SIZE * 102 / 100 + 2 * LOST, "get killed twice");
}

#[test]
fn resume__get_survives_server_kill() {
    let mut stage = Stage::new();
    stage.is_there();
    let got = stage.host.root().join("got.bin");
    let get = ["get", "lobby", "1", "-o", got.to_str().unwrap(), "--limit", RATE];
    let getting = stage.person().start(&get);
    for at in [6, 13] {
        stage.wait(at * MIB);
        stage.host.kill();
        stage.host.restart();
    }
    getting.ended(LONG).exits(0);
    assert!(fs::read(got).unwrap() == stage.content);
    stage.carried_at_most(SIZE * 102 / 100 + 2 * LOST, "server killed twice");
}

#[test]
fn resume__corrupt_part_file_is_detected_and_replaced() {
    let stage = Stage::new();
    stage.is_there();
    let into = stage.host.root().join("into");
    fs::create_dir(&into).unwrap();
    let get = ["get", "lobby", "1", "-o", into.to_str().unwrap(), "--json", "--limit", RATE];
    let getting = stage.person().start(&get);
    stage.wait(10 * MIB);
    getting.killed();
    let part = fs::OpenOptions::new().read(true).write(true).open(into.join(".big.bin.part"));
    let part = part.unwrap();
    let mut byte = [0];
    part.read_exact_at(&mut byte, 12_345).unwrap();
    part.write_all_at(&[byte[0] ^ 1], 12_345).unwrap();
    drop(part);
    let done = stage.person().run(&get).exits(0).json();
    assert_eq!(done[0]["from"].as_u64(), Some(0));
    assert!(fs::read(into.join("big.bin")).unwrap() == stage.content);
    assert_eq!(parts(&into), ["big.bin"]);
}

#[test]
fn resume__changed_source_restarts_as_a_new_message() {
    let stage = Stage::new();
    let putting = stage.person().start(&stage.put());
    stage.wait(8 * MIB);
    let first = json_lines(&putting.killed().out)[0]["id"].clone();
    let changed = bytes(SIZE as usize, 8);
    fs::write(&stage.path, &changed).unwrap();
    let done = stage.person().run(&stage.put()).exits(0).json();
    assert_eq!(done[0]["from"].as_u64(), Some(0));
    assert_ne!(done.last().unwrap()["id"], first);
    stage.holds(&changed);
}

#[test]
fn resume__source_changed_under_same_mtime_is_detected() {
    let stage = Stage::new();
    let time = fs::metadata(&stage.path).unwrap().modified().unwrap();
    let putting = stage.person().start(&stage.put());
    stage.wait(8 * MIB);
    putting.killed();
    // Same size, time and inode; one byte differs.
    let file = fs::OpenOptions::new().write(true).open(&stage.path).unwrap();
    let mut changed = stage.content.clone();
    changed[1000] ^= 1;
    file.write_all_at(&changed[1000..1001], 1000).unwrap();
    file.set_modified(time).unwrap();
    let done = stage.person().run(&stage.put()).exits(0).json();
    assert_eq!(done[0]["from"].as_u64(), Some(0), "not by size and time alone");
    stage.holds(&changed);
}

#[test]
fn resume__source_changed_during_put_is_sent_in_final_form() {
    let stage = Stage::new();
    let putting = stage.person().start(&stage.put());
    stage.wait(8 * MIB);
    fs::OpenOptions::new().append(true).open(&stage.path).unwrap().write_all(b"more").unwrap();
    let done = putting.ended(LONG).exits(0);
    assert!(done.err.contains("sending it again"), "{}", done.err);
    stage.holds(&fs::read(&stage.path).unwrap());
}

#[test]
fn resume__interrupt_keeps_progress_and_prints_a_hint() {
    let stage = Stage::new();
    let putting = stage.person().start(&stage.put());
    stage.wait(8 * MIB);
    putting.signal(Signal::INT);
    let ended = putting.ended(LONG).exits(130);
    assert!(ended.err.contains("the same command resumes it"), "{}", ended.err);
    let done = stage.person().run(&stage.put()).exits(0).json();
    assert!(done[0]["from"].as_u64().unwrap() >= 7 * MIB, "{}", done[0]);
    stage.holds(&stage.content);
    let into = stage.host.root().join("into");
    fs::create_dir(&into).unwrap();
    let get = ["get", "lobby", "1", "-o", into.to_str().unwrap(), "--json", "--limit", RATE];
    let getting = stage.person().start(&get);
    let before = stage.network.bytes();
    stage.wait(before + 8 * MIB);
    getting.signal(Signal::TERM);
    getting.ended(LONG).exits(130);
    let done = stage.person().run(&get).exits(0).json();
    assert!(done[0]["from"].as_u64().unwrap() > 0, "{}", done[0]);
    assert!(fs::read(into.join("big.bin")).unwrap() == stage.content);
}

#[test]
fn resume__stdin_put_continues_with_the_same_input() {
    let stage = Stage::new();
    let put = ["put", "-", "--name", "in.bin", "lobby", "--json", "--limit", RATE];
    let start = || {
        let mut putting = stage.person().start(&put);
        let (mut stdin, content) = (putting.stdin.take().unwrap(), stage.content.clone());
        std::thread::spawn(move || stdin.write_all(&content).unwrap());
        putting
    };
    let putting = start();
    stage.wait(8 * MIB);
    let first = json_lines(&putting.killed().out)[0]["id"].clone();
    let done = start().ended(LONG).exits(0).json();
    assert_eq!(done.last().unwrap()["id"], first);
    assert!(done[0]["from"].as_u64().unwrap() >= 7 * MIB, "{}", done[0]);
    stage.holds(&stage.content);
    let spool = stage.ada.home.join("state/default/spool");
    assert_eq!(parts(&spool), [""; 0]);
}

#[test]
fn resume__server_down_is_retried_until_timeout() {
    let mut stage = Stage::new();
    stage.is_there();
    stage.host.kill();
    let path = stage.path.to_str().unwrap().to_owned();
    let ended = stage.ada.run(&["put", &path, "lobby", "--timeout", "1s"]).exits(5);
    assert!(ended.err.contains("the same command resumes"), "{}", ended.err);
    let dir = stage.host.root().to_str().unwrap();
    stage.ada.run(&["get", "lobby", "1", "-o", dir, "--timeout", "1s"]).exits(5);
    let putting = stage.ada.start(&["put", &path, "lobby"]);
    putting.wait_err("trying again");
    stage.host.restart();
    putting.ended(LONG).exits(0);
    assert_eq!(stage.ada.reads("lobby").len(), 2);
}

#[test]
fn get__content_damaged_on_server_is_refused() {
    let stage = Stage::new();
    stage.is_there();
    let hash = stage.ada.reads("lobby")[0]["file"]["blake3"].as_str().unwrap().to_owned();
    let stored = stage.host.data().join("files").join(&hash[..2]).join(&hash);
    let file = fs::OpenOptions::new().read(true).write(true).open(stored).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 20 * MIB).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 20 * MIB).unwrap();
    let into = stage.host.root().join("into");
    fs::create_dir(&into).unwrap();
    for _ in 0..2 {
        stage.ada.run(&["get", "lobby", "1", "-o", into.to_str().unwrap()]).exits(8);
        assert_eq!(parts(&into), [""; 0], "neither the name nor a part that blocks the next");
    }
    let streamed = stage.ada.run(&["send", "lobby", "still talking"]).exits(0);
    assert_eq!(streamed.err, "");
    let ended = stage.ada.command(&["get", "lobby", "1", "-o", "-"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(8));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("do not use them"), "{ended:?}");
    // Once the content is intact again, the download succeeds.
    file.write_all_at(&byte, 20 * MIB).unwrap();
    stage.ada.run(&["get", "lobby", "1", "-o", into.to_str().unwrap()]).exits(0);
    assert!(fs::read(into.join("big.bin")).unwrap() == stage.content);
}
