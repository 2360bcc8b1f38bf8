//! The fixture `old-record.db`: its keys, the answers of a store about it, and how it grows.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rusqlite::{Connection, params};
use twinlock_core::chain::EntryKind;
use twinlock_core::chain::{self, Linked};
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{CredentialId, DeviceId, InviteId, MessageId, Name, Sender, ServerKey};
use twinlock_core::id::{Link, Salt};
use twinlock_core::keys::RowKey;
use twinlock_store::{Appended, Clock, LOBBY, NewEntry, Newest, ReadLimit, Store};

pub(crate) const SERVER_KEY: ServerKey = ServerKey([0x5e; 32]);
/// When the fixture was made: its clock begins here.
pub(crate) const BEGIN: u64 = 1_790_000_000_000;
pub(crate) const DAY: u64 = 24 * 60 * 60 * 1000;
pub(crate) const USERS: [&str; 6] = ["ada", "bob", "carl", "dora", "eve", "nobody"];
const ROOMS: [&str; 5] = ["lobby", "ops", "quiet", "notes", "missing"];
pub(crate) const SOURCES: [&[u8]; 4] = [b"\x0a\0\0", b"\x0a\0\x01", b"\xfd\0\0\0", b"\x7f\0\0"];

pub(crate) fn row_key() -> RowKey {
    RowKey::new(&[0x4b; 32])
}

/// A clock that goes on by a second at each look.
pub(crate) fn clock() -> Clock {
    let now = AtomicU64::new(BEGIN);
    Arc::new(move || now.fetch_add(1000, Ordering::Relaxed))
}

pub(crate) fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

pub(crate) fn id(number: u64) -> MessageId {
    let mut id = [0x11; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    MessageId(id)
}

/// Answers of a store, one a line.
#[derive(Default)]
struct Answers(String);

impl Answers {
    fn add(&mut self, question: impl Debug, answer: impl Debug) {
        writeln!(self.0, "{question:?} = {answer:?}").unwrap();
    }
}

/// What the store answers to every question of the contract. Sequences of entries are left out, as
/// are the places where a search pauses.
pub(crate) async fn answers(store: &dyn Store) -> String {
    let mut all = Answers::default();
    let now = BEGIN + 2 * DAY;
    people(store, &mut all, now).await;
    directory(store, &mut all).await;
    entries(store, &mut all).await;
    all.0
}

async fn people(store: &dyn Store, all: &mut Answers, now: u64) {
    all.add("people", store.people(None, 100).await);
    all.add("people", store.people(Some(&name("bob")), 2).await);
    for user in USERS.map(name) {
        all.add(("person", &user), store.person(&user).await);
        all.add(("devices", &user), store.devices(&user).await);
        all.add(("stored", &user), store.stored(&user).await);
        all.add(("keys", &user), store.classic_keys(Some(&user), None, 100).await);
        let found = store.credential(&CredentialId::User(user.clone()), now).await;
        all.add(("credential", &user), found);
        for source in SOURCES {
            all.add(("source", &user, source), store.is_known_source(&user, source, now).await);
            let late = now + 30 * DAY;
            all.add(("late", &user, source), store.is_known_source(&user, source, late).await);
        }
    }
    for number in 0..20 {
        for id in [
            CredentialId::Device(DeviceId([number; 16])),
            CredentialId::Invite(InviteId([number; 8])),
        ] {
            all.add(("credential", &id), store.credential(&id, now).await);
        }
    }
    for key in ["lamp", "bell", "siren", "bridge", "none"].map(name) {
        all.add(("key", &key), store.classic_key(&key).await);
    }
    for form in [ClassicScheme::Jwe, ClassicScheme::Origin, ClassicScheme::OriginHmac] {
        all.add(("key of", form), store.classic_key_of(form).await);
    }
    all.add("keys", store.classic_keys(None, None, 100).await);
    all.add("keys", store.classic_keys(None, Some(&name("bridge")), 1).await);
}

async fn directory(store: &dyn Store, all: &mut Answers) {
    for user in USERS.map(name) {
        for joinable in [false, true] {
            all.add(("rooms", &user, joinable), store.conversations(&user, joinable, 0, 100).await);
            all.add(("rooms", &user, joinable), store.conversations(&user, joinable, 2, 1).await);
        }
        for room in ROOMS.map(name) {
            all.add(("room", &user, &room), store.room(&user, &room).await);
        }
        for conversation in 0..9 {
            let found = store.conversation(&user, conversation).await;
            all.add(("conversation", &user, conversation), found);
        }
    }
    for conversation in 0..9 {
        all.add(("members", conversation), store.members(conversation, None, 100).await);
        let some = store.members(conversation, Some(&name("bob")), 1).await;
        all.add(("members", conversation), some);
    }
    all.add("hashes", store.file_hashes(None, 100).await);
    all.add("hashes", store.file_hashes(Some([0xa1; 32]), 1).await);
    for hash in 0xa0..0xa5 {
        all.add(("referenced", hash), store.is_referenced(&[hash; 32]).await);
    }
}

async fn entries(store: &dyn Store, all: &mut Answers) {
    let newest = store.newest(60).await.unwrap();
    let mut newest: Vec<_> =
        newest.iter().map(|at| (at.conversation, at.n, at.time_ms, at.link)).collect();
    newest.sort_by_key(|at| at.0);
    all.add("newest", newest);
    for conversation in 0..9 {
        let whole = ReadLimit { entries: 1000, bytes: 1 << 20 };
        all.add(("read", conversation), store.read(conversation, 0, whole).await);
        for (after, entries, bytes) in [(1, 3, 1 << 20), (40, 100, 100), (1000, 1, 1)] {
            let some = store.read(conversation, after, ReadLimit { entries, bytes }).await;
            all.add(("read", conversation, after), some);
        }
        for n in 0..60 {
            for user in ["ada", "dora"].map(name) {
                all.add(("file", &user, conversation, n), store.file(&user, conversation, n).await);
            }
        }
        for text in [
            "zebra",
            "zebra3",
            "deploy fin",
            "psst",
            "secret",
            "penguin",
            "pdf",
            "gone",
            "beep",
            "word1499",
            "milk",
            "\u{4e2d}",
        ] {
            for before in [u64::MAX >> 1, 20] {
                let found = store.search(conversation, text, before, 50).await;
                all.add(("search", conversation, text, before), found);
            }
        }
    }
    for number in 0..130 {
        for user in ["ada", "bob", "nobody"].map(name) {
            all.add(("receipt", &user, number), store.receipt(&user, &id(number)).await);
        }
    }
}

/// Appends an entry whose message id is in the record: the answer is where it was recorded.
pub(crate) async fn repeat(store: &dyn Store, number: u64, user: &str) -> Vec<Appended> {
    let new = NewEntry {
        conversation: LOBBY,
        sender: Sender::new(&name(user), None),
        message_id: id(number),
        kind: EntryKind::TEXT,
        body: Bytes::from_static(b"another body"),
    };
    store.append(vec![new]).await.unwrap()
}

/// The newest entry of a conversation in the old form.
pub(crate) fn newest_of(conn: &Connection, conversation: u64) -> Newest {
    let newest = "SELECT seq, n, time_ms, link FROM entries WHERE conversation = ?1
                  ORDER BY n DESC LIMIT 1";
    let number = |row: &rusqlite::Row<'_>, at| row.get::<_, i64>(at).map(i64::cast_unsigned);
    conn.query_row(newest, [conversation.cast_signed()], |row| {
        let link = Link(row.get(3)?);
        let (seq, n, time_ms) = (number(row, 0)?, number(row, 1)?, number(row, 2)?);
        Ok(Newest { seq, conversation, n, time_ms, link })
    })
    .unwrap()
}

/// Records texts of ada, in one transaction and as the old form did. Returns the newest entry.
pub(crate) fn grow(conn: &mut Connection, conversation: u64, texts: &[String]) -> Newest {
    let mut at = newest_of(conn, conversation);
    let transaction = conn.transaction().unwrap();
    let ada: i64 = transaction
        .query_row("SELECT id FROM users WHERE name = 'ada'", [], |row| row.get(0))
        .unwrap();
    let sender = Sender::new(&name("ada"), None).to_string().into_bytes();
    for text in texts {
        (at.n, at.time_ms) = (at.n + 1, at.time_ms + 1);
        let (message_id, salt) = (id(1 << 40 | at.n), Salt([at.n as u8; 16]));
        let commit = chain::commit(&salt, text.as_bytes());
        let entry = Linked {
            conversation,
            n: at.n,
            time_ms: at.time_ms,
            message_id: &message_id,
            kind: EntryKind::TEXT,
            sender: &sender,
            commit: &commit,
        };
        at.link = entry.link(&at.link).unwrap();
        let insert = "INSERT INTO entries
            (conversation, n, time_ms, user, message_id, kind, sender, link, salt, body)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let row = params![
            conversation.cast_signed(),
            at.n.cast_signed(),
            at.time_ms.cast_signed(),
            ada,
            message_id.0,
            EntryKind::TEXT.0,
            sender,
            at.link.0,
            salt.0,
            text.as_bytes()
        ];
        transaction.prepare_cached(insert).unwrap().execute(row).unwrap();
    }
    transaction.commit().unwrap();
    newest_of(conn, conversation)
}

/// The links of a conversation in the old form.
pub(crate) fn links_of(conn: &Connection, conversation: u64) -> Vec<Link> {
    let links = "SELECT link FROM entries WHERE conversation = ?1 ORDER BY n";
    let mut links = conn.prepare(links).unwrap();
    let links = links.query_map([conversation.cast_signed()], |row| row.get(0).map(Link)).unwrap();
    links.map(Result::unwrap).collect()
}
