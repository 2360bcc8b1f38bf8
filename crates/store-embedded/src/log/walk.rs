//! Reading a log without opening it: every batch in order, and nothing is written.

use std::path::Path;

use super::LogPosition;
use super::create::is_begun;
use super::directory::{Contents, check_segments};
use super::erasures::{Content, content};
use super::faults::Faults;
use super::format::{BatchHeader, SEGMENT_HEAD};
use super::open::ReplayedBatch;
use super::scan::{ScannedBatch, SegmentReader, Tail};
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
    let mut walk = Walk { visit, next: 1, held: None, before: None };
    for number in first..=last {
        let lost = |next, offset, problem| {
            let end = WalkEnd::Lost { segment: number, offset, problem };
            Ok(Some(Walked { segments: number - first, next, end }))
        };
        let mut reader = match SegmentReader::open(directory, number, &record_id, &faults) {
            Err(OpenError::Damaged { problem, .. }) => {
                walk.release()?;
                let problem = format!("{problem}; record {} is missing", walk.next);
                return lost(walk.next, None, problem);
            }
            reader => reader?,
        };
        // A segment begins only when the batch before it is on disk.
        walk.release()?;
        if number == first && first > 1 {
            walk.next = reader.header.first;
        }
        if reader.header.first != walk.next {
            let (found, next) = (reader.header.first, walk.next);
            let problem = format!("it begins with record {found}, and record {next} is missing");
            return lost(next, None, problem);
        }
        let (offset, end) = walk.segment(&mut reader, number == last)?;
        match end {
            WalkEnd::Whole if number < last => {}
            WalkEnd::Lost { problem, .. } => return lost(walk.next, Some(offset), problem),
            end => {
                let segments = number - first + 1;
                return Ok(Some(Walked { segments, next: walk.next, end }));
            }
        }
    }
    Ok(None)
}

struct Walk<'a> {
    visit: &'a mut dyn FnMut(ReplayedBatch) -> Result<(), OpenError>,
    next: u64,
    /// The last batch that was read. What follows shows whether it was written whole.
    held: Option<ScannedBatch>,
    /// The batch before `held`.
    before: Option<BatchHeader>,
}

impl Walk<'_> {
    /// Reads a segment. Returns what follows its last batch, and where that is.
    fn segment(
        &mut self,
        reader: &mut SegmentReader,
        is_last: bool,
    ) -> Result<(u32, WalkEnd), OpenError> {
        let segment = reader.header.number;
        let mut offset = SEGMENT_HEAD;
        while let Some(batch) = reader.batch_at(offset, self.next)? {
            self.release()?;
            (offset, self.next) = (batch.end().offset, batch.header.next());
            self.held = Some(batch);
        }
        let next = self.next;
        let lost = |problem| (offset, WalkEnd::Lost { segment, offset: Some(offset), problem });
        let torn = match reader.tail(offset)? {
            Tail::Batch(later) => {
                self.release()?;
                return Ok(lost(format!(
                    "the batch with record {next} does not verify, and one at byte {later} follows it"
                )));
            }
            Tail::Torn(_) if !is_last => {
                self.release()?;
                return Ok(lost(format!(
                    "the batch with record {next} does not verify, and a segment follows it"
                )));
            }
            Tail::Zeros if !is_last => return Ok((offset, WalkEnd::Whole)),
            Tail::Torn(to) => Some((offset, to)),
            Tail::Zeros => match self.held.as_ref().map(|held| (held, content(held))) {
                None | Some((_, Content::Whole)) => None,
                Some((held, Content::Torn)) => {
                    let cut = (held.position.offset, offset);
                    self.next = held.header.first;
                    self.held = None;
                    Some(cut)
                }
                Some((_, Content::Erased(conversation, n))) => {
                    self.release()?;
                    return Ok(lost(format!(
                        "record {next} is missing: the last batch has an erased entry ({n} of \
                         conversation {conversation}), and its erasure does not follow"
                    )));
                }
            },
        };
        let last = self.held.as_ref().map(|held| held.header).or(self.before);
        self.release()?;
        let Some((from, to)) = torn else { return Ok((offset, WalkEnd::Whole)) };
        if last.is_some_and(|last| last.closed) {
            let problem = format!(
                "the record was closed before this byte, and what follows is no batch with record {}",
                self.next
            );
            return Ok((from, WalkEnd::Lost { segment, offset: Some(from), problem }));
        }
        let position = LogPosition { segment, offset: from };
        Ok((from, WalkEnd::Torn { position, bytes: u64::from(to.saturating_sub(from)) }))
    }

    /// Hands the held batch over.
    fn release(&mut self) -> Result<(), OpenError> {
        let Some(batch) = self.held.take() else { return Ok(()) };
        self.before = Some(batch.header);
        let (header, position, end) = (batch.header, batch.position, batch.end());
        (self.visit)(ReplayedBatch {
            first: header.first,
            next: header.next(),
            position,
            end,
            blocks: batch.blocks,
        })
    }
}
