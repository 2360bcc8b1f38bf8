//! Reading a log at the start: the replay, and the end that a power cut or a killed process left.

use std::path::Path;

use twinlock_core::id::ConversationId;

use super::LogPosition;
use super::batches::{After, Batches, SegmentEnd};
use super::directory::{damaged, fault, segment_path};
use super::erasures::{Checked, ErasureCheck, find_whole};
use super::faults::Faults;
use super::file::{LogFile, sync_directory};
use super::format::{SEGMENT_HEAD, SegmentHeader};
use super::open::{Replayed, Resume};
use super::run::RunPlace;
use super::scan::{Boundary, ScannedBatch, SegmentReader};
use super::writer::LogEnd;
use crate::OpenError;

/// What opening has found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) end: LogEnd,
    pub(crate) torn: Option<(LogPosition, u64)>,
    pub(crate) damaged: Vec<(ConversationId, u64)>,
    pub(crate) unfinished: Vec<(RunPlace, u64)>,
    pub(crate) earlier: Vec<(ConversationId, u64)>,
}

/// The log that is read.
pub(crate) struct Recovery<'a> {
    pub(crate) directory: &'a Path,
    /// Those of all segments.
    pub(crate) headers: &'a [SegmentHeader],
    pub(crate) faults: &'a Faults,
}

/// Takes the batches that are on disk.
struct Replay<'a> {
    target: &'a mut dyn Replayed,
    erasures: ErasureCheck,
}

impl Replay<'_> {
    fn batch(&mut self, batch: ScannedBatch) -> Result<(), OpenError> {
        self.erasures.add(&batch);
        if batch.header.records == 0 {
            return Ok(());
        }
        self.target.batch(batch.into())
    }
}

impl Recovery<'_> {
    pub(crate) fn run(
        &self,
        from: Resume,
        target: &mut dyn Replayed,
    ) -> Result<Recovered, OpenError> {
        let start = from.position.unwrap_or(LogPosition { segment: 1, offset: SEGMENT_HEAD });
        let first = if from.position.is_some() { from.next_seq } else { 1 };
        let (mut reader, mut batches) = self.begin(start, first)?;
        let mut replay = Replay { target, erasures: ErasureCheck::default() };
        let mut offset = start.offset;
        let end = loop {
            let index = usize::try_from(reader.header.number).unwrap_or(usize::MAX);
            let following = self.headers.get(index);
            let visit = &mut |batch| replay.batch(batch);
            let end = batches.segment(&mut reader, offset, following.is_none(), visit)?;
            if let After::Lost(problem) = &end.after {
                return Err(reader.damaged(self.directory, end.offset, problem));
            }
            let Some(following) = following else { break end };
            if following.first != batches.next {
                let problem = format!(
                    "the batch with record {} is damaged or missing, and segment {} follows it with \
                     record {}",
                    batches.next, following.number, following.first
                );
                return Err(reader.damaged(self.directory, end.offset, &problem));
            }
            batches.next_segment(visit)?;
            (reader, offset) = (self.reader(following.number)?, SEGMENT_HEAD);
        };
        let (end, torn) = self.settle(&reader, &end, &mut batches, &mut replay)?;
        let Checked { damaged, mut unfinished, mut named } = replay.erasures.finish();
        if !named.is_empty() {
            let mut reader = self.reader(start.segment)?;
            let (mut offset, mut next) = (start.offset, first);
            loop {
                while let Some(batch) = reader.batch_at(offset, next)? {
                    find_whole(&batch, &mut named, &mut unfinished);
                    (offset, next) = (batch.end().offset, batch.header.next());
                }
                if reader.header.number >= end.header.number {
                    break;
                }
                (reader, offset) = (self.reader(reader.header.number + 1)?, SEGMENT_HEAD);
            }
        }
        let mut earlier: Vec<_> = named.into_iter().collect();
        earlier.sort_unstable();
        Ok(Recovered { end, torn, damaged, unfinished, earlier })
    }

    fn reader(&self, number: u32) -> Result<SegmentReader, OpenError> {
        let record_id = self.headers.first().map(|first| first.record_id).unwrap_or_default();
        SegmentReader::open(self.directory, number, &record_id, self.faults)
    }

    /// Checks where the replay begins.
    fn begin(&self, start: LogPosition, next: u64) -> Result<(SegmentReader, Batches), OpenError> {
        let wrong = |path: &Path| {
            let problem = format!(
                "record {next} does not begin at byte {} of segment {}, where a database has it",
                start.offset, start.segment
            );
            damaged(self.directory, path, problem)
        };
        let path = segment_path(self.directory, start.segment);
        let index = usize::try_from(start.segment).ok().and_then(|number| number.checked_sub(1));
        if index.and_then(|index| self.headers.get(index)).is_none() {
            return Err(wrong(&path));
        }
        let mut reader = self.reader(start.segment)?;
        match reader.boundary(start.offset, next)? {
            None => Err(wrong(&path)),
            Some(Boundary::Batch) => Ok((reader, Batches::new(next, None))),
            Some(Boundary::After(last)) => Ok((reader, Batches::new(next, last))),
        }
    }

    /// Makes the end of the log durable. A batch that was not written whole is overwritten.
    fn settle(
        &self,
        reader: &SegmentReader,
        end: &SegmentEnd,
        batches: &mut Batches,
        replay: &mut Replay<'_>,
    ) -> Result<(LogEnd, Option<(LogPosition, u64)>), OpenError> {
        let (header, offset, next) = (reader.header, end.offset, batches.next);
        let cut = match end.after {
            After::Torn(to) => Some(to),
            _ => None,
        };
        if cut.is_some()
            && let Some((conversation, n)) = replay.target.lacks(batches.held.as_ref())?
        {
            let problem = format!(
                "the batch with record {next} is damaged, and entry {n} of conversation {conversation}, \
                 which was acknowledged, is not before it"
            );
            return Err(reader.damaged(self.directory, offset, &problem));
        }
        let path = segment_path(self.directory, header.number);
        let file = LogFile::open_writable(&path, self.faults).map_err(fault(&path))?;
        // A killed process leaves its last batch in the page cache, and after a failed sync the
        // kernel takes it for written. Only bytes that are written again are synced for certain.
        let made_durable = || {
            if let Some(held) = &batches.held {
                file.write(u64::from(held.position.offset), &held.bytes)?;
            }
            if let Some(to) = cut {
                file.zero(u64::from(offset), u64::from(to.saturating_sub(offset)))?;
            }
            file.sync()
        };
        made_durable().map_err(fault(&path))?;
        sync_directory(self.directory, self.faults).map_err(fault(self.directory))?;
        let last = batches.last();
        batches.release(&mut |batch| replay.batch(batch))?;
        let position = LogPosition { segment: header.number, offset };
        let torn = cut.map(|to| (position, u64::from(to.saturating_sub(offset))));
        let closed = last.is_some_and(|last| last.closed);
        let stated = next == 1 || last.is_some_and(|last| last.records == 0);
        Ok((LogEnd { file, header, offset, next, stated, closed }, torn))
    }
}
