//! Records that are sound, in use, missing, of another server.

use std::fs;

use twinlock_core::id::Link;
use twinlock_store::Newest;

use super::*;
use crate::RecordLock;

fn examine(dir: &Path) -> Result<RecordState, OpenError> {
    examine_record(&dir.join("record.db"), &dir.join("record"))
}

#[test]
fn check__sound_record_verifies_and_stays_as_it_is() {
    for killed in [false, true] {
        let dir = record(killed);
        let before = files(dir.path());
        let wal = dir.path().join("record/people.db-wal");
        assert_eq!(wal.exists(), killed, "{:?}", before.keys());
        let mut told = Vec::new();
        let keys = CheckKeys { row: &row_key(), server: &SERVER_KEY };
        let directory = dir.path().join("record");
        let report = check_record(&directory, keys, &Expected::default(), &mut |at| told.push(at));
        let report = report.unwrap().unwrap();
        assert_eq!((report.findings.as_slice(), report.more), (&[][..], 0), "{report:#?}");
        assert_eq!(report.notes, [""; 0]);
        assert_eq!((report.segments, report.accounts), (2, 5), "{report:#?}");
        assert!(report.erased > 2 && report.conversations > 3, "{report:#?}");
        assert!(report.entries > 2 * BULK.1 as u64, "{report:#?}");
        assert!(report.bytes > (BULK.0 * BULK.1) as u64, "{report:#?}");
        assert_eq!(told.len() as u64, report.batches);
        assert!(told.iter().all(|at| at.done <= at.total));
        assert_eq!(examine(dir.path()).unwrap(), RecordState::Good);
        assert!(files(dir.path()) == before, "{:?}", files(dir.path()).keys());
        // A server can start, and the check of its record is the same.
        drop(EmbeddedStore::open(&directory, options()).unwrap());
        let again = check(dir.path());
        assert!(again.is_sound() && again.entries == report.entries, "{again:#?}");
    }
}

#[test]
fn check__record_in_use_is_not_read_and_two_checks_run_together() {
    for killed in [false, true] {
        let dir = record(killed);
        let directory = dir.path().join("record");
        let lock = RecordLock::take(&directory).unwrap();
        let before = files(dir.path());
        assert_eq!(examine(dir.path()).unwrap(), RecordState::InUse);
        let checked = try_check(dir.path(), &Expected::default());
        assert!(matches!(checked, Err(OpenError::InUse(_))), "{checked:?}");
        assert!(files(dir.path()) == before);
        drop(lock);
        // In the middle of a check: another one works, and a server does not start.
        let keys = CheckKeys { row: &row_key(), server: &SERVER_KEY };
        let mut batches = 0;
        let report = check_record(&directory, keys, &Expected::default(), &mut |_| {
            batches += 1;
            if batches == 3 {
                assert!(check(dir.path()).is_sound());
                assert_eq!(examine(dir.path()).unwrap(), RecordState::Good);
                let started = EmbeddedStore::open(&directory, options());
                assert!(matches!(started, Err(OpenError::InUse(_))), "{started:?}");
            }
        });
        assert!(report.unwrap().unwrap().is_sound());
        assert!(batches > 3);
        // A removed lock file does not let one in.
        let read = ReadLock::take(&directory).unwrap();
        fs::remove_file(dir.path().join("record.lock")).ok();
        assert!(matches!(RecordLock::take(&directory), Err(OpenError::InUse(_))));
        drop(read);
    }
}

/// A power cut before the first transaction of a database was on disk.
#[test]
fn check__database_without_content_is_like_a_missing_one() {
    let dir = record(true);
    for file in ["index.db", "words.db"] {
        for suffix in ["-wal", "-shm"] {
            fs::remove_file(dir.path().join("record").join(format!("{file}{suffix}"))).ok();
        }
        fs::write(dir.path().join("record").join(file), "").unwrap();
    }
    let report = check(dir.path());
    assert!(report.is_sound(), "{report:#?}");
    assert!(report.notes.iter().any(|note| note.contains("index.db is missing")), "{report:#?}");
    drop(EmbeddedStore::open(&dir.path().join("record"), options()).unwrap());
    assert!(check(dir.path()).is_sound());
    // It lacks the read markers.
    fs::remove_file(dir.path().join("record/people.db-wal")).ok();
    fs::write(dir.path().join("record/people.db"), "").unwrap();
    let report = check(dir.path());
    assert!(!report.is_sound() && report.findings[0].problem.contains("read markers"));
}

#[test]
fn check__missing_record_is_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(try_check(dir.path(), &Expected::default()).unwrap(), None);
    assert_eq!(examine(dir.path()).unwrap(), RecordState::Missing);
    fs::create_dir(dir.path().join("record")).unwrap();
    assert_eq!(try_check(dir.path(), &Expected::default()).unwrap(), None);
    assert_eq!(examine(dir.path()).unwrap(), RecordState::Missing);
    assert_eq!(files(dir.path()).len(), 0);
    // A first start that was cut short, and a record that has lost its only segment.
    let store = EmbeddedStore::open(&dir.path().join("record"), options());
    drop(store.unwrap());
    let spare = dir.path().join("record/spare");
    fs::rename(segment(dir.path(), 1), &spare).unwrap();
    for database in ["people.db", "index.db", "words.db"] {
        fs::remove_file(dir.path().join("record").join(database)).unwrap();
    }
    assert_eq!(try_check(dir.path(), &Expected::default()).unwrap(), None);
    assert_eq!(examine(dir.path()).unwrap(), RecordState::Missing);
    fs::remove_file(spare).unwrap();
    assert!(!check(dir.path()).is_sound());
    assert!(examine(dir.path()).is_err());
}

#[test]
fn check__keys_of_another_server_are_refused() {
    let dir = record(false);
    let directory = dir.path().join("record");
    let (row, other) = (row_key(), ServerKey([1; 32]));
    let keys = CheckKeys { row: &row, server: &other };
    let checked = check_record(&directory, keys, &Expected::default(), &mut |_| {});
    assert!(matches!(checked, Err(OpenError::OtherServer { .. })), "{checked:?}");
    let row = RowKey::new(&[1; 32]);
    let keys = CheckKeys { row: &row, server: &SERVER_KEY };
    let report =
        check_record(&directory, keys, &Expected::default(), &mut |_| {}).unwrap().unwrap();
    assert_eq!(report.findings.len(), 20, "{report:#?}");
    assert!(report.more > 0);
    assert!(
        report.findings.iter().all(|found| found.problem.contains("the MAC of")),
        "{report:#?}"
    );
    for of in ["user ada", "a credential", "a classic key"] {
        let is_named = report.findings.iter().any(|found| found.problem.contains(of));
        assert!(is_named || of == "a classic key", "{of}: {report:#?}");
    }
}

#[test]
fn check__acknowledged_entry_that_is_missing_is_named() {
    let dir = record(false);
    let store = EmbeddedStore::open(&dir.path().join("record"), options()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let newest = runtime.block_on(store.newest(100)).unwrap();
    runtime.block_on(store.close()).unwrap();
    drop(store);
    let check = |entries: Vec<Newest>| {
        try_check(dir.path(), &Expected { entries }).unwrap().unwrap().findings
    };
    assert!(newest.len() > 1);
    assert_eq!(check(newest.clone()), []);
    let at = newest[0];
    let changed = check(vec![Newest { link: Link([1; 32]), ..at }]);
    assert!(changed[0].problem.contains("another one"), "{changed:?}");
    let later = check(vec![at, Newest { n: at.n + 1, ..at }]);
    assert_eq!((later.len(), later[0].n), (1, Some(at.n + 1)));
    assert!(later[0].problem.contains("earlier time"), "{later:?}");
}

#[test]
fn examine__names_damage_and_the_old_form() {
    let dir = record(false);
    let mut last = None;
    let walked = walk(&dir.path().join("record"), WalkedPart::LastSegment, &mut |batch| {
        if batch.next > batch.first {
            last = Some(batch.position);
        }
        Ok(())
    });
    assert_eq!(walked.unwrap().unwrap().segments, 1);
    let at = last.unwrap();
    for (path, offset) in [
        (segment(dir.path(), at.segment), u64::from(at.offset) + 41),
        (segment(dir.path(), 1), 20),
        (dir.path().join("record/marker"), 9),
        (dir.path().join("record/people.db"), 3),
    ] {
        flip(&path, offset, 3);
        let before = files(dir.path());
        let problem = examine(dir.path()).unwrap_err().to_string();
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
        assert!(files(dir.path()) == before);
        flip(&path, offset, 3);
    }
    assert_eq!(examine(dir.path()).unwrap(), RecordState::Good);
    // A lost record next to the file that took the place of the old one.
    fs::rename(dir.path().join("record"), dir.path().join("elsewhere")).unwrap();
    let problem = examine(dir.path()).unwrap_err().to_string();
    assert!(problem.contains("missing"), "{problem}");

    let dir = tempfile::tempdir().unwrap();
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/old-record.db");
    fs::copy(old, dir.path().join("record.db")).unwrap();
    let before = files(dir.path());
    let RecordState::Old(room) = examine(dir.path()).unwrap() else { panic!("not the old form") };
    assert!(room.needed > 16 * 1024 * 1024 && room.available > 0, "{room:?}");
    assert!(files(dir.path()) == before);
}
