//! A malicious server that lies about files, and a record with hostile names. The client ends with
//! a clear error and an exit code, no file gets its name, and a later honest answer is accepted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::malicious_server::{MaliciousServer, Said};
use crate::common::*;
use bytes::Bytes;
use prost::Message as _;
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{MessageId, Name, Sender};
use twinlock_core::opaque::ServerSetup;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::item::What;
use twinlock_core::proto::{self, FileBody, FileMeta};
use twinlock_store::{Appended, EntryLog as _, LOBBY, NewEntry};
use twinlock_store_embedded::{EmbeddedStore, StoreOptions};

const SIZE: u64 = 1_000_003;
/// Shorter than the patience limit of 30 s: nothing here takes as long.
const SOON: Duration = Duration::from_secs(20);

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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
        let (path, content) = (host.root().join("f.bin"), bytes(SIZE as usize, 1));
        fs::write(&path, &content).unwrap();
        let into = host.root().join("into");
        fs::create_dir(&into).unwrap();
        Self { host, ada, path, content, into }
    }

    fn put(&self) -> [&str; 3] {
        ["put", self.path.to_str().unwrap(), "lobby"]
    }

    fn get(&self) -> [&str; 5] {
        ["get", "lobby", "1", "-o", self.into.to_str().unwrap()]
    }

    fn got(&self) -> PathBuf {
        self.into.join("f.bin")
    }
}

/// Changes the server's description of a download.
fn coming(
    change: impl Fn(&mut proto::FileComing) + Send + 'static,
) -> crate::common::malicious_server::Tampering {
    Box::new(move |said| {
        if let Said::Item(proto::Item { what: Some(What::Answer(answer)) }) = said
            && let Some(Answered::FileComing(coming)) = &mut answer.result
        {
            change(coming);
        }
    })
}

/// Changes the bytes of a download, and their offset.
fn moved(
    change: impl Fn(&mut u64, &mut Vec<u8>) + Send + 'static,
) -> crate::common::malicious_server::Tampering {
    Box::new(move |said| {
        if let Said::Bulk { offset, data, .. } = said {
            change(offset, data);
        }
    })
}

#[test]
fn download__false_metadata_or_bytes_are_refused() {
    const ASTRAY: &str = "an impossible file offset";
    const OTHER: &str = "another file than the entry names";
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let malicious = MaliciousServer::start(&stage.host, &stage.ada);
    let victim = stage.ada.by(malicious.address());
    let lies: [(&str, &str, crate::common::malicious_server::Tampering); 9] = [
        ("larger", OTHER, coming(|coming| coming.size += 1)),
        ("smaller", OTHER, coming(|coming| coming.size -= 1)),
        ("another hash", OTHER, coming(|coming| coming.hash = Bytes::from_static(&[7; 32]))),
        ("no hash", OTHER, coming(|coming| coming.hash = Bytes::new())),
        ("from the middle", ASTRAY, coming(|coming| coming.offset = 65_536)),
        ("a gap", ASTRAY, moved(|offset, _| *offset += u64::from(*offset > 0))),
        ("twice the same place", ASTRAY, moved(|offset, _| *offset = 0)),
        (
            "past the end",
            ASTRAY,
            moved(|offset, data| {
                if *offset + data.len() as u64 == SIZE {
                    data.push(0);
                }
            }),
        ),
        (
            "another byte",
            "does not match the BLAKE3",
            moved(|offset, data| data[0] ^= u8::from(*offset > 0)),
        ),
    ];
    for (what, words, lie) in lies {
        malicious.install(lie);
        let ran = victim.start(&stage.get()).ended(SOON);
        assert_eq!(ran.code, Some(8), "{what}: {ran:?}");
        assert!(ran.err.contains(words), "{what}: {ran:?}");
        assert!(!stage.got().exists(), "{what}");
        malicious.reset();
        victim.run(&stage.get()).exits(0);
        assert_eq!(names(&stage.into), ["f.bin"], "{what}");
        assert!(fs::read(stage.got()).unwrap() == stage.content, "{what}");
        fs::remove_file(stage.got()).unwrap();
    }
}

#[test]
fn download__corrupt_part_file_fails_once_and_is_removed() {
    // Few enough bytes that the server continues without an acknowledgement.
    const HAD: u64 = 50_000;
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let malicious = MaliciousServer::start(&stage.host, &stage.ada);
    let victim = stage.ada.by(malicious.address());
    let part = stage.into.join(".f.bin.part");
    let mut had = stage.content[..HAD as usize].to_vec();
    had[1000] ^= 1;
    fs::write(&part, had).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).unwrap();
    let mut agrees = coming(|coming| coming.offset = HAD);
    let mut goes_on = moved(|offset, data| {
        let known = usize::try_from(HAD.saturating_sub(*offset)).unwrap().min(data.len());
        data.drain(..known);
        *offset += known as u64;
    });
    malicious.install(move |said| {
        agrees(said);
        goes_on(said);
    });
    let ran = victim.start(&stage.get()).ended(SOON).exits(8);
    assert!(ran.err.contains("does not match the BLAKE3"), "{ran:?}");
    assert_eq!(names(&stage.into), [""; 0], "neither the name nor a part that blocks the next");
    malicious.reset();
    victim.run(&stage.get()).exits(0);
    assert!(fs::read(stage.got()).unwrap() == stage.content);
}

#[test]
fn download__stalled_server_times_out_and_resumes() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let malicious = MaliciousServer::start(&stage.host, &stage.ada);
    let victim = stage.ada.by(malicious.address());
    malicious.install(moved(|offset, data| {
        if *offset > 0 {
            data.clear();
        }
    }));
    let get = [&stage.get()[..], &["--timeout", "3s", "--json"]].concat();
    let ran = victim.start(&get).ended(SOON).exits(9);
    assert!(ran.err.contains("nothing moved for 3 s"), "{ran:?}");
    assert!(ran.err.contains("the same command resumes"), "{ran:?}");
    assert_eq!(names(&stage.into), [".f.bin.part"]);
    malicious.reset();
    let done = victim.run(&get).exits(0).json();
    assert!(done[0]["from"].as_u64().unwrap() > 0, "{}", done[0]);
    assert!(fs::read(stage.got()).unwrap() == stage.content);
}

/// Changes the files that entries describe.
fn entry(
    change: impl Fn(&mut FileBody) + Send + 'static,
) -> crate::common::malicious_server::Tampering {
    Box::new(move |said| {
        if let Said::Item(proto::Item { what: Some(What::Answer(answer)) }) = said
            && let Some(Answered::Page(page)) = &mut answer.result
        {
            for entry in &mut page.entries {
                let mut body = FileBody::decode(entry.body.clone()).unwrap();
                change(&mut body);
                entry.body = body.encode_to_vec().into();
            }
        }
    })
}

#[test]
fn file_entry__changed_metadata_breaks_its_link() {
    let stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let malicious = MaliciousServer::start(&stage.host, &stage.ada);
    let victim = stage.ada.by(malicious.address());
    let meta = |body: &mut FileBody, change: fn(&mut FileMeta)| {
        change(body.file.as_mut().unwrap());
    };
    let lies = [
        entry(move |body| meta(body, |file| file.name = "../../.bashrc".to_owned())),
        entry(move |body| meta(body, |file| file.size += 1)),
        entry(move |body| meta(body, |file| file.mode = 0o6777)),
        entry(|body| body.hash = Bytes::from_static(&[7; 32])),
    ];
    for lie in lies {
        malicious.install(lie);
        let ran = victim.start(&stage.get()).ended(SOON).exits(8);
        assert!(ran.err.contains("the record was changed"), "{ran:?}");
        assert_eq!(names(&stage.into), [""; 0]);
    }
    malicious.reset();
    victim.run(&stage.get()).exits(0);
    assert!(fs::read(stage.got()).unwrap() == stage.content);
}

#[test]
fn upload__false_answers_are_refused_or_upload_succeeds() {
    let stage = Stage::new();
    let malicious = MaliciousServer::start(&stage.host, &stage.ada);
    let victim = stage.ada.by(malicious.address());
    let accepted =
        |change: fn(&mut proto::FileAccepted)| -> crate::common::malicious_server::Tampering {
            Box::new(move |said| {
                if let Said::Item(proto::Item { what: Some(What::Answer(answer)) }) = said
                    && let Some(Answered::FileAccepted(accepted)) = &mut answer.result
                {
                    change(accepted);
                }
            })
        };
    let acked: crate::common::malicious_server::Tampering = Box::new(|said| {
        if let Said::Item(proto::Item { what: Some(What::FileAck(ack)) }) = said {
            ack.offset = SIZE + 1;
        }
    });
    for (what, lie) in [
        ("more than there is", accepted(|accepted| accepted.offset = SIZE + 1)),
        ("an ack of more than was sent", acked),
    ] {
        malicious.install(lie);
        let ran = victim.start(&stage.put()).ended(SOON);
        assert_eq!(ran.code, Some(8), "{what}: {ran:?}");
        assert!(ran.err.contains("an impossible file offset"), "{what}: {ran:?}");
        assert_eq!(stage.ada.reads("lobby").len(), 0, "{what}");
    }
    // The server claims bytes that it does not have: the client sends everything.
    malicious.install(accepted(|accepted| {
        accepted.offset = 1000;
        accepted.prefix_hash = Bytes::from_static(&[7; 32]);
    }));
    victim.run(&stage.put()).exits(0);
    // The server acknowledges another entry's number. That the upload succeeded is detected later.
    malicious.install(|said| {
        if let Said::Item(proto::Item { what: Some(What::Answer(answer)) }) = said
            && let Some(Answered::Ack(ack)) = &mut answer.result
        {
            ack.n = 1;
        }
    });
    let ran = victim.start(&stage.put()).ended(SOON).exits(8);
    assert!(ran.err.contains("record differs"), "{ran:?}");
    malicious.reset();
    victim.run(&stage.put()).exits(0);
    assert_eq!(victim.reads("lobby").len(), 2);
    victim.run(&stage.get()).exits(0);
    assert!(fs::read(stage.got()).unwrap() == stage.content);
    assert_eq!(names(&stage.host.data().join("files/partial/ada")), [""; 0]);
}

/// Records file entries that no server would accept, with valid links.
fn record(host: &Host, bodies: Vec<FileBody>) {
    let setup = fs::read(host.data().join("identity/opaque-setup")).unwrap();
    let setup = ServerSetup::from_bytes(setup.as_slice().try_into().unwrap()).unwrap();
    let options = StoreOptions::new(setup.server_key(), setup.row_key());
    let store = EmbeddedStore::open(&host.data().join("record"), options).unwrap();
    let sender = Sender::new(&Name::new("ada").unwrap(), None);
    let entries = bodies.into_iter().enumerate().map(|(at, body)| NewEntry {
        conversation: LOBBY,
        sender: sender.clone(),
        message_id: MessageId([100 + at as u8; 16]),
        kind: EntryKind::FILE,
        body: body.encode_to_vec().into(),
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let appended = runtime.block_on(store.append(entries.collect())).unwrap();
    assert!(appended.iter().all(|one| matches!(one, Appended::Recorded(_))), "{appended:?}");
}

#[test]
fn file_entry__hostile_names_stay_in_target_directory() {
    let mut stage = Stage::new();
    stage.ada.run(&stage.put()).exits(0);
    let body = |name: &str, size: u64, hash: &blake3::Hash| FileBody {
        file: Some(FileMeta { name: name.to_owned(), size, mode: 0o6777, ..FileMeta::default() }),
        hash: Bytes::copy_from_slice(hash.as_bytes()),
    };
    let good = blake3::hash(&stage.content);
    let evil = [
        "../../escaped",
        "/etc/escaped",
        "..",
        ".",
        "",
        "/",
        "a/../../escaped",
        "in\0side",
        ".f.bin.part",
        &"long".repeat(1000),
        &"\u{202e}".repeat(300),
    ];
    let mut bodies: Vec<_> = evil.iter().map(|name| body(name, SIZE, &good)).collect();
    // Content of another size, and content that does not exist.
    bodies.push(body("short", SIZE - 1, &good));
    bodies.push(body("huge", u64::MAX / 4, &good));
    bodies.push(body("absent", 5, &blake3::hash(b"never")));
    stage.host.terminate().exits(0);
    record(&stage.host, bodies);
    stage.host.restart();
    let into = stage.host.root().join("deep/in/to");
    fs::create_dir_all(&into).unwrap();
    let dir = into.to_str().unwrap();
    for (at, name) in evil.iter().enumerate() {
        let n = (at + 2).to_string();
        let ran = stage.ada.run(&["get", "lobby", &n, "-o", dir]).exits(0);
        let got = names(&into);
        assert_eq!(got.len(), 1, "{name:?}: {got:?} {ran:?}");
        assert!(!got[0].starts_with('.') && got[0].len() <= 255, "{name:?}: {got:?}");
        let path = into.join(&got[0]);
        assert!(fs::read(&path).unwrap() == stage.content, "{name:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7000, 0);
        fs::remove_file(path).unwrap();
    }
    for n in evil.len() + 2..=evil.len() + 4 {
        let ran = stage.ada.run(&["get", "lobby", &n.to_string(), "-o", dir]).exits(8);
        assert!(ran.err.contains("record is damaged"), "{ran:?}");
        assert_eq!(names(&into), [""; 0], "neither the name nor a part");
    }
    // All of them at once, with `listen`.
    let count = (evil.len() + 4).to_string();
    let listen = ["listen", "lobby", "--get", dir, "--since", "all", "--count", &count];
    let ran = stage.ada.run(&listen).exits(8);
    let first = evil.len() + 2;
    assert!(
        ran.err.contains(&format!("short of entry {first} of lobby was not fetched")),
        "{ran:?}"
    );
    let before = names(&into);
    assert!(["escaped", "f.bin"].iter().all(|name| before.iter().any(|n| n == name)), "{before:?}");
    // It keeps its position until `--since` skips the entry.
    let next = &listen[..4];
    stage.ada.run(&[next, &["--count", "1"]].concat()).exits(8);
    let left_out = (first + 2).to_string();
    let after = stage.ada.run(&["send", "lobby", "after"]).exits(0);
    assert!(after.err.is_empty(), "{after:?}");
    let since = [next, &["--since", &left_out, "--count", "1"]].concat();
    assert!(stage.ada.run(&since).exits(0).out.contains("after"));
    // The failure ended `listen` while other files were on their way, whose parts it keeps.
    let is_part = |name: &String| [".huge.part", ".absent.part"].contains(&name.as_str());
    let is_expected = |name: &String| !name.starts_with('.') || is_part(name);
    assert!(names(&into).iter().all(is_expected), "{:?}", names(&into));
    for above in [into.parent().unwrap(), &stage.host.root().join("deep")] {
        assert_eq!(names(above).len(), 1, "nothing beside it");
    }
    assert!(!Path::new("/etc/escaped").exists());
}
