//! Conversions that end after each step.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;

const SERVER_KEY: ServerKey = ServerKey([0x5e; 32]);
const ENTRIES: u64 = 104;

fn fixture() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/old-record.db");
    fs::copy(fixture, dir.path().join("record.db")).unwrap();
    dir
}

fn paths(dir: &Path) -> RecordPaths {
    RecordPaths::new(&dir.join("record.db"), &dir.join("record")).unwrap()
}

/// Converts until this step, as a process that is killed then.
fn convert_until(dir: &Path, last: Option<Step>) -> Result<Converted, OpenError> {
    let row_key = RowKey::new(&[0x4b; 32]);
    let keys = Keys { row: &row_key, server: &SERVER_KEY };
    let hook = &mut |step| match last {
        Some(last) if last == step => {
            let error = std::io::Error::other("killed");
            Err(OpenError::File { path: dir.to_path_buf(), error })
        }
        _ => Ok(()),
    };
    convert_with(&paths(dir), keys, &Expected::default(), &mut |_| {}, hook)
}

fn names(dir: &Path) -> Vec<String> {
    let items = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const STEPS: [Step; 7] = [
    Step::Copied,
    Step::Verified,
    Step::Synced,
    Step::Closed,
    Step::Linked,
    Step::Replaced,
    Step::Renamed,
];

#[test]
fn convert__ended_after_any_step_starts_over_or_resumes() {
    let original = fs::read(fixture().path().join("record.db")).unwrap();
    for first in STEPS {
        for second in [None, Some(Step::Copied), Some(Step::Linked), Some(Step::Replaced)] {
            let dir = fixture();
            convert_until(dir.path(), Some(first)).unwrap_err();
            let place = paths(dir.path()).place().unwrap();
            let expected = match first {
                Step::Replaced => Place::Replaced,
                Step::Renamed => Place::Done,
                _ => Place::Old,
            };
            assert_eq!(place, expected, "{first:?}");
            if place == Place::Old {
                assert!(fs::read(dir.path().join("record.db")).unwrap() == original);
            }
            // An empty directory is removed.
            if second.is_none() && first != Step::Renamed {
                fs::create_dir(dir.path().join("record")).unwrap();
            }
            let ended = convert_until(dir.path(), second);
            let again = convert_until(dir.path(), None).unwrap();
            let over =
                [ended.ok(), Some(again)].into_iter().flatten().map(|done| done.entries).max();
            let counted = if place == Place::Old { ENTRIES } else { 0 };
            let in_place = matches!(second, Some(Step::Replaced | Step::Renamed));
            if !in_place {
                assert_eq!(over, Some(counted), "{first:?}, {second:?}");
            }
            assert_eq!(names(dir.path()), ["record", "record.db", "record.db.before-log"]);
            let kept = fs::read(dir.path().join("record.db.before-log")).unwrap();
            assert!(kept == original, "{first:?}, {second:?}");
            assert_eq!(paths(dir.path()).place().unwrap(), Place::Done);
            let options = crate::StoreOptions::new(SERVER_KEY, RowKey::new(&[0x4b; 32]));
            drop(crate::EmbeddedStore::open(&dir.path().join("record"), options).unwrap());
        }
    }
}

#[test]
fn convert__failure_leaves_only_the_old_record() {
    let dir = fixture();
    convert_until(dir.path(), Some(Step::Linked)).unwrap_err();
    assert_eq!(
        names(dir.path()),
        ["record.db", "record.db.before-log", "record.db.new", "record.new"]
    );
    // A conversion that is refused, as one with another key, removes the leftovers too.
    let (database, directory) = (dir.path().join("record.db"), dir.path().join("record"));
    let (other, expected) = (RowKey::new(&[1; 32]), Expected::default());
    convert(&database, &directory, &other, &SERVER_KEY, &expected, &mut |_| {}).unwrap_err();
    assert_eq!(names(dir.path()), ["record.db"]);
}

#[test]
fn convert__record_that_was_kept_before_is_not_overwritten() {
    let dir = fixture();
    fs::write(dir.path().join("record.db.before-log"), "another record").unwrap();
    let refused = convert_until(dir.path(), None);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("before-log: it is another record"), "{refused}");
    assert_eq!(names(dir.path()), ["record.db", "record.db.before-log"]);
}
