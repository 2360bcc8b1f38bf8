//! Full disks: the error of a file operation names the remedy, nothing is lost, and the same
//! command succeeds once there is space.
//!
//! The tests limit the file size of a process. A write then fails in the same way and place as on a
//! full disk, on any machine and without root. For a running server the limit can be removed again.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB + 345;
/// Largest file size on a full disk; everything except a file in transfer is smaller.
const ROOM: u64 = 6 * MIB;
/// Less than SQLite's files for an open database.
const LITTLE: u64 = 16 * 1024;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The same command with a limit of `room` bytes on every file.
fn cramped(command: &Command, room: u64) -> Command {
    let mut cramped = Command::new("sh");
    let script = format!("ulimit -S -f {}; exec \"$0\" \"$@\"", room / 512);
    cramped.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => cramped.env(name, value),
            None => cramped.env_remove(name),
        };
    }
    cramped
}

fn run_cramped(person: &Person, args: &[&str]) -> Ran {
    Running::start(&mut cramped(&person.command(args), ROOM)).ended(LONG)
}

/// Limits the file size of a running process from now on.
fn limit(running: &Running, room: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(running.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: room, maximum: None }).unwrap();
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
        let (path, content) = (host.root().join("big.bin"), bytes(SIZE as usize, 5));
        fs::write(&path, &content).unwrap();
        let into = host.root().join("into");
        fs::create_dir(&into).unwrap();
        Self { host, ada, path, content, into }
    }

    fn put(&self) -> [&str; 4] {
        ["put", self.path.to_str().unwrap(), "lobby", "--json"]
    }

    fn partials(&self) -> Vec<String> {
        names(&self.host.data().join("files/partial/ada"))
    }
}

/// Asserts that the error names the problem and the remedy.
#[track_caller]
fn says_full(ran: &Ran, problem: &str) {
    assert!(ran.err.contains(problem), "{ran:?}");
    assert!(ran.err.contains("free space"), "{ran:?}");
}

#[test]
fn get__full_disk_is_reported_and_later_resumes() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let get = ["get", "lobby", "1", "-o", stage.into.to_str().unwrap(), "--json"];
    let part = stage.into.join(".big.bin.part");
    for _ in 0..2 {
        let full = run_cramped(&stage.ada, &get).exits(2);
        says_full(&full, "File too large");
        assert!(full.err.contains(part.to_str().unwrap()), "{full:?}");
        let failed = full.json().pop().unwrap();
        assert_eq!((failed["event"].as_str(), failed["exit"].as_u64()), (Some("failed"), Some(2)));
        assert_eq!(names(&stage.into), [".big.bin.part"], "nothing under the final name");
        assert_eq!(fs::metadata(&part).unwrap().len(), ROOM, "what had room is kept");
    }
    let done = stage.ada.run(&get).exits(0).json();
    assert_eq!(done[0]["from"].as_u64(), Some(ROOM));
    assert_eq!(names(&stage.into), ["big.bin"]);
    assert!(fs::read(stage.into.join("big.bin")).unwrap() == stage.content);
}

#[test]
fn get__full_stdout_is_reported_and_not_retried() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let mut command = stage.ada.command(&["get", "lobby", "1", "-o", "-"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = command.stdout(full).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("output cannot be written to: No space left on device"), "{said}");
}

#[test]
fn listen__full_disk_stops_before_file_and_next_run_resumes() {
    let stage = Stage::new();
    let listen = ["listen", "lobby", "--get", stage.into.to_str().unwrap(), "--count", "3"];
    stage.ada.run(&["send", "lobby", "long ago"]).exits(0);
    stage.ada.run(&["listen", "lobby", "--since", "all", "--count", "1"]).exits(0);
    stage.ada.run(&["send", "lobby", "before"]).exits(0);
    stage.ada.run(&stage.put()).exits(0);
    stage.ada.run(&["send", "lobby", "after"]).exits(0);
    let full = run_cramped(&stage.ada, &listen).exits(2);
    says_full(&full, "File too large");
    assert!(full.out.contains("before") && !full.out.contains("after"), "{full:?}");
    let heard = stage.ada.run(&[&listen[..5], &["2"]].concat()).exits(0).out;
    assert!(!heard.contains("before"), "{heard}");
    assert!(heard.contains("saved as") && heard.contains("after"), "{heard}");
    assert_eq!(names(&stage.into), ["big.bin"]);
    assert!(fs::read(stage.into.join("big.bin")).unwrap() == stage.content);
}

#[test]
fn put__stdin_on_full_disk_is_reported_and_leaves_no_spool() {
    let stage = Stage::new();
    let put = ["put", "-", "--name", "in.bin", "lobby"];
    let start = |command: &mut Command| {
        let mut putting = Running::start(command);
        let (mut stdin, content) = (putting.stdin.take().unwrap(), stage.content.clone());
        // It may end before it has read everything.
        std::thread::spawn(move || drop(stdin.write_all(&content)));
        putting.ended(LONG)
    };
    let full = start(&mut cramped(&stage.ada.command(&put), ROOM)).exits(2);
    says_full(&full, "File too large");
    let spool = stage.ada.home.join("state/default/spool");
    assert!(full.err.contains(spool.to_str().unwrap()), "{full:?}");
    assert_eq!(names(&spool), [""; 0]);
    assert_eq!(stage.ada.reads("lobby").len(), 0);
    start(&mut stage.ada.command(&put)).exits(0);
    assert_eq!(stage.ada.reads("lobby")[0]["file"]["size"].as_u64(), Some(SIZE));
    assert_eq!(names(&spool), [""; 0]);
}

#[test]
fn profile__full_disk_is_reported_and_later_recovers() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let get = ["get", "lobby", "1", "-o", stage.into.to_str().unwrap()];
    for args in [&stage.put()[..], &get, &["send", "lobby", "words"]] {
        let full =
            Running::start(&mut cramped(&stage.ada.command(args), LITTLE)).ended(LONG).exits(2);
        assert!(full.err.contains("the disk that holds this profile's state is full"), "{full:?}");
    }
    assert_eq!(names(&stage.into), [""; 0]);
    stage.ada.run(&get).exits(0);
    stage.ada.run(&["send", "lobby", "words"]).exits(0);
    stage.ada.run(&stage.put()).exits(0);
    assert_eq!(stage.ada.reads("lobby").len(), 3);
}

#[test]
fn server_disk__full_refuses_upload_keeps_text_then_resumes() {
    let stage = Stage::new();
    let bob = stage.host.member(&stage.ada, "bob");
    let listening = bob.start(&["listen", "lobby", "--since", "all", "--count", "4", "--json"]);
    limit(stage.host.running(), Some(ROOM));
    let mut ids = Vec::new();
    for word in ["one", "two"] {
        let full = stage.ada.run(&stage.put()).exits(7);
        assert!(full.err.contains("the server cannot write to its disk"), "{full:?}");
        assert!(full.err.contains("the same command resumes it"), "{full:?}");
        let events = full.json();
        ids.push(events[0]["id"].clone());
        assert_eq!(events.last().unwrap()["exit"].as_u64(), Some(7));
        stage.ada.run(&["send", "lobby", word]).exits(0);
        assert_eq!(stage.partials().len(), 1);
    }
    // A file that fits is still accepted.
    let small = stage.host.root().join("small.bin");
    fs::write(&small, bytes(MIB as usize, 6)).unwrap();
    stage.ada.run(&["put", small.to_str().unwrap(), "lobby"]).exits(0);
    limit(stage.host.running(), None);
    let done = stage.ada.run(&stage.put()).exits(0).json();
    ids.push(done.last().unwrap()["id"].clone());
    assert!(done[0]["from"].as_u64().unwrap() >= ROOM - 2 * MIB, "{}", done[0]);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(stage.partials(), [""; 0]);
    let heard = listening.ended(LONG).exits(0).json();
    let kinds: Vec<_> = heard.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "text", "file", "file"]);
    bob.run(&["get", "lobby", "4", "-o", stage.into.to_str().unwrap()]).exits(0);
    assert!(fs::read(stage.into.join("big.bin")).unwrap() == stage.content);
    bob.run(&["audit", "verify"]).exits(0);
}

#[test]
fn server_disk__unwritable_still_serves_reads_and_recovers() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    limit(stage.host.running(), Some(0));
    let full = stage.ada.run(&["put", stage.path.to_str().unwrap(), "lobby", "--name", "again"]);
    let full = full.exits(7);
    assert!(full.err.contains("the server cannot write to its disk"), "{full:?}");
    let get = ["get", "lobby", "1", "-o", stage.into.to_str().unwrap()];
    stage.ada.run(&get).exits(0);
    assert!(fs::read(stage.into.join("big.bin")).unwrap() == stage.content);
    assert_eq!(stage.ada.reads("lobby").len(), 1);
    limit(stage.host.running(), None);
    stage.ada.run(&["put", stage.path.to_str().unwrap(), "lobby", "--name", "again"]).exits(0);
    assert_eq!(stage.ada.reads("lobby").len(), 2);
    assert_eq!(stage.partials(), [""; 0]);
    stage.ada.run(&["audit", "verify"]).exits(0);
}
