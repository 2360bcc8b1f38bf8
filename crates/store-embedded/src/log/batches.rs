//! The batches of a log in order, and what follows the last one of a segment.

use super::erasures::{Content, content};
use super::format::BatchHeader;
use super::scan::{ScannedBatch, SegmentReader, Tail};
use crate::OpenError;

/// Gets each batch, in order.
type Visit<'a> = &'a mut dyn FnMut(ScannedBatch) -> Result<(), OpenError>;

/// Reads a log segment by segment.
///
/// The last batch is held back: what follows it shows whether it was written whole.
#[derive(Debug)]
pub(crate) struct Batches {
    /// The sequence after the last batch.
    pub(crate) next: u64,
    /// The last batch.
    pub(crate) held: Option<ScannedBatch>,
    /// The header of the one before it in this segment.
    before: Option<BatchHeader>,
}

/// Where the batches of a segment end.
#[derive(Debug)]
pub(crate) struct SegmentEnd {
    pub(crate) offset: u32,
    pub(crate) after: After,
}

/// What follows the last batch that verifies.
#[derive(Debug)]
pub(crate) enum After {
    /// Zeros.
    Nothing,
    /// A batch up to this offset that was not written whole, unless it is known to be acknowledged.
    Torn(u32),
    /// Damage: the log had more records.
    Lost(String),
}

impl Batches {
    /// Begins with the record `next`, which follows the batch `before`.
    pub(crate) fn new(next: u64, before: Option<BatchHeader>) -> Self {
        Self { next, held: None, before }
    }

    /// The header of the last batch of this segment.
    pub(crate) fn last(&self) -> Option<BatchHeader> {
        self.held.as_ref().map(|held| held.header).or(self.before)
    }

    /// Reads a segment from `offset` on. All batches but the last one go to `visit`.
    pub(crate) fn segment(
        &mut self,
        reader: &mut SegmentReader,
        mut offset: u32,
        is_last: bool,
        visit: Visit<'_>,
    ) -> Result<SegmentEnd, OpenError> {
        while let Some(batch) = reader.batch_at(offset, self.next)? {
            self.release(visit)?;
            (offset, self.next) = (batch.end().offset, batch.header.next());
            self.held = Some(batch);
        }
        let next = self.next;
        let damaged = |what| {
            let after = After::Lost(format!("the batch with record {next} is damaged, and {what}"));
            Ok(SegmentEnd { offset, after })
        };
        let to = match reader.tail(offset)? {
            Tail::Batch(later) => return damaged(format!("one at byte {later} follows it")),
            Tail::Torn(_) if !is_last => return damaged("a segment follows it".into()),
            // With other bytes after it, the held batch was on disk before those were written.
            Tail::Torn(to) => to,
            Tail::Zeros => match self.held.as_ref().map(content) {
                _ if !is_last => return Ok(SegmentEnd { offset, after: After::Nothing }),
                None | Some(Content::Whole) => {
                    return Ok(SegmentEnd { offset, after: After::Nothing });
                }
                Some(Content::Erased(conversation, n)) => {
                    let after = After::Lost(format!(
                        "record {next} is missing: the last batch has an erased entry ({n} of \
                         conversation {conversation}), and its erasure does not follow"
                    ));
                    return Ok(SegmentEnd { offset, after });
                }
                Some(Content::Torn) => {
                    let to = offset;
                    if let Some(held) = self.held.take() {
                        (offset, self.next) = (held.position.offset, held.header.first);
                    }
                    to
                }
            },
        };
        let after = match self.last() {
            Some(last) if last.closed => After::Lost(format!(
                "the record was closed before this byte, and what follows is no batch with record {}",
                self.next
            )),
            _ => After::Torn(to),
        };
        Ok(SegmentEnd { offset, after })
    }

    /// Goes on to the next segment, which begins only when the batch before it is on disk.
    pub(crate) fn next_segment(&mut self, visit: Visit<'_>) -> Result<(), OpenError> {
        self.release(visit)?;
        self.before = None;
        Ok(())
    }

    /// Hands the last batch over.
    pub(crate) fn release(&mut self, visit: Visit<'_>) -> Result<(), OpenError> {
        let Some(batch) = self.held.take() else { return Ok(()) };
        self.before = Some(batch.header);
        visit(batch)
    }
}
