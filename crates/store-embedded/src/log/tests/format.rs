//! The format, and opening a log that nothing has happened to.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::super::format::{BatchHeader, SegmentHeader};
use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two runs, an erasure and a change, with the checksums that `zlib.crc32` of Python computes.
#[test]
fn log__batch_has_the_documented_bytes() {
    let sample = |n: u64, body: &'static [u8]| StoredEntry {
        n,
        time_ms: 0x0102_0304_0506_0708,
        message_id: MessageId([0x11; 16]),
        kind: EntryKind::TEXT,
        sender: Bytes::from_static(b"ada"),
        content: StoredContent::Body(Salt([0x22; 16]), Bytes::from_static(body)),
        link: Link([0x44; 32]),
    };
    let commit = Commit([0x33; 32]);
    let mut erased = sample(1, b"");
    erased.content = StoredContent::Erased(commit);
    let mut batch = BatchBuilder::new();
    batch.change(b"change");
    batch.run(7, [(&sample(8, b"hello"), &commit), (&sample(9, b""), &commit)]);
    batch.run(300, [(&erased, &commit)]);
    batch.erasure(&Erasure { conversation: 7, n: 2, time_ms: 3, commit });
    let header = SegmentHeader {
        number: 3,
        record_id: [0x66; 16],
        id: [0x55; 16],
        first: 1000,
        size: 4_194_304,
    };
    let (sealed, bytes) = batch.seal(1000, &header, 64).unwrap();
    let (bytes, padding) = bytes.split_at(sealed.length as usize);
    // The write ends with a page.
    assert!((64 + bytes.len() + padding.len()).is_multiple_of(4096) && padding.len() < 4096);
    assert!(padding.iter().all(|byte| *byte == 0));
    assert_eq!(hex(bytes), include_str!("batch.hex").replace('\n', ""));

    assert_eq!(hex(&header.encode()), include_str!("segment.hex").trim());
    assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
}

#[test]
fn log__batch_header_belongs_to_one_place() {
    let header = BatchHeader::empty(9, true);
    let bytes = header.encode(&[1; 16], 64);
    assert_eq!(BatchHeader::decode(&bytes, &[1; 16], 64), Some(header));
    assert_eq!(BatchHeader::decode(&bytes, &[1; 16], 65), None);
    assert_eq!(BatchHeader::decode(&bytes, &[2; 16], 64), None);
    assert_eq!(BatchHeader::decode(&bytes[..39], &[1; 16], 64), None);
}

#[test]
fn log__runs_split_at_their_limits() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let small = vec![b"x".as_slice(); 300];
    let large = vec![7; 40_000];
    let mut batch = BatchBuilder::new();
    fixture.add(&mut batch, 1, &small);
    fixture.add(&mut batch, 2, &[&large, &large, b"small", &vec![8; 65_531]]);
    let appended = writer.append(&mut batch).unwrap();
    let shape: Vec<_> =
        appended.runs.iter().map(|run| (run.conversation, run.first, run.count, run.seq)).collect();
    let expected =
        [(1, 1, 256, 1), (1, 257, 44, 257), (2, 1, 1, 301), (2, 2, 2, 302), (2, 4, 1, 304)];
    assert_eq!(shape, expected);
    assert_eq!((appended.first, appended.next), (1, 305));
    let segments = writer.segments();
    for place in appended.runs {
        let run = Run::decode(segments.read(place.position, place.length).unwrap()).unwrap();
        assert_eq!((run.conversation(), run.count()), (place.conversation, place.count));
        assert!(run.entries().all(|entry| entry.unwrap().body_matches()));
    }
    drop(writer);
    fixture.open();
}

#[test]
fn log__batch_that_cannot_be_encoded_is_refused() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let (mut long, commit) = entry(1, 1, &Link([0; 32]), b"x");
    long.sender = Bytes::from(vec![b'a'; 256]);
    let mut batch = BatchBuilder::new();
    batch.run(1, [(&long, &commit)]);
    assert!(matches!(writer.append(&mut batch), Err(LogError::Failed(_))));
    batch.clear();
    fixture.add(&mut batch, 1, &[b"good"]);
    writer.append(&mut batch).unwrap();
    drop(writer);
    fixture.open();
}

#[test]
fn log__first_start_creates_private_files_and_a_reopening_none() {
    let fixture = Fixture::new();
    assert_eq!(record_id(&fixture.path()).unwrap(), None);
    let opened = fixture.open();
    assert!(opened.log.created && !opened.log.closed && opened.log.torn.is_none());
    assert_eq!((opened.log.writer.next_seq(), opened.log.writer.end()), (1, START));
    assert_eq!(record_id(&fixture.path()).unwrap(), Some(opened.log.record_id));
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(fixture.path()), 0o700);
    for (path, _) in fixture.files() {
        assert_eq!(mode(path), 0o600);
    }
    let id = opened.log.record_id;
    drop(opened);
    fs::set_permissions(fixture.segment(1), fs::Permissions::from_mode(0o644)).unwrap();
    let again = fixture.open();
    assert!(!again.log.created);
    assert_eq!(again.log.record_id, id);
    assert_eq!(mode(fixture.segment(1)), 0o600);
}

#[test]
fn log__first_start_continues_after_being_cut() {
    let fixture = Fixture::new();
    let id = fixture.open().log.record_id;
    // As if the process had ended before the last step.
    fs::rename(fixture.segment(1), fixture.path().join("spare")).unwrap();
    let opened = fixture.open();
    assert!(opened.log.created);
    assert_eq!(opened.log.record_id, id);
    drop(opened);
    // And before the marker.
    fs::rename(fixture.segment(1), fixture.path().join("spare")).unwrap();
    fs::remove_file(fixture.path().join("marker")).unwrap();
    assert_ne!(fixture.open().log.record_id, id);
}

#[test]
fn log__links_and_other_kinds_of_files_are_refused() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let moved = fixture.dir.path().join("moved");
    for name in ["00000001.log", "marker"] {
        let path = fixture.path().join(name);
        fs::rename(&path, &moved).unwrap();
        symlink(&moved, &path).unwrap();
        assert!(matches!(fixture.try_open().err(), Some(OpenError::File { .. })));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(fixture.try_open().err(), Some(OpenError::File { .. })));
        fs::remove_dir(&path).unwrap();
        fs::rename(&moved, &path).unwrap();
    }
    fs::rename(fixture.path(), &moved).unwrap();
    symlink(&moved, fixture.path()).unwrap();
    assert!(matches!(fixture.try_open().err(), Some(OpenError::File { .. })));
}

#[test]
fn log__other_files_are_left_alone() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"one"]);
    drop(writer);
    for name in ["1.log", "00000000.log", "00000002.log.old", "people.db", "000000002.log"] {
        fs::write(fixture.path().join(name), name).unwrap();
    }
    fixture.open();
    assert_eq!(fs::read(fixture.path().join("people.db")).unwrap(), b"people.db");
}

#[test]
fn log__newer_formats_are_refused_by_name() {
    let fixture = Fixture::new();
    drop(fixture.open());
    for name in ["00000001.log", "marker"] {
        let path = fixture.path().join(name);
        let good = fs::read(&path).unwrap();
        let mut newer = good.clone();
        newer[11] = 2;
        let end = if name == "marker" { 36 } else { 60 };
        let checksum = crc32fast::hash(&newer[..end]).to_be_bytes();
        newer[end..end + 4].copy_from_slice(&checksum);
        fs::write(&path, &newer).unwrap();
        let error = fixture.try_open().err();
        assert!(matches!(error, Some(OpenError::Newer { found: 2, known: 1, .. })), "{error:?}");
        fs::write(&path, &good).unwrap();
    }
}
