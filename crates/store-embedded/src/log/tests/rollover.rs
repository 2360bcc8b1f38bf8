//! Segments: one after the other, larger ones, spares, and positions in them.

use super::*;

#[test]
fn rollover__segments_double_and_everything_is_read() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let mut runs = Vec::new();
    while writer.end().segment < 6 {
        let bodies: &[&[u8]] = &[&[3; 500], &[4; 200]];
        runs.extend(fixture.append(&mut writer, 1, bodies).runs);
        if runs.len().is_multiple_of(3) {
            writer.state_durable().unwrap();
        }
    }
    let sizes: Vec<_> =
        (1..=6).map(|number| fs::metadata(fixture.segment(number)).unwrap().len()).collect();
    assert_eq!(sizes, [4096, 8192, 16384, 16384, 16384, 16384]);
    let segments = writer.segments();
    for place in &runs {
        let run = Run::decode(segments.read(place.position, place.length).unwrap()).unwrap();
        assert_eq!((run.first(), run.count()), (place.first, 2));
    }
    drop(writer);
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"more"]);
    writer.close().unwrap();
    assert!(fixture.open().log.closed);
}

#[test]
fn rollover__batch_larger_than_a_segment_gets_its_own() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"small"]);
    let large = vec![9; 60_000];
    for _ in 0..3 {
        let place = fixture.append(&mut writer, 1, &[&large, &large]);
        assert_eq!(place.position.offset, 64);
        let size = fs::metadata(fixture.segment(place.position.segment)).unwrap().len();
        assert!(size >= 120_000 && size.is_multiple_of(4096));
    }
    // More than one piece of the scan.
    let huge = vec![[9; 65_000]; 40];
    let huge: Vec<_> = huge.iter().map(|body| body.as_slice()).collect();
    fixture.append(&mut writer, 1, &huge);
    fixture.append(&mut writer, 1, &[b"small"]);
    drop(writer);
    fixture.open();
}

#[test]
fn rollover__every_batch_is_a_boundary_and_nothing_else() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let mut boundaries = vec![(START, 1)];
    for i in 0..12 {
        let batch = fixture.append(&mut writer, 1, &[&[3; 500]]);
        boundaries.extend([(batch.position, batch.first), (batch.end, batch.next)]);
        if i % 3 == 0 {
            writer.state_durable().unwrap();
            boundaries.push((writer.end(), writer.next_seq()));
        }
    }
    writer.close().unwrap();
    let opened = fixture.open();
    boundaries.push((opened.log.writer.end(), opened.log.writer.next_seq()));
    drop(opened);
    let all = fixture.items.clone();
    for (position, next_seq) in &boundaries {
        assert!(is_boundary(&fixture.path(), *position, *next_seq).unwrap());
        assert!(!is_boundary(&fixture.path(), *position, next_seq + 1).unwrap());
        let from = Resume { position: Some(*position), next_seq: *next_seq };
        let opened = fixture.try_open_from(from).unwrap();
        assert_eq!(opened.items, all[usize::try_from(next_seq - 1).unwrap()..]);
        assert!(opened.log.closed && opened.log.writer.next_seq() == 13);
    }
    for segment in 1..=2 {
        let starts: Vec<_> = boundaries.iter().filter(|(p, _)| p.segment == segment).collect();
        for offset in (0..fs::metadata(fixture.segment(segment)).unwrap().len()).step_by(3) {
            let position = LogPosition { segment, offset: u32::try_from(offset).unwrap() };
            if starts.iter().all(|(start, _)| *start != position) && offset != 64 {
                assert!((1..14).all(|n| !is_boundary(&fixture.path(), position, n).unwrap()));
            }
        }
    }
    for position in [LogPosition { segment: 0, offset: 64 }, LogPosition { segment: 9, offset: 64 }]
    {
        assert!(!is_boundary(&fixture.path(), position, 1).unwrap());
        let from = Resume { position: Some(position), next_seq: 1 };
        assert!(fixture.try_open_from(from).is_err());
    }
}

#[test]
fn rollover__begun_segment_without_batches_is_used() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    while writer.end().segment < 2 {
        fixture.append(&mut writer, 1, &[&[3; 500]]);
    }
    drop(writer);
    let last = fixture.items.pop().unwrap();
    patch(&fixture.segment(2), 64, &vec![0; 4000]);
    let opened = fixture.open();
    assert_eq!(opened.log.writer.end(), LogPosition { segment: 2, offset: 64 });
    let mut writer = opened.log.writer;
    let Item::Entry(_, last) = last else { panic!() };
    fixture.heads.insert(1, (last.n - 1, link_before(&fixture, last.n)));
    fixture.append(&mut writer, 1, &[b"again"]);
    drop(writer);
    fixture.open();
}

fn link_before(fixture: &Fixture, n: u64) -> Link {
    let is = |item: &Item| match item {
        Item::Entry(_, entry) if entry.n + 1 == n => Some(entry.link),
        _ => None,
    };
    fixture.items.iter().find_map(is).unwrap()
}

#[test]
fn rollover__half_written_spare_is_replaced() {
    let mut fixture = Fixture::new();
    let mut writer = fixture.open().log.writer;
    let spare = fixture.path().join("spare");
    fs::write(&spare, [7; 100]).unwrap();
    while writer.end().segment < 2 {
        fixture.append(&mut writer, 1, &[&[3; 500]]);
    }
    drop(writer);
    fs::write(&spare, [7; 100]).unwrap();
    let mut writer = fixture.open().log.writer;
    while writer.end().segment < 3 {
        fixture.append(&mut writer, 1, &[&[3; 500]]);
    }
    drop(writer);
    assert_eq!(fs::metadata(fixture.segment(3)).unwrap().len(), 16384);
    fixture.open();
}

#[test]
fn rollover__readers_keep_few_files_open() {
    let mut fixture = Fixture::new();
    fixture.options = LogOptions { smallest: 4096, largest: 4096, ..fixture.options };
    let mut writer = fixture.open().log.writer;
    let mut runs = Vec::new();
    while writer.end().segment < 150 {
        runs.extend(fixture.append(&mut writer, 1, &[&[3; 3000]]).runs);
    }
    let segments = writer.segments();
    let open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let paths = links.filter_map(|link| fs::read_link(link.path()).ok());
        paths.filter(|path| path.starts_with(fixture.path())).count()
    };
    for place in runs.iter().chain(&runs) {
        segments.read(place.position, place.length).unwrap();
    }
    // And the last segment, the spare and the directory.
    assert!((64..=67).contains(&open()), "{} files are open", open());
}
