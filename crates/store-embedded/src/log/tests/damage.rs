//! Changed bits, and missing, swapped or foreign files.

use super::*;

/// A log with every kind of record, closed or not.
fn sample(closed: bool) -> Fixture {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let place = fixture.append(&mut writer, 1, &[b"first", b"second"]).runs[0];
    let mut batch = BatchBuilder::new();
    fixture.add(&mut batch, 1, &[b"third"]);
    fixture.add(&mut batch, 2, &[b"other"]);
    batch.change(b"change");
    writer.append(&mut batch).unwrap();
    fixture.items.push(Item::Change(b"change".to_vec()));
    fixture.append_erasure(&mut writer, 1, 2);
    writer.segments().erase(&place, 2).unwrap();
    fixture.expect_erased(1, 2);
    fixture.append(&mut writer, 2, &[b"last"]);
    if closed {
        writer.close().unwrap();
    } else {
        writer.state_durable().unwrap();
    }
    fixture
}

#[test]
fn damage__flipped_bit_of_every_byte_is_found() {
    for closed in [true, false] {
        let fixture = sample(closed);
        let good = fixture.open();
        let end = good.log.writer.end().offset as usize;
        drop(good);
        let bytes = fs::read(fixture.segment(1)).unwrap();
        for at in 0..end + 50 {
            for bit in [1 << (at % 8), 0xff] {
                let mut flipped = bytes.clone();
                flipped[at] ^= bit;
                fs::write(fixture.segment(1), &flipped).unwrap();
                let found = match fixture.try_open() {
                    Err(OpenError::Damaged { .. }) => true,
                    Err(error) => panic!("byte {at}: {error}"),
                    Ok(opened) => {
                        // A torn end has only the batch without records, or nothing. Nothing follows
                        // what has closed the log.
                        let only_end = opened.log.torn.is_none_or(|(from, _)| {
                            from.offset as usize >= end - 40 && !(closed && at >= end)
                        });
                        assert!(only_end, "byte {at} cuts the log");
                        opened.log.torn.is_some()
                            || !opened.log.damaged.is_empty()
                            || !opened.log.unfinished_erasures.is_empty()
                    }
                };
                assert!(found, "byte {at} was not found");
            }
        }
    }
}

#[test]
fn damage__flipped_bit_of_the_marker_is_refused() {
    let fixture = sample(true);
    let path = fixture.path().join("marker");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).unwrap();
        assert_eq!(fixture.refused().0, "marker");
        assert!(record_id(&fixture.path()).is_err());
    }
    fs::write(&path, &good[..20]).unwrap();
    assert_eq!(fixture.refused().0, "marker");
    fs::remove_file(&path).unwrap();
    assert_eq!(fixture.refused().0, "marker");
    assert!(record_id(&fixture.path()).is_err());
}

/// A log of at least four segments.
fn long() -> Fixture {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    while writer.end().segment < 4 {
        fixture.append(&mut writer, 1, &[&[7; 1000]]);
    }
    fixture.append(&mut writer, 1, &[&[7; 1000]]);
    drop(writer);
    fixture
}

#[test]
fn damage__missing_segments_are_named() {
    for number in 1..=3 {
        let fixture = long();
        fs::remove_file(fixture.segment(number)).unwrap();
        let (file, problem) = fixture.refused();
        assert_eq!(file, format!("{number:08}.log"));
        assert!(problem.contains("missing"), "{problem}");
    }
    // Only a database can tell that the last one is missing.
    let fixture = long();
    let end = fixture.open().log.writer.end();
    fs::remove_file(fixture.segment(4)).unwrap();
    let next_seq = u64::try_from(fixture.items.len()).unwrap() + 1;
    assert!(!is_boundary(&fixture.path(), end, next_seq).unwrap());
    let from = Resume { position: Some(end), next_seq };
    assert!(matches!(fixture.try_open_from(from).err(), Some(OpenError::Damaged { .. })));
}

#[test]
fn damage__lost_log_is_no_first_start() {
    let fixture = long();
    for number in 1..=4 {
        fs::remove_file(fixture.segment(number)).unwrap();
    }
    assert_eq!(fixture.refused().0, "00000001.log");
    fs::remove_file(fixture.path().join("marker")).unwrap();
    let from = Resume { position: Some(START), next_seq: 1 };
    assert!(matches!(fixture.try_open_from(from).err(), Some(OpenError::Damaged { .. })));
    let _none = fs::remove_file(fixture.path().join("spare"));
    fs::remove_dir(fixture.path()).unwrap();
    assert!(matches!(fixture.try_open_from(from).err(), Some(OpenError::Damaged { .. })));
    assert!(!fixture.path().exists());
}

#[test]
fn damage__swapped_segments_are_named() {
    let fixture = long();
    let [two, three] = [2, 3].map(|number| fs::read(fixture.segment(number)).unwrap());
    fs::write(fixture.segment(2), three).unwrap();
    fs::write(fixture.segment(3), two).unwrap();
    let (file, problem) = fixture.refused();
    assert_eq!((file.as_str(), problem.as_str()), ("00000002.log", "it is segment 3"));
}

#[test]
fn damage__truncated_and_extended_segments_are_named() {
    for number in 1..=4 {
        let fixture = long();
        let good = fs::read(fixture.segment(number)).unwrap();
        let mut longer = good.clone();
        longer.push(0);
        for bytes in [&good[..good.len() - 1], &good[..64], &good[..63], &[], &longer[..]] {
            fs::write(fixture.segment(number), bytes).unwrap();
            assert_eq!(fixture.refused().0, format!("{number:08}.log"));
        }
    }
}

#[test]
fn damage__segment_of_another_record_is_named() {
    let (fixture, other) = (long(), long());
    fs::copy(other.segment(3), fixture.segment(3)).unwrap();
    let (file, problem) = fixture.refused();
    assert_eq!(file, "00000003.log");
    assert!(problem.contains("another record"), "{problem}");
    fs::copy(other.path().join("marker"), fixture.path().join("marker")).unwrap();
    assert_eq!(fixture.refused().0, "00000001.log");
}

#[test]
fn damage__older_copy_of_a_segment_is_refused() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[&[7; 1000]]);
    let old = fs::read(fixture.segment(1)).unwrap();
    while writer.end().segment < 2 {
        fixture.append(&mut writer, 1, &[&[7; 1000]]);
    }
    drop(writer);
    fs::write(fixture.segment(1), old).unwrap();
    let (file, problem) = fixture.refused();
    assert_eq!(file, "00000001.log");
    assert!(problem.contains("the batch with record 2 is damaged or missing"), "{problem}");
}

#[test]
fn damage__garbage_before_the_next_segment_is_refused() {
    let fixture = long();
    let size = fs::metadata(fixture.segment(2)).unwrap().len();
    patch(&fixture.segment(2), u32::try_from(size).unwrap() - 1, b"x");
    assert_eq!(fixture.refused().0, "00000002.log");
}

#[test]
fn damage__erased_newest_entry_shows_a_lost_erasure() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let place = fixture.append(&mut writer, 1, &[b"secret"]);
    fixture.append_erasure(&mut writer, 1, 1);
    writer.segments().erase(&place.runs[0], 1).unwrap();
    drop(writer);
    fixture.expect_erased(1, 1);
    fixture.open();
    patch(&fixture.segment(1), place.end.offset, &[0; 97]);
    let (_, problem) = fixture.refused();
    assert!(problem.contains("record 2 is missing"), "{problem}");
}

#[test]
fn damage__body_is_reported_and_the_rest_can_be_read() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let place = fixture.append(&mut writer, 1, &[b"one", b"two", b"three"]);
    fixture.append(&mut writer, 1, &[b"four"]);
    drop(writer);
    // Neither zeros nor the flag make an erasure.
    let run = place.runs[0].position.offset;
    let two = run + 25 + 95 + 3 + 16 + 3;
    patch(&fixture.segment(1), two + 25, &[1]);
    patch(&fixture.segment(1), two + 98, &[0; 19]);
    let opened = fixture.try_open().unwrap();
    assert_eq!(opened.log.damaged, [(1, 2)]);
    assert!(opened.log.unfinished_erasures.is_empty());
    patch(&fixture.segment(1), two + 25, &[0]);
    assert_eq!(fixture.try_open().unwrap().log.damaged, [(1, 2)]);
    let segments = opened.log.writer.segments();
    let place = place.runs[0];
    let run = Run::decode(segments.read(place.position, place.length).unwrap()).unwrap();
    let whole: Vec<_> = run.entries().map(|entry| entry.unwrap().body_matches()).collect();
    assert_eq!(whole, [true, false, true]);
}
