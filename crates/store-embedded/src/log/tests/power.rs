//! A disk that loses unsynced data at a power cut: all of it, or some sectors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::super::faults::{Faults, Operation};
use super::*;

const SECTOR: usize = 512;

/// The content of the disk, and of the page cache.
#[derive(Default)]
struct Disk {
    files: Vec<DiskFile>,
    /// Names as the program sees them.
    live: BTreeMap<String, usize>,
    /// Names on disk.
    names: BTreeMap<String, usize>,
    pending_names: Vec<(String, Option<String>, usize)>,
    images: Vec<Image>,
    chance: u64,
}

#[derive(Default)]
struct DiskFile {
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

/// What a power cut leaves.
struct Image {
    files: BTreeMap<String, Vec<u8>>,
    /// Records and erasures that were answered before.
    answered: (u64, u64),
}

/// Which of the pending changes are on disk.
#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Nothing,
    Names,
    Some,
}

impl Disk {
    fn chance(&mut self) -> usize {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.chance >> 40).unwrap()
    }

    fn apply(&mut self, operation: Operation<'_>) {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        match operation {
            Operation::Create(path) => {
                let id = self.files.len();
                self.files.push(DiskFile::default());
                self.live.insert(name(path), id);
                self.pending_names.push((name(path), None, id));
            }
            Operation::Write { path, offset, bytes } => {
                let id = self.live[&name(path)];
                let offset = usize::try_from(offset).unwrap();
                self.files[id].pending.push((offset, bytes.to_vec()));
            }
            Operation::Sync(path) => {
                let file = &mut self.files[self.live[&name(path)]];
                for (offset, bytes) in std::mem::take(&mut file.pending) {
                    put(&mut file.durable, offset, &bytes);
                }
            }
            Operation::Rename(to) => {
                // The two names that are ever given to a file under another one.
                let from = if to.ends_with("marker") { "marker.new" } else { "spare" };
                let id = self.live.remove(from).unwrap();
                self.live.insert(name(to), id);
                self.pending_names.push((name(to), Some(from.to_owned()), id));
            }
            Operation::SyncDirectory(path) if path.ends_with("record") => {
                let all = self.pending_names.len();
                let names = self.named(all);
                self.names = names;
                self.pending_names.clear();
            }
            Operation::SyncDirectory(_) => {}
        }
    }

    /// The names on disk with the first of those that are not.
    fn named(&self, count: usize) -> BTreeMap<String, usize> {
        let mut names = self.names.clone();
        for (to, from, id) in &self.pending_names[..count] {
            if let Some(from) = from {
                names.remove(from);
            }
            names.insert(to.clone(), *id);
        }
        names
    }

    fn cut(&mut self, kept: Kept, answered: (u64, u64)) {
        let names = match kept {
            Kept::Nothing => 0,
            Kept::Names => self.pending_names.len(),
            Kept::Some => self.chance() % (self.pending_names.len() + 1),
        };
        let mut files = BTreeMap::new();
        for (name, id) in self.named(names) {
            let mut bytes = self.files[id].durable.clone();
            let pending = self.files[id].pending.clone();
            for (offset, new) in pending.iter().filter(|_| kept == Kept::Some) {
                let mut at = 0;
                while at < new.len() {
                    let to = new.len().min(at + SECTOR - (offset + at) % SECTOR);
                    if self.chance().is_multiple_of(2) {
                        put(&mut bytes, offset + at, &new[at..to]);
                    }
                    at = to;
                }
            }
            files.insert(name, bytes);
        }
        self.images.push(Image { files, answered });
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn power__cut_at_every_operation_keeps_what_was_answered() {
    let mut fixture = Fixture::new();
    let disk = Arc::new(Mutex::new(Disk { chance: 1, ..Disk::default() }));
    let answered = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let (of_hook, seen) = (Arc::clone(&disk), Arc::clone(&answered));
    fixture.options.faults = Faults::new(move |operation| {
        let mut disk = of_hook.lock().unwrap();
        let answered = (seen.0.load(Ordering::Relaxed), seen.1.load(Ordering::Relaxed));
        for kept in [Kept::Nothing, Kept::Names, Kept::Some, Kept::Some, Kept::Some] {
            disk.cut(kept, answered);
        }
        disk.apply(operation);
        None
    });
    for session in 0..4 {
        let mut writer = fixture.open().log.writer;
        for i in 0..4 {
            // The first batch of a session has several sectors.
            let body = vec![i + 1; 600 * usize::from(4 - i)];
            let batch = fixture.append(&mut writer, session, &[&body, b"x"]);
            answered.0.store(batch.next - 1, Ordering::Relaxed);
            if i == 2 {
                fixture.append_erasure(&mut writer, session, 2);
                answered.0.store(writer.next_seq() - 1, Ordering::Relaxed);
                writer.state_durable().unwrap();
            }
            if i == 3 {
                // The second entry of the session's first batch.
                let place = first_run(&fixture, session);
                writer.segments().erase(&place, 2).unwrap();
                fixture.expect_erased(session, 2);
                answered.1.fetch_add(1, Ordering::Relaxed);
            }
        }
        if session % 2 == 0 {
            writer.close().unwrap();
        }
    }
    let images = std::mem::take(&mut disk.lock().unwrap().images);
    assert!(images.len() > 400);
    fixture.options.faults = Faults::default();
    for image in images {
        check(&fixture, image);
    }
}

/// The run with the second entry of a conversation.
fn first_run(fixture: &Fixture, conversation: u64) -> RunPlace {
    let mut found = None;
    let options = LogOptions { faults: Faults::default(), ..fixture.options.clone() };
    let copy = tempfile::tempdir().unwrap();
    for (path, bytes) in fixture.files() {
        fs::write(copy.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    open(copy.path(), Resume::beginning(), &options, &mut |batch: ReplayedBatch| {
        for block in &batch.blocks {
            if let ReplayedBlock::Run(place, _) = block
                && place.conversation == conversation
                && place.first == 1
            {
                found = Some(*place);
            }
        }
        Ok(())
    })
    .unwrap();
    found.unwrap()
}

/// Opens what a power cut has left, finishes erasures, appends, and opens again.
fn check(original: &Fixture, image: Image) {
    let mut fixture = Fixture::new();
    fs::create_dir(fixture.path()).unwrap();
    for (name, bytes) in &image.files {
        fs::write(fixture.path().join(name), bytes).unwrap();
    }
    let opened = fixture.try_open().unwrap();
    assert!(opened.log.damaged.is_empty());
    for (place, n) in &opened.log.unfinished_erasures {
        opened.log.writer.segments().erase(place, *n).unwrap();
    }
    drop(opened);
    let opened = fixture.try_open().unwrap();
    assert!(opened.log.torn.is_none() && opened.log.unfinished_erasures.is_empty());
    verify_links(&opened.items).unwrap();
    let (records, erasures) = image.answered;
    let count = opened.items.len();
    assert!(count as u64 >= records, "{count} of {records} records");
    // An entry is erased if its erasure was recorded.
    let named = |of: u64, n: u64| {
        opened.items.iter().any(|item| match item {
            Item::Erasure(erasure) => (erasure.conversation, erasure.n) == (of, n),
            _ => false,
        })
    };
    let mut gone = 0;
    for (found, expected) in opened.items.iter().zip(&original.items) {
        match (found, expected) {
            (Item::Entry(of, found), Item::Entry(_, expected)) if !named(*of, found.n) => {
                assert_eq!((found.n, found.link), (expected.n, expected.link));
                assert!(matches!(found.content, StoredContent::Body(..)));
            }
            _ => {
                assert_eq!(found, expected);
                gone += u64::from(matches!(found, Item::Entry(..)));
            }
        }
    }
    assert!(gone >= erasures);
    fixture.items.clone_from(&opened.items);
    let mut writer = opened.log.writer;
    fixture.append(&mut writer, 99, &[b"more"]);
    drop(writer);
    fixture.open();
}
