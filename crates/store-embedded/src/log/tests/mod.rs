//! Tests of the log as a whole, on real files.

mod damage;
mod erasing;
mod failures;
mod format;
mod power;
mod random;
mod rollover;
mod torn;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;
use twinlock_core::chain::{self, EntryKind, Linked, Position};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Salt, ServerKey};
use twinlock_store::{StoredContent, StoredEntry};

use super::open::open;
use super::options::LogOptions;
use super::*;
use crate::OpenError;

const SERVER_KEY: ServerKey = ServerKey([1; 32]);
/// Where the first batch of a segment is.
const START: LogPosition = LogPosition { segment: 1, offset: 64 };

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Entry(ConversationId, StoredEntry),
    Erasure(Erasure),
    Change(Vec<u8>),
}

/// A directory, and the items that were appended to its log.
struct Fixture {
    dir: TempDir,
    options: LogOptions,
    heads: BTreeMap<ConversationId, (u64, Link)>,
    items: Vec<Item>,
}

/// An open log, and the replayed items.
struct Opened {
    log: OpenedLog,
    items: Vec<Item>,
    batches: Vec<(LogPosition, u64)>,
}

impl Fixture {
    fn new() -> Self {
        let options = LogOptions { smallest: 4096, largest: 16384, ..LogOptions::default() };
        let dir = tempfile::tempdir().unwrap();
        Self { dir, options, heads: BTreeMap::new(), items: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("record")
    }

    fn segment(&self, number: u32) -> PathBuf {
        self.path().join(format!("{number:08}.log"))
    }

    fn try_open_from(&self, from: Resume) -> Result<Opened, OpenError> {
        let (mut items, mut batches) = (Vec::new(), Vec::new());
        let log = open(&self.path(), from, &self.options, &mut |batch: ReplayedBatch| {
            batches.push((batch.position, batch.first));
            items.extend(batch.blocks.into_iter().flat_map(items_of));
            Ok(())
        })?;
        Ok(Opened { log, items, batches })
    }

    fn try_open(&self) -> Result<Opened, OpenError> {
        self.try_open_from(Resume::beginning())
    }

    /// Opens the log, which must have all appended items.
    fn open(&self) -> Opened {
        let opened = self.try_open().unwrap();
        assert_eq!(opened.items, self.items);
        verify_links(&opened.items).unwrap();
        opened
    }

    /// The next entries of a conversation.
    fn entries(&mut self, conversation: u64, bodies: &[&[u8]]) -> Vec<(StoredEntry, Commit)> {
        let empty = (0, chain::link_0(&SERVER_KEY, conversation));
        let head = self.heads.entry(conversation).or_insert(empty);
        let entry = |body: &&[u8]| {
            let entry = entry(conversation, head.0 + 1, &head.1, body);
            *head = (entry.0.n, entry.0.link);
            entry
        };
        let entries: Vec<_> = bodies.iter().map(entry).collect();
        let item = |(entry, _): &(StoredEntry, Commit)| Item::Entry(conversation, entry.clone());
        self.items.extend(entries.iter().map(item));
        entries
    }

    /// Adds entries to a batch.
    fn add(&mut self, batch: &mut BatchBuilder, conversation: u64, bodies: &[&[u8]]) {
        let entries = self.entries(conversation, bodies);
        batch.run(conversation, entries.iter().map(|(entry, commit)| (entry, commit)));
    }

    /// Appends a batch of entries of one conversation.
    fn append(
        &mut self,
        writer: &mut LogWriter,
        conversation: u64,
        bodies: &[&[u8]],
    ) -> AppendedBatch {
        let mut batch = BatchBuilder::new();
        self.add(&mut batch, conversation, bodies);
        writer.append(&mut batch).unwrap()
    }

    /// Appends the erasure of an entry. The content stays.
    fn append_erasure(&mut self, writer: &mut LogWriter, conversation: u64, n: u64) {
        let erasure = Erasure { conversation, n, time_ms: 5, commit: Commit([9; 32]) };
        let mut batch = BatchBuilder::new();
        batch.erasure(&erasure);
        writer.append(&mut batch).unwrap();
        self.items.push(Item::Erasure(erasure));
    }

    /// Marks an expected entry as erased.
    fn expect_erased(&mut self, conversation: u64, n: u64) {
        for item in &mut self.items {
            if let Item::Entry(of, entry) = item
                && *of == conversation
                && entry.n == n
                && let StoredContent::Body(salt, body) = &entry.content
            {
                entry.content = StoredContent::Erased(chain::commit(salt, body));
            }
        }
    }

    /// All files of the directory.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.path()).unwrap().map(|item| item.unwrap().path());
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    /// Opens the log, which must refuse and change nothing. Returns the damaged file and the
    /// problem.
    fn refused(&self) -> (String, String) {
        let before = self.files();
        let error = self.try_open().err().expect("the log is damaged");
        assert!(self.files() == before, "a refused log was changed");
        let OpenError::Damaged { path, problem, .. } = error else { panic!("{error}") };
        (path.file_name().unwrap().to_str().unwrap().to_owned(), problem)
    }
}

fn items_of(block: ReplayedBlock) -> Vec<Item> {
    match block {
        ReplayedBlock::Run(place, run) => {
            assert_eq!((place.conversation, place.first), (run.conversation(), run.first()));
            let entries = run.entries().map(|entry| entry.unwrap().into_stored());
            entries.map(|entry| Item::Entry(place.conversation, entry)).collect()
        }
        ReplayedBlock::Erasure(erasure) => vec![Item::Erasure(erasure)],
        ReplayedBlock::Change(change) => vec![Item::Change(change.to_vec())],
    }
}

fn entry(conversation: u64, n: u64, before: &Link, body: &[u8]) -> (StoredEntry, Commit) {
    let salt = Salt([u8::try_from(n % 250).unwrap() + 1; 16]);
    let commit = chain::commit(&salt, body);
    let message_id = MessageId([u8::try_from(n % 251).unwrap(); 16]);
    let sender = Bytes::from_static(b"ada");
    let (time_ms, kind) = (1000 + n, EntryKind::TEXT);
    let linked = Linked {
        conversation,
        n,
        time_ms,
        message_id: &message_id,
        kind,
        sender: &sender,
        commit: &commit,
    };
    let link = linked.link(before).unwrap();
    let content = StoredContent::Body(salt, Bytes::copy_from_slice(body));
    (StoredEntry { n, time_ms, message_id, kind, sender, content, link }, commit)
}

/// Verifies the links of all conversations, from their beginning.
fn verify_links(items: &[Item]) -> Result<(), String> {
    let mut positions: BTreeMap<u64, Position> = BTreeMap::new();
    for item in items {
        let Item::Entry(conversation, entry) = item else { continue };
        let first = || Position::new(*conversation, 0, chain::link_0(&SERVER_KEY, *conversation));
        let position = positions.entry(*conversation).or_insert_with(first);
        let link = entry.advance(position, *conversation).map_err(|e| e.to_string())?;
        if link != entry.link {
            return Err(format!("entry {} of {conversation} has another link", entry.n));
        }
    }
    Ok(())
}

fn patch(path: &Path, offset: u32, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset.into()).unwrap();
}
