//! Erasing in place, and what a power cut leaves of it.

use super::*;

/// A log with three entries, of which an erasure names the second. Its content is there.
fn named() -> (Fixture, RunPlace) {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let place = fixture.append(&mut writer, 1, &[b"one", b"second", b"three"]).runs[0];
    fixture.append_erasure(&mut writer, 1, 2);
    fixture.append(&mut writer, 1, &[b"four"]);
    (fixture, place)
}

fn read(segments: &Segments, place: &RunPlace) -> Vec<RunEntry> {
    let run = Run::decode(segments.read(place.position, place.length).unwrap()).unwrap();
    run.entries().map(Result::unwrap).collect()
}

#[test]
fn erasing__overwrites_content_and_keeps_the_batch_valid() {
    let (mut fixture, place) = named();
    let opened = fixture.open();
    assert_eq!(opened.log.unfinished_erasures, [(place, 2)]);
    let segments = opened.log.writer.segments();
    assert!(read(&segments, &place)[1].body_matches());
    for _ in 0..2 {
        segments.erase(&place, 2).unwrap();
        let entries = read(&segments, &place);
        assert_eq!(entries.iter().map(|e| e.erased).collect::<Vec<_>>(), [false, true, false]);
        assert!(!entries[1].body_matches() && entries[2].body_matches());
    }
    drop(opened);
    fixture.expect_erased(1, 2);
    let opened = fixture.open();
    assert!(opened.log.unfinished_erasures.is_empty() && opened.log.damaged.is_empty());
    let bytes = fs::read(fixture.segment(1)).unwrap();
    assert!(!bytes.windows(6).any(|part| part == b"second"));
}

#[test]
fn erasing__power_cut_at_every_byte_is_finished_later() {
    let (mut fixture, place) = named();
    let before = fs::read(fixture.segment(1)).unwrap();
    fixture.open().log.writer.segments().erase(&place, 2).unwrap();
    let after = fs::read(fixture.segment(1)).unwrap();
    let items = fixture.items.clone();
    let changed: Vec<_> = (0..before.len()).filter(|i| before[*i] != after[*i]).collect();
    assert_eq!(changed.len(), 1 + 16 + 6);
    let parts = |i: usize| (changed[..i].to_vec(), changed[i..].to_vec());
    for i in 0..=changed.len() {
        let (head, tail) = parts(i);
        for done in [head, tail] {
            let mut half = before.clone();
            done.iter().for_each(|at| half[*at] = after[*at]);
            fs::write(fixture.segment(1), &half).unwrap();
            let opened = fixture.try_open().unwrap();
            assert!(opened.log.damaged.is_empty() && opened.log.torn.is_none());
            let unfinished = &opened.log.unfinished_erasures;
            match done.len() == changed.len() {
                true => assert!(unfinished.is_empty()),
                false => assert_eq!(*unfinished, [(place, 2)]),
            }
            for (place, n) in unfinished {
                opened.log.writer.segments().erase(place, *n).unwrap();
            }
            drop(opened);
            fixture.expect_erased(1, 2);
            assert!(fixture.open().log.unfinished_erasures.is_empty());
            fixture.items.clone_from(&items);
        }
    }
}

#[test]
fn erasing__entry_before_the_resumed_part_is_left_to_the_caller() {
    let (fixture, _) = named();
    let opened = fixture.open();
    let (position, next_seq) = opened.batches[1];
    assert_eq!(next_seq, 4);
    drop(opened);
    let from = Resume { position: Some(position), next_seq };
    let opened = fixture.try_open_from(from).unwrap();
    assert_eq!(opened.log.earlier_erasures, [(1, 2)]);
    assert!(opened.log.unfinished_erasures.is_empty());
}

#[test]
fn erasing__erased_twice_is_finished() {
    let (mut fixture, place) = named();
    let mut writer = fixture.open().log.writer;
    writer.segments().erase(&place, 2).unwrap();
    fixture.expect_erased(1, 2);
    fixture.append_erasure(&mut writer, 1, 2);
    drop(writer);
    let log = fixture.open().log;
    assert!(log.unfinished_erasures.is_empty() && log.earlier_erasures.is_empty());
}

#[test]
fn erasing__wrong_place_changes_nothing() {
    let (fixture, place) = named();
    let opened = fixture.open();
    let segments = opened.log.writer.segments();
    let before = fixture.files();
    let at = |segment, offset| LogPosition { segment, offset };
    let offset = place.position.offset;
    for wrong in [
        RunPlace { conversation: 2, ..place },
        RunPlace { first: 2, ..place },
        RunPlace { length: place.length - 1, ..place },
        RunPlace { length: u32::MAX, ..place },
        RunPlace { position: at(1, offset + 1), ..place },
        RunPlace { position: at(1, 4090), ..place },
    ] {
        assert!(matches!(segments.erase(&wrong, 2), Err(LogError::Damaged(_))), "{wrong:?}");
    }
    assert!(matches!(segments.erase(&place, 4), Err(LogError::Damaged(_))));
    assert!(segments.erase(&RunPlace { position: at(2, offset), ..place }, 2).is_err());
    assert!(fixture.files() == before);
}

#[test]
fn erasing__already_erased_entries_can_be_imported() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let mut entries = fixture.entries(1, &[b"gone", b"there"]);
    let commit = entries[0].1;
    entries[0].0.content = StoredContent::Erased(commit);
    let mut batch = BatchBuilder::new();
    batch.run(1, entries.iter().map(|(entry, commit)| (entry, commit)));
    let erasure = Erasure { conversation: 1, n: 1, time_ms: 5, commit };
    batch.erasure(&erasure);
    fixture.items.push(Item::Erasure(erasure));
    fixture.expect_erased(1, 1);
    let place = writer.append(&mut batch).unwrap().runs[0];
    let read = read(&writer.segments(), &place);
    assert!(read[0].erased && !read[1].erased);
    drop(writer);
    for _ in 0..2 {
        let mut opened = fixture.open();
        assert!(opened.log.torn.is_none() && opened.log.damaged.is_empty());
        assert!(opened.log.unfinished_erasures.is_empty());
        opened.log.writer.state_durable().unwrap();
    }
}
