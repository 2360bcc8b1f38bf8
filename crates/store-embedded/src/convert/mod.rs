//! Conversion of the record of versions up to 0.1 (`record.db`) into the log.
//!
//! The new record is built next to the old one, verified against it, and then takes its place. The
//! caller holds the locks of the old record all the time. A process that is killed at any moment
//! leaves one form whole, and [`convert`] starts over or completes the switch.

mod copy;
mod old_record;
mod room;
mod switch;
mod verify;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use twinlock_core::id::ServerKey;
use twinlock_store::RowKey;

use crate::open_error::OpenError;
use crate::options::Expected;
use old_record::OldRecord;
pub use room::Room;
pub(crate) use switch::refuse_older_programs;
pub use switch::{KEPT_FOR, forget_old_record, forget_when_old};
use switch::{Place, RecordPaths};

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub stage: Stage,
    /// Entries that this stage has done.
    pub done: u64,
    /// Entries of the record.
    pub total: u64,
}

/// A part of a conversion that goes through all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The entries are verified and written into the log.
    Copy,
    /// The log is read and compared with the old record.
    Verify,
}

/// What a conversion has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Converted {
    /// Entries, erased ones included. 0 if an earlier process had copied them.
    pub entries: u64,
    /// Conversations, as [`Self::entries`].
    pub conversations: u64,
    /// Users, as [`Self::entries`].
    pub users: u64,
    /// An earlier process had built and verified the log, and only the switch was left.
    pub resumed: bool,
}

/// A moment at which tests end a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Everything is in the log.
    Copied,
    /// The new record is complete and verified.
    Verified,
    /// The new record is on disk.
    Synced,
    /// The old record has no WAL.
    Closed,
    /// The old record has its second name.
    Linked,
    /// The file that older programs refuse is in place of the old record. From here on the new
    /// record counts.
    Replaced,
    /// The new record has its name.
    Renamed,
}

/// Called after each step.
type Hook<'h> = &'h mut dyn FnMut(Step) -> Result<(), OpenError>;

/// Whether there is an old record, or a conversion to complete. Changes nothing.
///
/// # Errors
/// [`OpenError`] if the files contradict each other or cannot be read.
pub fn is_due(database: &Path, directory: &Path) -> Result<bool, OpenError> {
    let paths = RecordPaths::new(database, directory)?;
    Ok(matches!(paths.place()?, Place::Old | Place::Replaced))
}

/// What the conversion of an old record takes; nothing, if only its last step is left. `None`: there
/// is no old record.
///
/// # Errors
/// As [`is_due`].
pub fn room_for(database: &Path, directory: &Path) -> Result<Option<Room>, OpenError> {
    let paths = RecordPaths::new(database, directory)?;
    match paths.place()? {
        Place::Old => room::room(&paths).map(Some),
        Place::Replaced => room::room(&paths).map(|room| Some(Room { needed: 0, ..room })),
        Place::Lost => {
            Err(paths.damaged(&paths.directory, "the record was converted, and is missing"))
        }
        _ => Ok(None),
    }
}

/// Converts the record in `database` (`DIR/record.db`) into the log in `directory` (`DIR/record`),
/// or completes a conversion that was interrupted. Without an old record it does nothing.
///
/// The old record stays as `record.db.before-log` until [`forget_old_record`]. In its place is a
/// file that older programs refuse.
///
/// The caller holds the [`RecordLock`](crate::RecordLock) of `directory`, which excludes programs that
/// know only the old form. `expected`: entries that were acknowledged, as known from elsewhere.
///
/// # Errors
/// [`OpenError::Damaged`] if an entry, a row or a count of the old record does not verify;
/// [`OpenError::NoRoom`]; others. Then the old record is what it was.
pub fn convert(
    database: &Path,
    directory: &Path,
    row_key: &RowKey,
    server_key: &ServerKey,
    expected: &Expected,
    progress: &mut dyn FnMut(Progress),
) -> Result<Converted, OpenError> {
    let paths = RecordPaths::new(database, directory)?;
    let keys = Keys { row: row_key, server: server_key };
    let converted = convert_with(&paths, keys, expected, progress, &mut |_| Ok(()));
    if converted.is_err() && matches!(paths.place(), Ok(Place::Old)) {
        // The error counts; what cannot be removed now is removed by the next conversion.
        let _removed = paths.remove_unfinished();
    }
    converted
}

/// What a record is verified with.
#[derive(Clone, Copy)]
struct Keys<'k> {
    row: &'k RowKey,
    server: &'k ServerKey,
}

fn convert_with(
    paths: &RecordPaths,
    keys: Keys<'_>,
    expected: &Expected,
    progress: &mut dyn FnMut(Progress),
    hook: Hook<'_>,
) -> Result<Converted, OpenError> {
    match paths.place()? {
        Place::Nothing | Place::Done => Ok(Converted::default()),
        Place::Lost => {
            Err(paths.damaged(&paths.directory, "the record was converted, and is missing"))
        }
        Place::Replaced => {
            paths.rename_new(hook)?;
            Ok(Converted { resumed: true, ..Converted::default() })
        }
        Place::Old => {
            paths.remove_unfinished()?;
            paths.check_links()?;
            room::check(paths)?;
            let converted = build(paths, keys, expected, progress, hook)?;
            paths.switch(hook)?;
            Ok(converted)
        }
    }
}

/// Builds the new record next to the old one.
fn build(
    paths: &RecordPaths,
    keys: Keys<'_>,
    expected: &Expected,
    progress: &mut dyn FnMut(Progress),
    hook: Hook<'_>,
) -> Result<Converted, OpenError> {
    let old = OldRecord::open(&paths.database, expected)?;
    let copied = copy::copy(&old, &paths.new, keys, progress)?;
    hook(Step::Copied)?;
    verify::complete(&old, &paths.new, &copied, progress)?;
    hook(Step::Verified)?;
    drop(old);
    sync_all(&paths.new)?;
    hook(Step::Synced)?;
    Ok(Converted {
        entries: copied.entries,
        conversations: copied.heads.len() as u64,
        users: copied.users,
        resumed: false,
    })
}

/// Syncs every file of a directory, and the directory.
fn sync_all(directory: &Path) -> Result<(), OpenError> {
    let fault = |error| OpenError::File { path: directory.to_path_buf(), error };
    for item in fs::read_dir(directory).map_err(fault)? {
        let path = item.map_err(fault)?.path();
        switch::sync_file(&path)?;
    }
    switch::sync_directory(directory)
}
