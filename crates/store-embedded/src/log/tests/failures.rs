//! Writes and syncs that fail, and the next try.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::super::faults::{Fault, Faults, Operation};
use super::*;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// Fails the operations with these numbers, of which `matching` counts some.
fn failing(
    numbers: std::ops::Range<usize>,
    code: i32,
    written: usize,
    matching: impl Fn(&Operation<'_>) -> bool + Send + Sync + 'static,
) -> (Faults, Arc<Mutex<usize>>) {
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    let faults = Faults::new(move |operation| {
        if !matching(&operation) {
            return None;
        }
        let mut count = counted.lock().unwrap();
        *count += 1;
        let error = io::Error::from_raw_os_error(code);
        numbers.contains(&(*count - 1)).then_some(Fault { written, error })
    });
    (faults, count)
}

fn of_spare(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Create(path) | Operation::Write { path, .. } | Operation::Sync(path) => {
            path.ends_with("spare")
        }
        Operation::Rename(_) | Operation::SyncDirectory(_) => false,
    }
}

/// Tries until it works. Returns the errors.
fn retry<T>(mut operation: impl FnMut() -> Result<T, LogError>) -> (T, Vec<LogError>) {
    let mut errors = Vec::new();
    loop {
        match operation() {
            Ok(value) => return (value, errors),
            Err(error) => errors.push(error),
        }
        assert!(errors.len() < 10, "it never works: {errors:?}");
    }
}

/// Appends over a few segments with these failures. Returns the errors.
fn run(fixture: &mut Fixture, faults: Faults) -> Vec<LogError> {
    fixture.options.faults = faults;
    let mut writer = fixture.open().log.writer;
    fixture.options.faults = Faults::default();
    let mut errors = Vec::new();
    for i in 0..12 {
        let mut batch = BatchBuilder::new();
        fixture.add(&mut batch, 1, &[&[i + 1; 800]]);
        let before = (writer.next_seq(), writer.end());
        let (appended, failed) = retry(|| {
            let appended = writer.append(&mut batch);
            if appended.is_err() {
                assert_eq!(writer.next_seq(), before.0);
            }
            appended
        });
        errors.extend(failed);
        assert_eq!((appended.first, appended.next), (before.0, before.0 + 1));
        let segments = writer.segments();
        let place = appended.runs[0];
        let run = Run::decode(segments.read(place.position, place.length).unwrap()).unwrap();
        assert!(run.entries().all(|entry| entry.unwrap().body_matches()));
        if i % 4 == 1 {
            errors.extend(retry(|| writer.state_durable()).1);
        }
    }
    errors
}

#[test]
fn failures__every_operation_may_fail_and_be_repeated() {
    let (faults, count) = failing(0..0, EIO, 0, |_| true);
    run(&mut Fixture::new(), faults);
    let total = *count.lock().unwrap();
    // The first ones are those of the first start.
    let (faults, count) = failing(0..0, EIO, 0, |_| true);
    let mut fixture = Fixture::new();
    fixture.options.faults = faults;
    drop(fixture.open());
    let first = *count.lock().unwrap();
    for number in first..total {
        for (code, written, length) in [(ENOSPC, 0, 1), (EIO, 500, 1), (EIO, usize::MAX, 3)] {
            let (faults, _) = failing(number..number + length, code, written, |_| true);
            let mut fixture = Fixture::new();
            let errors = run(&mut fixture, faults);
            for error in errors {
                match code {
                    ENOSPC => assert_eq!(error, LogError::Full),
                    _ => assert!(matches!(error, LogError::Failed(_)), "{error}"),
                }
            }
            assert!(fixture.open().log.torn.is_none());
        }
    }
}

#[test]
fn failures__first_start_is_repeated_after_every_failure() {
    for number in 0..20 {
        let (faults, count) = failing(number..number + 1, ENOSPC, 10, |_| true);
        let mut fixture = Fixture::new();
        fixture.options.faults = faults;
        let failed = fixture.try_open().is_err();
        assert_eq!(failed, *count.lock().unwrap() > number);
        fixture.options.faults = Faults::default();
        fixture.open();
        if !failed {
            return;
        }
    }
    panic!("the first start has more operations");
}

#[test]
fn failures__refused_batch_is_overwritten_and_synced() {
    for written in [0, 1, 39, 41, 150, usize::MAX] {
        let mut fixture = Fixture::new();
        let done = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&done);
        fixture.options.faults = Faults::new(move |operation| {
            let mut done = noted.lock().unwrap();
            let done: &mut Vec<_> = done.as_mut()?;
            done.push(match operation {
                Operation::Write { offset, bytes, .. } => {
                    Some((offset, bytes.len(), bytes.iter().all(|byte| *byte == 0)))
                }
                _ => None,
            });
            let error = io::Error::from_raw_os_error(EIO);
            (done.len() == 1).then_some(Fault { written, error })
        });
        let mut writer = fixture.open().log.writer;
        fixture.append(&mut writer, 1, &[b"first"]);
        *done.lock().unwrap() = Some(Vec::new());
        let (items, heads) = (fixture.items.clone(), fixture.heads.clone());
        let mut batch = BatchBuilder::new();
        fixture.add(&mut batch, 1, &[b"refused"]);
        assert!(writer.append(&mut batch).is_err());
        let (at, length): (u64, _) = (writer.end().offset.into(), batch.length().unwrap() as usize);
        // The write ends with a page.
        let end = (at + length as u64).next_multiple_of(4096);
        let written = usize::try_from(end - at).unwrap();
        let expected = [Some((at, written, false)), Some((at, length, true)), None];
        assert_eq!(*done.lock().unwrap(), Some(expected.to_vec()));
        drop(writer);
        (fixture.items, fixture.heads) = (items, heads);
        fixture.options.faults = Faults::default();
        assert!(fixture.open().log.torn.is_none());
    }
}

#[test]
fn failures__appends_are_refused_until_the_end_is_repaired() {
    let mut fixture = Fixture::new();
    let on = Arc::new(AtomicBool::new(false));
    let is_on = Arc::clone(&on);
    let (faults, _) = failing(0..usize::MAX, EIO, 60, move |_| is_on.load(Ordering::Relaxed));
    fixture.options.faults = faults;
    let mut writer = fixture.open().log.writer;
    fixture.append(&mut writer, 1, &[b"first"]);
    on.store(true, Ordering::Relaxed);
    let mut batch = BatchBuilder::new();
    fixture.add(&mut batch, 1, &[b"second"]);
    for _ in 0..3 {
        assert!(writer.append(&mut batch).is_err());
        assert!(writer.state_durable().is_err());
    }
    on.store(false, Ordering::Relaxed);
    writer.state_durable().unwrap();
    writer.append(&mut batch).unwrap();
    writer.close().unwrap();
    fixture.options.faults = Faults::default();
    fixture.open();
}

#[test]
fn failures__spare_without_room_is_full_until_there_is() {
    let mut fixture = Fixture::new();
    let full = Arc::new(AtomicBool::new(true));
    let is_full = Arc::clone(&full);
    let (faults, _) = failing(0..usize::MAX, ENOSPC, 10, move |operation| {
        is_full.load(Ordering::Relaxed) && of_spare(operation)
    });
    full.store(false, Ordering::Relaxed);
    fixture.options.faults = faults;
    let mut writer = fixture.open().log.writer;
    full.store(true, Ordering::Relaxed);
    let mut batch = BatchBuilder::new();
    loop {
        batch.clear();
        let before = (fixture.items.clone(), fixture.heads.clone());
        fixture.add(&mut batch, 1, &[&[3; 500]]);
        let Err(error) = writer.append(&mut batch) else { continue };
        assert_eq!(error, LogError::Full);
        (fixture.items, fixture.heads) = before;
        break;
    }
    // A smaller one still fits, and so does what closes the log.
    fixture.append(&mut writer, 1, &[b"x"]);
    writer.state_durable().unwrap();
    full.store(false, Ordering::Relaxed);
    fixture.append(&mut writer, 1, &[&[3; 500]]);
    assert_eq!(writer.end().segment, 2);
    writer.close().unwrap();
    fixture.open();
}

#[test]
fn failures__begun_segment_is_finished_before_anything_else() {
    for failing_rename in [true, false] {
        let mut fixture = Fixture::new();
        let on = Arc::new(AtomicBool::new(false));
        let is_on = Arc::clone(&on);
        let (faults, _) = failing(0..1, EIO, 0, move |operation| {
            let matches = match operation {
                Operation::Rename(_) => failing_rename,
                Operation::SyncDirectory(_) => !failing_rename,
                _ => false,
            };
            is_on.load(Ordering::Relaxed) && matches
        });
        fixture.options.faults = faults;
        let mut writer = fixture.open().log.writer;
        on.store(true, Ordering::Relaxed);
        fixture.append(&mut writer, 1, &[b"small"]);
        let before = (fixture.items.clone(), fixture.heads.clone());
        let mut batch = BatchBuilder::new();
        fixture.add(&mut batch, 1, &[&[3; 5000]]);
        assert!(writer.append(&mut batch).is_err());
        (fixture.items, fixture.heads) = before;
        // It would fit into the first segment, which the second may follow already.
        assert_eq!(fixture.append(&mut writer, 1, &[b"small"]).position.segment, 2);
        drop(writer);
        fixture.open();
    }
}

#[test]
fn failures__failed_erasure_can_be_repeated() {
    for number in 0..4 {
        let mut fixture = Fixture::new();
        let mut writer = fixture.open().log.writer;
        let place = fixture.append(&mut writer, 1, &[b"secret", b"other"]).runs[0];
        fixture.append_erasure(&mut writer, 1, 1);
        drop(writer);
        let on = Arc::new(AtomicBool::new(false));
        let is_on = Arc::clone(&on);
        let (faults, count) =
            failing(number..number + 1, EIO, 3, move |_| is_on.load(Ordering::Relaxed));
        fixture.options.faults = faults;
        let writer = fixture.open().log.writer;
        on.store(true, Ordering::Relaxed);
        let failed = writer.segments().erase(&place, 1).is_err();
        assert_eq!(failed, *count.lock().unwrap() > number);
        assert_eq!(failed, number < 3);
        on.store(false, Ordering::Relaxed);
        drop(writer);
        let opened = fixture.try_open().unwrap();
        assert!(opened.log.damaged.is_empty());
        opened.log.writer.segments().erase(&place, 1).unwrap();
        drop(opened);
        fixture.expect_erased(1, 1);
        fixture.open();
    }
}

#[test]
fn failures__spare_without_direct_writes_uses_the_page_cache() {
    let mut fixture = Fixture::new();
    // The log's first segment is not made by the thread.
    drop(fixture.open());
    let (zeroed, created) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (writes, spares) = (Arc::clone(&zeroed), Arc::clone(&created));
    fixture.options.faults = Faults::new(move |operation| match operation {
        Operation::Write { path, bytes, .. }
            if path.ends_with("spare") && bytes.iter().all(|byte| *byte == 0) =>
        {
            // Of the one piece of a spare, the first write is the direct one.
            let is_direct = writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
            is_direct.then(|| Fault { written: 0, error: io::ErrorKind::InvalidInput.into() })
        }
        Operation::Create(path) if path.ends_with("spare") => {
            spares.fetch_add(1, Ordering::Relaxed);
            None
        }
        _ => None,
    });
    let mut writer = fixture.open().log.writer;
    while writer.end().segment < 4 {
        fixture.append(&mut writer, 1, &[&[3; 500]]);
    }
    writer.close().unwrap();
    // Segments 2 to 4, and perhaps the next one, each at the first try.
    let (zeroed, created) = (zeroed.load(Ordering::Relaxed), created.load(Ordering::Relaxed));
    assert!(zeroed >= 2 * 3 && created <= 4, "{zeroed} {created}");
    fixture.open();
}
