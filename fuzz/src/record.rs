//! The record: its hash chain, and its full-text search.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use twinlock_core::chain::{self, EntryKind, Linked, Position};
use twinlock_core::id::{Link, MessageId, Salt, Sender, ServerKey};
use twinlock_core::keys::RowKey;
use twinlock_store::{Appended, EntryLog as _, EntrySearch as _, LOBBY, NewEntry};
use twinlock_store_embedded::{EmbeddedStore, StoreOptions};

use crate::input::Input;

/// The parts of an entry.
#[derive(Clone, PartialEq, Eq)]
struct EntryParts {
    conversation: u64,
    n: u64,
    time_ms: u64,
    message_id: MessageId,
    kind: u8,
    sender: Vec<u8>,
    salt: Salt,
    body: Vec<u8>,
}

impl EntryParts {
    fn advance(&self, position: &mut Position, claimed: Option<&Link>) -> Option<Link> {
        let before = position.clone();
        let commit = chain::commit(&self.salt, &self.body);
        let linked = Linked {
            conversation: self.conversation,
            n: self.n,
            time_ms: self.time_ms,
            message_id: &self.message_id,
            kind: EntryKind(self.kind),
            sender: &self.sender,
            commit: &commit,
        };
        let link = position.advance(&linked, claimed).ok();
        match link {
            Some(link) => assert!(position.n() == self.n && *position.link() == link),
            None => assert!(*position == before, "a refused entry has moved the position"),
        }
        link
    }
}

/// After the same entries, two entries have the same link only if all their parts are equal. An
/// entry with a wrong number, time or claimed link does not move the position.
pub(crate) fn chain(data: &[u8]) {
    let mut input = Input(data);
    let conversation = input.u64();
    let start = input.u64();
    let link_0 = chain::link_0(&ServerKey([3; 32]), conversation);
    let mut position = Position::new(conversation, start, link_0);
    let mut time_ms = 0u64;
    while !input.is_empty() {
        let before = position.clone();
        time_ms = time_ms.saturating_add(u64::from(input.u16()));
        let entry = EntryParts {
            conversation,
            n: before.n().saturating_add(1),
            time_ms,
            message_id: MessageId(input.array()),
            kind: input.byte(),
            sender: input.part().to_vec(),
            salt: Salt(input.array()),
            body: input.part().to_vec(),
        };
        let Some(link) = entry.advance(&mut position, None) else {
            // No number follows the last one.
            assert_eq!(before.n(), u64::MAX);
            return;
        };
        let mut other = entry.clone();
        match input.below(9) {
            0 => other.conversation ^= input.u64(),
            1 => other.n ^= input.u64(),
            2 => other.time_ms = input.u64(),
            3 => other.message_id = MessageId(input.array()),
            4 => other.kind = input.byte(),
            5 => drop(input.change(&mut other.sender)),
            6 => other.salt = Salt(input.array()),
            7 => drop(input.change(&mut other.body)),
            // The sender without its last byte.
            _ => drop(other.sender.pop()),
        }
        let same = other == entry;
        assert_eq!(other.advance(&mut before.clone(), None) == Some(link), same);
        assert_eq!(other.advance(&mut before.clone(), Some(&link)).is_some(), same);
        let another = Link(input.array());
        assert_eq!(entry.advance(&mut before.clone(), Some(&another)), None);
    }
}

const BODIES: [&str; 6] = [
    "The quick brown fox",
    "Crème BRÛLÉE 2x",
    "会議は3時",
    "हिन्दी भाषा",
    "a\" OR body:* NEAR(b) -not",
    "\u{1b}[31mred",
];

struct OpenRecord {
    runtime: Runtime,
    store: Arc<EmbeddedStore>,
    _dir: TempDir,
}

/// A record with a few entries, created once.
fn open() -> &'static OpenRecord {
    static OPEN: OnceLock<OpenRecord> = OnceLock::new();
    OPEN.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(ServerKey([3; 32]), RowKey::new(&[4; 32]));
        let store = EmbeddedStore::open(&dir.path().join("record"), options).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let entry = |(n, body): (u8, &&str)| NewEntry {
            conversation: LOBBY,
            sender: Sender::Server,
            message_id: MessageId([n; 16]),
            kind: EntryKind::TEXT,
            body: Bytes::from((*body).to_owned()),
        };
        let entries = (1..).zip(&BODIES).map(entry).collect();
        let appended = runtime.block_on(store.append(entries)).unwrap();
        assert!(appended.iter().all(|one| matches!(one, Appended::Recorded(_))));
        OpenRecord { runtime, store, _dir: dir }
    })
}

/// No text makes a query fail. Results are newest first and within the requested bounds. The body
/// of an entry, as a query, finds that entry.
pub(crate) fn search(data: &[u8]) {
    let mut input = Input(data);
    let OpenRecord { runtime, store, .. } = open();
    let (which, before) = (usize::from(input.byte()), u64::from(input.byte()));
    let text = String::from_utf8_lossy(input.take(256)).into_owned();
    let look = |text: &str, before| runtime.block_on(store.search(LOBBY, text, before, 4)).unwrap();
    let found = look(&text, before);
    assert!(found.len() <= 4);
    assert!(found.iter().all(|entry| entry.n < before));
    assert!(found.is_sorted_by(|a, b| a.n > b.n));
    // Further words in front of a body narrow the search: what they find, the body alone finds too.
    if let Some(body) = BODIES.get(which) {
        let n = 1 + which as u64;
        assert!(look(body, u64::MAX).iter().any(|entry| entry.n == n), "{body:?} finds not itself");
        let narrower = look(&format!("{text} {body}"), u64::MAX);
        assert!(
            narrower
                .iter()
                .all(|entry| look(body, entry.n + 1).first().is_some_and(|f| f.n == entry.n))
        );
    }
}
