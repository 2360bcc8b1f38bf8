//! Power cuts in the last batch, killed processes, and closing.

use std::sync::{Arc, Mutex};

use super::super::faults::{Faults, Operation};
use super::*;

/// A log with one batch, and the bytes and position of a second one that is not there.
///
/// The second one ends with a body, or with a change.
fn before_and_last(change: bool) -> (Fixture, Vec<u8>, LogPosition) {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first", b"second"]);
    let before = (fixture.items.clone(), fixture.heads.clone());
    let mut batch = BatchBuilder::new();
    fixture.add(&mut batch, 1, &[b"third"]);
    fixture.add(&mut batch, 2, &[b"other", b"another"]);
    if change {
        batch.change(b"change");
    }
    let last = writer.append(&mut batch).unwrap();
    (fixture.items, fixture.heads) = before;
    drop(writer);
    let segment = fs::read(fixture.segment(1)).unwrap();
    let (from, to) = (last.position.offset, last.end.offset);
    let bytes = segment[from as usize..to as usize].to_vec();
    patch(&fixture.segment(1), from, &vec![0; bytes.len()]);
    (fixture, bytes, last.position)
}

/// What a power cut may leave of a write that was not synced.
fn remains(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for cut in 1..bytes.len() {
        let (head, tail) = bytes.split_at(cut);
        all.push([head, &vec![0; tail.len()]].concat());
        all.push([&vec![0; head.len()], tail].concat());
        all.push([head, &vec![0xa5; tail.len()]].concat());
        all.push([&vec![0xa5; head.len()], tail].concat());
    }
    all
}

#[test]
fn torn__last_batch_is_cut_at_every_byte() {
    for change in [true, false] {
        cut_at_every_byte(change);
    }
}

fn cut_at_every_byte(change: bool) {
    let (mut fixture, bytes, position) = before_and_last(change);
    let empty = fs::read(fixture.segment(1)).unwrap();
    let (items, heads) = (fixture.items.clone(), fixture.heads.clone());
    for (i, torn) in remains(&bytes).into_iter().enumerate() {
        patch(&fixture.segment(1), position.offset, &torn);
        let opened = fixture.open();
        let (at, count) = opened.log.torn.expect("something was torn");
        assert_eq!((at, opened.log.writer.end()), (position, position));
        assert!(count <= bytes.len() as u64);
        assert!(opened.log.damaged.is_empty());
        assert!(fs::read(fixture.segment(1)).unwrap() == empty, "remains {i} are still there");
        // The log continues there.
        if i.is_multiple_of(50) {
            let mut writer = opened.log.writer;
            fixture.append(&mut writer, 1, &[b"instead"]);
            writer.state_durable().unwrap();
            drop(writer);
            drop(fixture.open());
            fs::write(fixture.segment(1), &empty).unwrap();
            (fixture.items, fixture.heads) = (items.clone(), heads.clone());
        }
    }
}

#[test]
fn torn__batch_in_the_middle_is_damage_at_every_byte() {
    for change in [true, false] {
        damage_at_every_byte(change);
    }
}

fn damage_at_every_byte(change: bool) {
    let (mut fixture, bytes, position) = before_and_last(change);
    let mut writer = fixture.open().log.writer;
    let empty = fs::read(fixture.segment(1)).unwrap();
    let mut batch = BatchBuilder::new();
    fixture.add(&mut batch, 1, &[b"third"]);
    fixture.add(&mut batch, 2, &[b"other", b"another"]);
    if change {
        batch.change(b"change");
        fixture.items.push(Item::Change(b"change".to_vec()));
    }
    let middle = writer.append(&mut batch).unwrap();
    assert_eq!(
        (middle.position, middle.end.offset),
        (position, position.offset + bytes.len() as u32)
    );
    fixture.append(&mut writer, 2, &[b"later"]);
    drop(writer);
    drop(fixture.open());
    let good = fs::read(fixture.segment(1)).unwrap();
    assert!(good != empty);
    for torn in remains(&bytes) {
        patch(&fixture.segment(1), position.offset, &torn);
        match fixture.try_open() {
            Ok(opened) => {
                // Only bodies are missing, which is damage of these entries alone.
                assert!(!opened.log.damaged.is_empty() && opened.log.torn.is_none());
                assert_eq!(opened.log.writer.next_seq(), middle.next + 1);
                assert!(!change);
            }
            Err(_) => {
                let (file, problem) = fixture.refused();
                assert_eq!(file, "00000001.log");
                let place = format!("at byte {}: the batch with record 3 ", position.offset);
                assert!(problem.starts_with(&place), "{problem}");
            }
        }
        fs::write(fixture.segment(1), &good).unwrap();
    }
}

#[test]
fn torn__stated_batch_is_damage_even_as_the_newest() {
    let (mut fixture, bytes, position) = before_and_last(true);
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"third"]);
    writer.state_durable().unwrap();
    let end = writer.end();
    writer.state_durable().unwrap();
    assert_eq!(writer.end(), end, "it is stated once");
    drop(writer);
    drop(fixture.open());
    patch(&fixture.segment(1), position.offset, &bytes[..20]);
    let (_, problem) = fixture.refused();
    assert!(problem.contains("record 3 is damaged"), "{problem}");
}

#[test]
fn torn__damage_after_closing_is_refused() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    let end = fixture.append(&mut writer, 1, &[b"second"]).end;
    writer.close().unwrap();
    let opened = fixture.open();
    assert!(opened.log.closed);
    // Without an append it stays closed, and closing again writes nothing.
    let closed = opened.log.writer.end();
    opened.log.writer.close().unwrap();
    let opened = fixture.open();
    assert!(opened.log.closed && opened.log.writer.end() == closed);
    drop(opened);

    let good = fs::read(fixture.segment(1)).unwrap();
    patch(&fixture.segment(1), closed.offset + 10, b"x");
    assert!(fixture.refused().1.contains("closed"));
    fs::write(fixture.segment(1), &good).unwrap();
    patch(&fixture.segment(1), end.offset - 150, b"x");
    assert!(fixture.refused().1.contains("record 2 is damaged"));
}

#[test]
fn torn__first_batch_after_closing_may_be_torn() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    writer.close().unwrap();
    let mut writer = fixture.open().log.writer;
    let (items, heads) = (fixture.items.clone(), fixture.heads.clone());
    let last = fixture.append(&mut writer, 1, &[b"second"]);
    drop(writer);
    (fixture.items, fixture.heads) = (items, heads);
    patch(&fixture.segment(1), last.end.offset - 10, &[0; 10]);
    let opened = fixture.open();
    assert_eq!(opened.log.torn.unwrap().0, last.position);
    assert!(!opened.log.closed);
}

#[test]
fn torn__closing_is_taken_back_by_one_synced_byte() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    writer.close().unwrap();
    let closed = fs::read(fixture.segment(1)).unwrap();
    let done = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&done);
    fixture.options.faults = Faults::new(move |operation| {
        noted.lock().unwrap().push(match operation {
            Operation::Write { offset, bytes, .. } => Some((offset as usize, bytes.len())),
            _ => None,
        });
        None
    });
    let mut writer = fixture.open().log.writer;
    let end = writer.end();
    done.lock().unwrap().clear();
    let batch = fixture.append(&mut writer, 1, &[b"second"]);
    assert_eq!(batch.position, end);
    drop(writer);
    // The write ends with a page.
    let at = end.offset as usize;
    let length = (batch.end.offset as usize).next_multiple_of(4096) - at;
    assert_eq!(*done.lock().unwrap(), [Some((at - 8, 1)), None, Some((at, length)), None]);
    let open = fs::read(fixture.segment(1)).unwrap();
    assert_eq!((0..at).filter(|i| open[*i] != closed[*i]).collect::<Vec<_>>(), [at - 8]);
}

#[test]
fn torn__tail_is_written_again_and_synced_before_its_replay() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    let last = fixture.append(&mut writer, 1, &[b"second"]);
    drop(writer);
    let done = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&done);
    fixture.options.faults = Faults::new(move |operation| {
        noted.lock().unwrap().push(match operation {
            Operation::Write { offset, bytes, .. } => format!("write {offset} {}", bytes.len()),
            Operation::Sync(_) => "sync".to_owned(),
            Operation::SyncDirectory(_) => "sync directory".to_owned(),
            other => format!("{other:?}"),
        });
        None
    });
    let mut batches = 0;
    let from = Resume::beginning();
    open(&fixture.path(), from, &fixture.options, &mut |batch: ReplayedBatch| {
        batches += 1;
        let (from, length) = (last.position.offset, last.end.offset - last.position.offset);
        let done = done.lock().unwrap();
        if batch.position == last.position {
            let expected = [&format!("write {from} {length}"), "sync", "sync directory"];
            assert_eq!(*done, expected);
        } else {
            assert!(done.is_empty());
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(batches, 2);
}

#[test]
fn torn__failed_rewrite_refuses_the_start() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    drop(writer);
    let good = fixture.options.clone();
    for failing in 0..3 {
        let count = Mutex::new(0);
        fixture.options.faults = Faults::new(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            let error = std::io::Error::from_raw_os_error(5);
            (*count == failing + 1).then_some(super::super::faults::Fault { written: 7, error })
        });
        assert!(matches!(fixture.try_open().err(), Some(OpenError::File { .. })));
        fixture.options = good.clone();
        fixture.open();
    }
}
