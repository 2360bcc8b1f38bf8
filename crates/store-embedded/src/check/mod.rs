//! The check of a whole record that no server has open. It creates and changes no file.
//!
//! The log is read from its beginning: each batch, each entry against its commitment and its
//! conversation's chain, the MAC of each account and credential. On the way the changes are
//! replayed into a temporary database. When the replay reaches the position of `people.db`, both
//! must have the same rows. The replay continues, because later entries need later accounts. The
//! same pass compares `index.db`.

mod changes;
mod examine;
mod findings;
mod index;
mod log;
mod people;
mod tables;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use twinlock_core::id::ServerKey;
use twinlock_store::RowKey;

use crate::log::{WalkEnd, Walked, WalkedPart, record_id, segment_path, walk};
use crate::open_error::OpenError;
use crate::options::Expected;
use crate::record_lock::ReadLock;
pub use examine::{RecordState, examine_record};
pub use findings::Finding;
use findings::Findings;
use log::LogCheck;

/// What a record is verified with.
#[derive(Debug, Clone, Copy)]
pub struct CheckKeys<'k> {
    /// The key of the MACs over users and credentials.
    pub row: &'k RowKey,
    /// The key of the server whose record it should be.
    pub server: &'k ServerKey,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckProgress {
    /// Bytes of segments that are read.
    pub done: u64,
    /// Bytes of all segments.
    pub total: u64,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordReport {
    /// Segments that were read.
    pub segments: u64,
    /// Batches that verify.
    pub batches: u64,
    /// Entries in them.
    pub entries: u64,
    /// Erased ones among the entries.
    pub erased: u64,
    /// Conversations.
    pub conversations: u64,
    /// Users.
    pub accounts: u64,
    /// Bytes of the batches.
    pub bytes: u64,
    /// What does not verify; at most 20.
    pub findings: Vec<Finding>,
    /// Number of other findings.
    pub more: u64,
    /// Observations that are not damage.
    pub notes: Vec<String>,
}

impl RecordReport {
    /// Whether everything verified.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks the record in `directory`. `None`: there is none.
///
/// A server that starts during the check finds the record in use. `expected`: entries that were
/// acknowledged, as known from elsewhere.
///
/// # Errors
/// [`OpenError::InUse`] if a server has the record open; [`OpenError::OtherServer`]; others if a
/// file cannot be read or is of a newer version. Damage is a finding.
pub fn check_record(
    directory: &Path,
    keys: CheckKeys<'_>,
    expected: &Expected,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<Option<RecordReport>, OpenError> {
    let locked = ReadLock::take(directory)?;
    let directory = locked.directory.as_path();
    let mut findings = Findings::default();
    let record = match record_id(directory) {
        Err(OpenError::Damaged { path, problem, .. }) => {
            let findings = vec![Finding::new(&path, problem)];
            return Ok(Some(RecordReport { findings, ..RecordReport::default() }));
        }
        record => record?,
    };
    let Some(record) = record else { return Ok(None) };
    let mut check = LogCheck::new(directory, &record, keys, expected, &mut findings)?;
    let total = segment_bytes(directory)?;
    let walked = walk(directory, WalkedPart::All, &mut |batch| {
        check.batch(batch, &mut findings)?;
        progress(CheckProgress { done: check.bytes().min(total), total });
        Ok(())
    })?;
    let Some(Walked { segments, next, end }) = walked else { return Ok(None) };
    let mut notes = Vec::new();
    match &end {
        WalkEnd::Whole => {}
        WalkEnd::Torn { position, bytes } => notes.push(format!(
            "the log ends at byte {} of segment {} in a batch of {bytes} bytes that was not written \
             whole and so not acknowledged; the next start removes it",
            position.offset, position.segment
        )),
        WalkEnd::Lost { segment, offset, problem } => {
            let mut finding = Finding::new(&segment_path(directory, *segment), problem);
            finding.offset = *offset;
            findings.add(finding);
            notes.push("nothing after the place where the log is damaged was checked".into());
        }
    }
    let is_lost = matches!(end, WalkEnd::Lost { .. });
    let mut report = check.finish(next, is_lost, &mut findings, &mut notes)?;
    report.segments = segments.into();
    (report.findings, report.more, report.notes) = (findings.kept, findings.more, notes);
    Ok(Some(report))
}

/// The size of all segments, of which zeros at the end of the last one are a part.
fn segment_bytes(directory: &Path) -> Result<u64, OpenError> {
    let mut total = 0;
    for number in 1.. {
        let path = segment_path(directory, number);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) => total += meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(OpenError::File { path, error }),
        }
    }
    Ok(total)
}
