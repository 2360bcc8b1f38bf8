//! Makes records of the form before the log.
//!
//! `cargo run -p twinlock-store-log --example old_record -- fixture FILE` makes the fixture
//! `tests/fixtures/old-record.db`. `... -- rate DIR ENTRIES` makes a record of this many entries
//! below DIR, converts it and reports the time.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    unreachable_pub
)]

#[path = "../tests/integration/common/old_record.rs"]
mod old_record;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use old_record::{BEGIN, DAY, SERVER_KEY, SOURCES, USERS, id, name, row_key};
use prost::Message as _;
use rusqlite::Connection;
use twinlock_core::chain::EntryKind;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, MessageId, Sender};
use twinlock_core::proto::{FileBody, FileMeta};
use twinlock_store::{
    Appended, Close as _, Directory as _, EntryLog as _, EntrySearch as _, InviteTerms, LOBBY,
    LoginMethod, NewDevice, NewEntry, PreparedInvite, Registration, Store, StoredClassicKey,
    UserRole,
};
use twinlock_store_embedded::{EmbeddedStore, StoreOptions};
use twinlock_store_log::{Expected, convert};

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["fixture", file] => fixture(Path::new(file)).await,
        ["rate", below, entries] => rate(Path::new(below), entries.parse().unwrap()).await,
        _ => panic!("fixture FILE, or rate DIR ENTRIES"),
    }
}

async fn fixture(file: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record.db");
    let options = StoreOptions::new(SERVER_KEY, row_key()).clock(old_record::clock());
    let store = EmbeddedStore::open(&path, options).unwrap();
    fill(&*store).await;
    store.close().await.unwrap();
    // No word is indexed: a start does that.
    let conn = Connection::open(&path).unwrap();
    let unindexed = "INSERT INTO words (words) VALUES ('delete-all'); UPDATE indexed SET seq = 0;
        VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
    conn.execute_batch(unindexed).unwrap();
    conn.close().unwrap();
    std::fs::copy(&path, file).unwrap();
    println!("{} bytes", std::fs::metadata(file).unwrap().len());
}

async fn rate(below: &Path, entries: usize) {
    let dir = tempfile::tempdir_in(below).unwrap();
    let path = dir.path().join("record.db");
    let store = EmbeddedStore::open(&path, StoreOptions::new(SERVER_KEY, row_key())).unwrap();
    fill(&*store).await;
    let ada = name("ada");
    let mut rooms = vec![LOBBY];
    for room in 0..15 {
        let room = name(&format!("room{room}"));
        rooms.push(store.create_room(&ada, &room, "").await.unwrap().unwrap().id);
    }
    let begin = Instant::now();
    for first in (0..entries).step_by(500) {
        let entry = |n: usize| {
            let mut id = [0xee; 16];
            id[..8].copy_from_slice(&(n as u64 | 1 << 40).to_be_bytes());
            NewEntry {
                conversation: rooms[n % rooms.len()],
                sender: Sender::new(&ada, None),
                message_id: MessageId(id),
                kind: EntryKind::TEXT,
                body: Bytes::from(format!("{n:0256}")),
            }
        };
        let batch = (first..entries.min(first + 500)).map(entry).collect();
        store.append(batch).await.unwrap();
    }
    while store.unindexed() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.close().await.unwrap();
    let size = |path: &Path| std::fs::metadata(path).unwrap().len() / 1024 / 1024;
    println!("{entries} entries recorded in {:.1?}, {} MiB", begin.elapsed(), size(&path));
    let (begin, mut verifying) = (Instant::now(), None);
    let directory = dir.path().join("record");
    let converted = convert::convert(
        &path,
        &directory,
        &row_key(),
        &SERVER_KEY,
        &Expected::default(),
        &mut |progress| {
            if progress.stage == convert::Stage::Verify {
                verifying.get_or_insert_with(Instant::now);
            }
        },
    )
    .unwrap();
    let copied = verifying.unwrap() - begin;
    println!(
        "{} entries converted in {:.1?}, of which the copy {copied:.1?}",
        converted.entries,
        begin.elapsed()
    );
    for file in std::fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        println!("{} {} MiB", path.display(), size(&path));
    }
}

fn invite(number: u8, role: UserRole, user: Option<&str>, expires_ms: u64) -> PreparedInvite {
    let terms = InviteTerms { role, user: user.map(name), expires_ms };
    let made_by = (number > 1).then(|| name("ada"));
    let id = InviteId([number; 8]);
    PreparedInvite { id, record: vec![number; 192], terms, made_by, created_ms: BEGIN }
}

fn device(number: u8, label: &str) -> NewDevice {
    NewDevice { id: DeviceId([number; 16]), label: label.into(), record: vec![number; 192] }
}

/// Appends entries of one conversation with the next message ids.
struct Writer<'s> {
    store: &'s dyn Store,
    next: u64,
}

impl Writer<'_> {
    async fn append(
        &mut self,
        at: ConversationId,
        sender: Sender,
        kind: EntryKind,
        body: Bytes,
    ) -> u64 {
        self.next += 1;
        let message_id = id(self.next);
        let new = NewEntry { conversation: at, sender, message_id, kind, body };
        match self.store.append(vec![new]).await.unwrap().as_slice() {
            [Appended::Recorded(receipt)] => receipt.n,
            other => panic!("{other:?}"),
        }
    }

    async fn text(&mut self, at: ConversationId, user: &str, text: &str) -> u64 {
        let sender = Sender::new(&name(user), Some(&DeviceId([1; 16])));
        self.append(at, sender, EntryKind::TEXT, Bytes::from(text.to_owned())).await
    }

    async fn file(
        &mut self,
        at: ConversationId,
        user: &str,
        file: &str,
        size: u64,
        hash: u8,
    ) -> u64 {
        let meta = FileMeta { name: file.into(), size, ..FileMeta::default() };
        let body = FileBody { file: Some(meta), hash: vec![hash; 32].into() };
        let sender = Sender::new(&name(user), None);
        self.append(at, sender, EntryKind::FILE, body.encode_to_vec().into()).await
    }
}

/// Writes everything that a record can have.
async fn fill(store: &dyn Store) {
    let far = BEGIN + 3650 * DAY;
    for invite in [
        invite(1, UserRole::Owner, None, far),
        invite(2, UserRole::Admin, Some("bob"), far),
        invite(3, UserRole::Member, None, far),
        invite(4, UserRole::Member, None, far),
        invite(5, UserRole::Member, None, far),
        // Open, expired, open for one name.
        invite(6, UserRole::Member, None, far),
        invite(7, UserRole::Admin, None, BEGIN + DAY),
        invite(8, UserRole::Member, Some("fred"), far),
    ] {
        store.add_invite(invite).await.unwrap();
    }
    for (number, user) in (1..).zip(&USERS[..5]) {
        let password = (number != 3).then(|| vec![0x50 + number; 192]);
        let device = (number != 4).then(|| device(number, &format!("{user}'s phone")));
        let invite = InviteId([number; 8]);
        let registration = Registration { invite, user: name(user), password, device };
        store.register(registration, BEGIN + u64::from(number)).await.unwrap();
    }
    store.add_device(&name("ada"), device(11, "laptop"), BEGIN + 20).await.unwrap();
    store.add_device(&name("ada"), device(12, ""), BEGIN + 21).await.unwrap();
    store.revoke_device(&name("ada"), &DeviceId([12; 16])).await.unwrap();
    store.touch_device(&DeviceId([11; 16]), BEGIN + 7 * DAY).await.unwrap();
    store.set_password(&name("carl"), &[0x77; 192], BEGIN + 30).await.unwrap();
    for (source, method) in SOURCES.iter().zip([LoginMethod::Password, LoginMethod::Device]) {
        store.note_source(&name("ada"), source, method, BEGIN + DAY).await.unwrap();
        store.note_source(&name("bob"), source, method, BEGIN + DAY).await.unwrap();
    }

    let ops = store.create_room(&name("ada"), &name("ops"), "What runs, and what does not").await;
    let ops = ops.unwrap().unwrap().id;
    let quiet = store.create_room(&name("bob"), &name("quiet"), "").await.unwrap().unwrap().id;
    store.create_room(&name("eve"), &name("notes"), "\u{1f33b} \u{00fc}ber").await.unwrap();
    for user in ["bob", "carl", "dora", "eve"] {
        store.join_room(&name(user), &name("ops")).await.unwrap();
    }
    let direct = store.open_direct(&name("bob"), &name("ada")).await.unwrap().unwrap().id;
    let alone = store.open_direct(&name("ada"), &name("ada")).await.unwrap().unwrap().id;

    let mut writer = Writer { store, next: 0 };
    writer
        .append(LOBBY, Sender::Server, EntryKind::SYSTEM, Bytes::from_static(b"ada joined"))
        .await;
    for n in 0..40 {
        let user = USERS[n % 5];
        writer.text(LOBBY, user, &format!("lobby talk {n} zebra{}", n % 7)).await;
        writer.text(ops, user, &format!("deploy {n} finished")).await;
        if n % 4 == 0 {
            writer.text(direct, "bob", &format!("psst {n}")).await;
        }
    }
    writer.text(alone, "ada", "remember the milk").await;
    writer.text(ops, "ada", "").await;
    writer.text(ops, "bob", "\u{1f33b}\u{00fc}\u{4e2d}\u{6587} mixed Words").await;
    let long: String = (0..1500).map(|n| format!("word{n} ")).collect();
    writer.text(ops, "carl", &long).await;
    let erased_long = writer.text(ops, "carl", &format!("secret {}", "x".repeat(6000))).await;
    writer.file(ops, "ada", "plan.pdf", 123_456, 0xa1).await;
    writer.file(ops, "bob", "small.txt", 5, 0xa2).await;
    writer.file(LOBBY, "bob", "again.txt", 5, 0xa2).await;
    let erased_file = writer.file(LOBBY, "eve", "gone.txt", 9000, 0xa3).await;
    for (key, scheme, sealed) in [
        ("lamp", ClassicScheme::Jwe, Some([9; 32])),
        ("bell", ClassicScheme::Jwe, None),
        ("siren", ClassicScheme::Jwe, None),
        ("bridge", ClassicScheme::Origin, None),
    ] {
        let key = StoredClassicKey {
            name: name(key),
            user: name("ada"),
            conversation: if key == "bell" { LOBBY } else { ops },
            form: scheme,
            salt: [7; 32],
            sealed,
            created_ms: BEGIN + 40,
        };
        store.add_classic_key(key).await.unwrap();
    }
    let classic = |key| Sender::Classic(name("ada"), name(key));
    for (key, kind) in [
        ("lamp", EntryKind::CLASSIC),
        ("siren", EntryKind::CLASSIC),
        ("bridge", EntryKind::UNPROTECTED),
    ] {
        writer.append(ops, classic(key), kind, Bytes::from_static(b"beep")).await;
    }
    store.revoke_classic_key(&name("siren")).await.unwrap();
    store.set_topic(&name("ada"), ops, "What runs").await.unwrap();
    store.leave_room(&name("dora"), ops).await.unwrap();
    store.leave_room(&name("bob"), quiet).await.unwrap();
    for (conversation, n) in [(LOBBY, 3), (LOBBY, erased_file), (ops, erased_long), (ops, 1)] {
        assert!(store.erase(conversation, n).await.unwrap().is_some());
    }
    for (user, n) in [("ada", 12), ("bob", 41), ("carl", 1), ("eve", u64::MAX)] {
        store.mark_read(&name(user), LOBBY, n).await.unwrap();
    }
    store.mark_read(&name("ada"), direct, 4).await.unwrap();
    writer.text(LOBBY, "dora", "the last word is penguin").await;
}
