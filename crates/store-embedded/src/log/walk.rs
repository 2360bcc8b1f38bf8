//! Reading a log without opening it: every batch in order, and nothing is written.

use std::path::Path;

use super::LogPosition;
use super::batches::{After, Batches, SegmentEnd};
use super::create::is_begun;
use super::directory::{Contents, check_segments};
use super::faults::Faults;
use super::format::SEGMENT_HEAD;
use super::open::ReplayedBatch;
use super::scan::{ScannedBatch, SegmentReader};
use crate::OpenError;

/// Which part of a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalkedPart {
    /// All batches.
    All,
    /// The headers of all segments, and the batches of the last one.
    LastSegment,
}

/// Where a walk has ended.
#[derive(Debug)]
pub(crate) struct Walked {
    /// Segments that were read.
    pub(crate) segments: u32,
    /// The sequence after the last record that was read.
    pub(crate) next: u64,
    /// What follows it.
    pub(crate) end: WalkEnd,
}

/// What follows the last batch that verifies.
#[derive(Debug)]
pub(crate) enum WalkEnd {
    /// Nothing.
    Whole,
    /// A batch that was not written whole, and so not acknowledged.
    Torn { position: LogPosition, bytes: u64 },
    /// Records that the log had are missing. `offset`: `None` for the segment as a whole.
    Lost { segment: u32, offset: Option<u32>, problem: String },
}

/// Reads the log in `directory`, and hands every batch over. `None`: the directory has no log, or
/// one that the first start has not completed.
///
/// # Errors
/// [`OpenError`] if a file cannot be read, or a newer version wrote it; that of `visit`. Damage is
/// [`WalkEnd::Lost`], but for that of the marker.
pub(crate) fn walk(
    directory: &Path,
    part: WalkedPart,
    visit: &mut dyn FnMut(ReplayedBatch) -> Result<(), OpenError>,
) -> Result<Option<Walked>, OpenError> {
    let faults = Faults::default();
    let contents = Contents::find(directory, &faults)?;
    let Some(record_id) = contents.record_id else { return Ok(None) };
    if contents.segments.is_empty() && is_begun(directory, &record_id, &faults) {
        return Ok(None);
    }
    let last = contents.segments.last().copied().unwrap_or(1);
    let first = match part {
        WalkedPart::All => 1,
        WalkedPart::LastSegment => {
            check_segments(directory, &contents, &record_id, &faults)?;
            last
        }
    };
    let mut batches = Batches::new(1, None);
    let visit = &mut |batch: ScannedBatch| visit(batch.into());
    for number in first..=last {
        let lost = |next, offset, problem| {
            let end = WalkEnd::Lost { segment: number, offset, problem };
            Ok(Some(Walked { segments: number - first, next, end }))
        };
        let mut reader = match SegmentReader::open(directory, number, &record_id, &faults) {
            Err(OpenError::Damaged { problem, .. }) => {
                batches.release(visit)?;
                let problem = format!("{problem}; record {} is missing", batches.next);
                return lost(batches.next, None, problem);
            }
            reader => reader?,
        };
        batches.next_segment(visit)?;
        if number == first && first > 1 {
            batches.next = reader.header.first;
        }
        if reader.header.first != batches.next {
            let (found, next) = (reader.header.first, batches.next);
            let problem = format!("it begins with record {found}, and record {next} is missing");
            return lost(next, None, problem);
        }
        let is_last = number == last;
        let SegmentEnd { offset, after } =
            batches.segment(&mut reader, SEGMENT_HEAD, is_last, visit)?;
        let end = match after {
            After::Nothing if !is_last => continue,
            After::Nothing => WalkEnd::Whole,
            After::Torn(to) => WalkEnd::Torn {
                position: LogPosition { segment: number, offset },
                bytes: u64::from(to.saturating_sub(offset)),
            },
            After::Lost(problem) => {
                batches.release(visit)?;
                return lost(batches.next, Some(offset), problem);
            }
        };
        batches.release(visit)?;
        return Ok(Some(Walked { segments: number - first + 1, next: batches.next, end }));
    }
    Ok(None)
}
