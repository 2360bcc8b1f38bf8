//! Bits and files of the log.

use std::fs;
use std::os::unix::fs::FileExt as _;

use twinlock_core::chain;
use twinlock_core::id::{Link, Salt};
use twinlock_store::{StoredContent, StoredEntry};

use super::*;
use crate::log::{
    self, BatchBuilder, Erasure, LogOptions, LogPosition, ReplayedBatch, ReplayedBlock, Resume,
};

fn batches(dir: &Path) -> Vec<ReplayedBatch> {
    let mut batches = Vec::new();
    let walked = walk(&dir.join("record"), WalkedPart::All, &mut |batch| {
        batches.push(batch);
        Ok(())
    });
    assert!(matches!(walked.unwrap().unwrap().end, WalkEnd::Whole));
    batches
}

/// What a changed byte must be reported as.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Named {
    /// The batch does not verify.
    Batch,
    /// This entry.
    Entry(u64, u64),
}

/// The places of a run that are changed: each field of the first and the last entries, the bodies
/// at their ends.
fn places(batch: &ReplayedBatch, erased: &dyn Fn(u64, u64) -> bool) -> Vec<(u32, Named)> {
    let mut places = Vec::new();
    let start = batch.position.offset;
    // Magic, length, checksum, count, first, durable, zeros, checksum.
    places.extend([0, 5, 9, 14, 20, 30, 33, 38].map(|at| (start + at, Named::Batch)));
    let mut at = start + 40;
    for block in &batch.blocks {
        match block {
            ReplayedBlock::Run(place, run) => {
                assert_eq!(at, place.position.offset);
                places.extend([0, 8, 16, 20, 24].map(|field| (at + field, Named::Batch)));
                let last = place.first + u64::from(place.count) - 1;
                for n in [place.first, last] {
                    let (entry, span) = run.locate(n).unwrap();
                    let entry = at + u32::try_from(entry).unwrap();
                    let (conversation, sender) = (place.conversation, span.sender.start);
                    // Time, id, kind, length of sender and body, commit, link, sender.
                    let fields = [7, 20, 24, 26, 30, 31, 62, 63, 94, sender];
                    // The server's entries have no sender.
                    let count = if span.sender.is_empty() { 9 } else { 10 };
                    let fields = fields.into_iter().take(count);
                    places.extend(fields.map(|field| (entry + field as u32, Named::Batch)));
                    let content = [span.content.start, span.content.end - 1];
                    let named = Named::Entry(conversation, n);
                    places.extend(content.map(|field| (entry + field as u32, named)));
                    // The flag of an erased entry is one of those that verify anyway.
                    if !erased(conversation, n) {
                        places.push((entry + 25, named));
                    }
                }
                at += place.length;
            }
            ReplayedBlock::Erasure(_) => {
                places.extend([0, 8, 16, 24, 25, 56].map(|field| (at + field, Named::Batch)));
                at += 57;
            }
            ReplayedBlock::Change(set) => {
                let length = u32::try_from(set.len()).unwrap();
                let fields = [0, 4, 5, 5 + length / 2, 4 + length];
                places.extend(fields.map(|field| (at + field, Named::Batch)));
                at += 5 + length;
            }
        }
    }
    assert_eq!(at, batch.end.offset);
    places
}

#[test]
fn check__flipped_bit_of_each_field_is_found_and_named() {
    let dir = record(false);
    let batches = batches(dir.path());
    let mut erased = std::collections::HashSet::new();
    for block in batches.iter().flat_map(|batch| &batch.blocks) {
        if let ReplayedBlock::Erasure(Erasure { conversation, n, .. }) = block {
            erased.insert((*conversation, *n));
        }
    }
    assert!(erased.len() > 1);
    let is_erased = |conversation, n| erased.contains(&(conversation, n));
    let (mut flipped, mut of_entries) = (0, 0);
    // The last one closes the record. It has nothing that was acknowledged.
    let (closing, others) = batches.split_last().unwrap();
    for (number, batch) in others.iter().enumerate() {
        let path = segment(dir.path(), batch.position.segment);
        let places = places(batch, &is_erased);
        // Some of a large batch and of the bulk are enough; each entry has 13 places.
        let bulk = number > 4 && number + 4 < others.len();
        let step = if bulk { 31 } else { places.len() / 150 * 2 + 1 };
        for (i, (at, named)) in places.into_iter().enumerate().step_by(step) {
            let bit = u8::try_from(i % 8).unwrap();
            flip(&path, at.into(), bit);
            let report = check(dir.path());
            let finding = report.findings.first().unwrap_or_else(|| panic!("{at} {named:?}"));
            match named {
                Named::Batch => {
                    assert_eq!(finding.path, path);
                    assert_eq!(finding.offset, Some(batch.position.offset), "{finding}");
                    let missing = format!("record {}", batch.first);
                    assert!(finding.problem.contains(&missing), "{finding}");
                }
                Named::Entry(conversation, n) => {
                    assert_eq!(report.findings.len(), 1, "{report:#?}");
                    assert_eq!((finding.conversation, finding.n), (Some(conversation), Some(n)));
                    of_entries += 1;
                    // The others are checked all the same.
                    assert_eq!(report.batches, batches.len() as u64);
                }
            }
            flip(&path, at.into(), bit);
            flipped += 1;
        }
    }
    assert!(flipped > 300 && of_entries > 30, "{flipped} {of_entries}");
    // The closing batch: without it, the record was not closed in order.
    flip(&segment(dir.path(), closing.position.segment), closing.position.offset.into(), 0);
    let report = check(dir.path());
    assert!(report.is_sound() && report.notes[0].contains("not acknowledged"), "{report:#?}");
    flip(&segment(dir.path(), closing.position.segment), closing.position.offset.into(), 0);
    assert!(check(dir.path()).is_sound());
}

#[test]
fn check__flipped_bit_of_a_header_is_found() {
    let dir = record(false);
    for number in [1, 2] {
        let path = segment(dir.path(), number);
        for at in (0..64).step_by(3) {
            flip(&path, at, 2);
            match try_check(dir.path(), &Expected::default()) {
                Ok(report) => {
                    let report = report.unwrap();
                    let finding = &report.findings[0];
                    assert!(
                        report.findings.iter().any(|found| found.path == path),
                        "{at} {finding}"
                    );
                }
                Err(error) => panic!("{at}: {error}"),
            }
            flip(&path, at, 2);
        }
        let size = fs::metadata(&path).unwrap().len();
        // After the last batch: zeros, and nothing after a closed record.
        flip(&path, size - 1, 7);
        assert_eq!(found(dir.path()).path, path);
        flip(&path, size - 1, 7);
    }
    let marker = dir.path().join("record/marker");
    for at in 0..40 {
        flip(&marker, at, 1);
        assert_eq!(check(dir.path()).findings[0].path, marker, "{at}");
        flip(&marker, at, 1);
    }
    assert!(check(dir.path()).is_sound());
}

#[test]
fn check__missing_or_exchanged_segment_is_found() {
    let dir = record(false);
    let (first, second) = (segment(dir.path(), 1), segment(dir.path(), 2));
    let aside = dir.path().join("aside");
    for path in [&first, &second] {
        fs::rename(path, &aside).unwrap();
        let report = check(dir.path());
        let problems: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        match path == &first {
            true => {
                assert!(problems.iter().any(|p| p.contains("record 1 is missing")), "{problems:?}")
            }
            // The databases are ahead of the log, which shows it.
            false => assert!(problems.iter().any(|p| p.contains("another time")), "{problems:?}"),
        }
        fs::rename(&aside, path).unwrap();
    }
    fs::rename(&first, &aside).unwrap();
    fs::rename(&second, &first).unwrap();
    fs::rename(&aside, &second).unwrap();
    assert!(!check(dir.path()).is_sound());
    fs::rename(&second, &aside).unwrap();
    fs::rename(&first, &second).unwrap();
    fs::rename(&aside, &first).unwrap();
    assert!(check(dir.path()).is_sound());
    let length = fs::metadata(&second).unwrap().len();
    fs::OpenOptions::new().write(true).open(&second).unwrap().set_len(length - 1).unwrap();
    assert!(check(dir.path()).findings.iter().any(|found| found.path == second));
    fs::OpenOptions::new().write(true).open(&second).unwrap().set_len(length).unwrap();

    let other = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { fill(other.path()).await.close().await.unwrap() });
    in_one_file(other.path());
    for file in ["marker", "00000001.log", "people.db", "index.db"] {
        let path = dir.path().join("record").join(file);
        fs::rename(&path, &aside).unwrap();
        fs::copy(other.path().join("record").join(file), &path).unwrap();
        let report = check(dir.path());
        assert!(!report.is_sound(), "{file} of another record");
        fs::rename(&aside, &path).unwrap();
    }
    fs::remove_file(dir.path().join("record/marker")).unwrap();
    assert!(check(dir.path()).findings[0].problem.contains("missing"));
}

#[test]
fn check__erased_content_without_an_erasure_is_damage() {
    let dir = record(false);
    let batches = batches(dir.path());
    let last = batches.iter().rev().flat_map(|batch| &batch.blocks).find_map(|block| match block {
        ReplayedBlock::Run(place, run) => Some((*place, run.clone())),
        _ => None,
    });
    let (place, run) = last.unwrap();
    let (at, span) = run.locate(place.first).unwrap();
    let entry = u64::from(place.position.offset) + at as u64;
    let path = segment(dir.path(), place.position.segment);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let zeros = vec![0; span.content.len()];
    file.write_all_at(&zeros, entry + span.content.start as u64).unwrap();
    file.write_all_at(&[1], entry + 25).unwrap();
    let finding = found(dir.path());
    assert_eq!((finding.conversation, finding.n), (Some(place.conversation), Some(place.first)));
    assert!(finding.problem.contains("no erasure"), "{finding}");
}

#[test]
fn check__torn_end_is_a_note_unless_the_record_was_closed() {
    for killed in [true, false] {
        let dir = record(killed);
        let end = batches(dir.path()).last().unwrap().end;
        let path = segment(dir.path(), end.segment);
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"TLB1\0\0\0\x60 half", end.offset.into()).unwrap();
        let report = check(dir.path());
        assert_eq!(report.is_sound(), killed, "{report:#?}");
        assert_eq!(report.notes[0].contains("was not written whole"), killed, "{report:#?}");
    }
}

/// Appends a batch that no recorder would write.
fn append(dir: &Path, fill: impl FnOnce(&mut BatchBuilder)) -> LogPosition {
    let resume = Resume { position: None, next_seq: 1 };
    let nothing = &mut |_: ReplayedBatch| Ok(());
    let mut opened =
        log::open(&dir.join("record"), resume, &LogOptions::default(), nothing).unwrap();
    let mut batch = BatchBuilder::new();
    fill(&mut batch);
    let appended = opened.writer.append(&mut batch).unwrap();
    opened.writer.close().unwrap();
    appended.end
}

fn newest(dir: &Path) -> (u64, Link, u64) {
    let mut head = None;
    for block in batches(dir).iter().flat_map(|batch| &batch.blocks) {
        if let ReplayedBlock::Run(place, run) = block
            && place.conversation == LOBBY
        {
            head = run.entries().last().map(|entry| entry.unwrap());
        }
    }
    head.map(|head| (head.n, head.link, head.time_ms)).unwrap()
}

#[test]
fn check__chain_that_is_broken_under_valid_checksums_is_named() {
    let (salt, body) = (Salt([3; 16]), Bytes::from_static(b"body"));
    let commit = chain::commit(&salt, &body);
    let one = |n, time_ms, sender: &[u8]| StoredEntry {
        n,
        time_ms,
        message_id: MessageId(twinlock_testing::random()),
        kind: EntryKind::TEXT,
        sender: Bytes::copy_from_slice(sender),
        content: StoredContent::Body(salt, body.clone()),
        link: Link([9; 32]),
    };
    let linked = |mut entry: StoredEntry, before: &Link| {
        let link = chain::Linked {
            conversation: LOBBY,
            n: entry.n,
            time_ms: entry.time_ms,
            message_id: &entry.message_id,
            kind: entry.kind,
            sender: &entry.sender,
            commit: &commit,
        };
        entry.link = link.link(before).unwrap();
        entry
    };
    let (ada, nobody) = (b"ada".to_vec(), b"nobody".to_vec());
    for (conversation, gap, earlier, sender, is_linked, words) in [
        (LOBBY, 0, 0, &ada, true, ""),
        (LOBBY, 0, 0, &ada, false, "link does not match"),
        (LOBBY, 1, 0, &ada, true, "instead of entry"),
        (LOBBY, 0, 1, &ada, true, "older than the entry before"),
        (LOBBY, 0, 0, &nobody, true, "registration of its sender nobody"),
        (77, 0, 0, &ada, false, "the creation of its conversation"),
    ] {
        let dir = record(false);
        let (n, link, time_ms) = newest(dir.path());
        let mut entry = one(n + 1 + gap, time_ms - earlier, sender);
        if is_linked {
            entry = linked(entry, &link);
        }
        append(dir.path(), |batch| batch.run(conversation, [(&entry, &commit)]));
        let report = check(dir.path());
        if words.is_empty() {
            assert!(report.is_sound(), "{report:#?}");
            continue;
        }
        let finding = &report.findings[0];
        assert!(finding.problem.contains(words), "{finding}");
        assert_eq!((finding.conversation, finding.n), (Some(conversation), Some(entry.n)));
        assert!(finding.offset.is_some() && finding.path == segment(dir.path(), 2), "{finding}");
    }
}

#[test]
fn check__erasure_that_was_interrupted_is_a_note() {
    let dir = record(false);
    let (n, ..) = newest(dir.path());
    let read = batches(dir.path());
    let commit = read.iter().flat_map(|batch| &batch.blocks).find_map(|block| match block {
        ReplayedBlock::Run(place, run) if place.conversation == LOBBY => {
            run.entries().map(Result::unwrap).find(|entry| entry.n == n).map(|entry| entry.commit)
        }
        _ => None,
    });
    let erasure = |n| Erasure { conversation: LOBBY, n, time_ms: 5, commit: commit.unwrap() };
    append(dir.path(), |batch| batch.erasure(&erasure(n)));
    let report = check(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert!(report.notes.iter().any(|note| note.contains("1 erasures are not")), "{report:#?}");
    append(dir.path(), |batch| batch.erasure(&erasure(n + 1)));
    let finding = found(dir.path());
    assert_eq!(finding.n, Some(n + 1));
}
