//! A quick check of a record that changes nothing, for `twinlock doctor`.

use std::path::Path;

use crate::convert::{self, Room};
use crate::database;
use crate::index::INDEX;
use crate::log::{WalkEnd, Walked, WalkedPart, segment_path, walk};
use crate::open_error::OpenError;
use crate::people::PEOPLE;
use crate::record_lock::ReadLock;

/// The state of a record's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordState {
    /// There is none.
    Missing,
    /// A server has it open, and checked it when it started.
    InUse,
    /// It has the form of version 0.1, and the next start converts it.
    Old(Room),
    /// The quick check found no fault.
    Good,
}

/// Checks the record in `directory` (`DIR/record`) if no server has it open: the headers of all
/// segments, the last segment, and the pages of the databases. `database`: the record of version 0.1
/// (`DIR/record.db`).
///
/// A server that starts during the check finds the record in use. Creates, changes and removes no file.
///
/// # Errors
/// [`OpenError`].
pub fn examine_record(database: &Path, directory: &Path) -> Result<RecordState, OpenError> {
    let locked = match ReadLock::take(directory) {
        Err(OpenError::InUse(_)) => return Ok(RecordState::InUse),
        locked => locked?,
    };
    if let Some(room) = convert::room_for(database, directory)? {
        return Ok(RecordState::Old(room));
    }
    let directory = locked.directory.as_path();
    let Some(Walked { end, .. }) = walk(directory, WalkedPart::LastSegment, &mut |_| Ok(()))?
    else {
        return Ok(RecordState::Missing);
    };
    if let WalkEnd::Lost { segment, offset, problem } = end {
        let path = segment_path(directory, segment);
        let place = offset.map(|offset| format!("at byte {offset}: ")).unwrap_or_default();
        let (directory, problem) = (directory.to_path_buf(), format!("{place}{problem}"));
        return Err(OpenError::Damaged { path, directory, problem });
    }
    // A missing one, and an index that cannot be used, are made again.
    let path = directory.join(PEOPLE.file);
    if path.symlink_metadata().is_ok() {
        let conn = database::examine(&PEOPLE, directory)?;
        let check = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match check {
            Ok(ok) if ok == "ok" => {}
            Ok(problem) => return Err(OpenError::Database { path, problem }),
            Err(error) => return Err(OpenError::Database { path, problem: error.to_string() }),
        }
    }
    if directory.join(INDEX.file).symlink_metadata().is_ok() {
        let index = database::examine(&INDEX, directory);
        if let Err(error @ OpenError::Newer { .. }) = index {
            return Err(error);
        }
    }
    Ok(RecordState::Good)
}
