//! Reading a log at the start: the replay, and the end that a power cut or a killed process left.

use std::path::Path;

use twinlock_core::id::ConversationId;

use super::LogPosition;
use super::directory::{damaged, fault, segment_path};
use super::erasures::{Checked, Content, ErasureCheck, content, find_whole};
use super::faults::Faults;
use super::file::{LogFile, sync_directory};
use super::format::{BatchHeader, SEGMENT_HEAD, SegmentHeader};
use super::open::{ReplayedBatch, Resume};
use super::run::RunPlace;
use super::scan::{Boundary, ScannedBatch, SegmentReader, Tail};
use super::writer::LogEnd;
use crate::OpenError;

type Replay<'a> = dyn FnMut(ReplayedBatch) -> Result<(), OpenError> + 'a;

/// What opening has found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) end: LogEnd,
    pub(crate) torn: Option<(LogPosition, u64)>,
    pub(crate) damaged: Vec<(ConversationId, u64)>,
    pub(crate) unfinished: Vec<(RunPlace, u64)>,
    pub(crate) earlier: Vec<(ConversationId, u64)>,
}

/// The state of the scan.
pub(crate) struct Recovery<'a> {
    directory: &'a Path,
    headers: &'a [SegmentHeader],
    faults: &'a Faults,
    replay: &'a mut Replay<'a>,
    erasures: ErasureCheck,
    /// The last batch that was read. The next one shows that it is on disk.
    held: Option<ScannedBatch>,
    /// The batch before `held`.
    before: Option<BatchHeader>,
}

/// Where the scan has stopped.
struct Stop {
    reader: SegmentReader,
    offset: u32,
    next: u64,
    tail: Tail,
}

impl<'a> Recovery<'a> {
    /// `headers` are those of all segments.
    pub(crate) fn new(
        directory: &'a Path,
        headers: &'a [SegmentHeader],
        faults: &'a Faults,
        replay: &'a mut Replay<'a>,
    ) -> Self {
        let (erasures, held, before) = (ErasureCheck::default(), None, None);
        Self { directory, headers, faults, replay, erasures, held, before }
    }

    pub(crate) fn run(mut self, from: Resume) -> Result<Recovered, OpenError> {
        let start = from.position.unwrap_or(LogPosition { segment: 1, offset: SEGMENT_HEAD });
        let next = if from.position.is_some() { from.next_seq } else { 1 };
        let reader = self.begin(start, next)?;
        let stop = self.scan(reader, start.offset, next)?;
        let (end, torn) = self.settle(stop)?;
        let Checked { damaged, mut unfinished, mut named } =
            std::mem::take(&mut self.erasures).finish();
        if !named.is_empty() {
            let mut reader = self.reader(start.segment)?;
            let (mut offset, mut next) = (start.offset, next);
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
    fn begin(&mut self, start: LogPosition, next: u64) -> Result<SegmentReader, OpenError> {
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
            None => return Err(wrong(&path)),
            Some(Boundary::Batch) => {}
            Some(Boundary::After(last)) => self.before = last,
        }
        Ok(reader)
    }

    /// Reads batches up to the first that does not verify in the last segment.
    fn scan(
        &mut self,
        mut reader: SegmentReader,
        mut offset: u32,
        mut next: u64,
    ) -> Result<Stop, OpenError> {
        loop {
            while let Some(batch) = reader.batch_at(offset, next)? {
                self.release()?;
                (offset, next) = (batch.end().offset, batch.header.next());
                self.held = Some(batch);
            }
            let tail = reader.tail(offset)?;
            if let Tail::Batch(later) = tail {
                let problem = format!(
                    "the batch with record {next} is damaged, and one at byte {later} follows it"
                );
                return Err(reader.damaged(self.directory, offset, &problem));
            }
            let following = usize::try_from(reader.header.number).unwrap_or(usize::MAX);
            let Some(following) = self.headers.get(following) else {
                return Ok(Stop { reader, offset, next, tail });
            };
            if following.first != next || tail != Tail::Zeros {
                let problem = format!(
                    "the batch with record {next} is damaged or missing, and segment {} follows it \
                     with record {}",
                    following.number, following.first
                );
                return Err(reader.damaged(self.directory, offset, &problem));
            }
            // A segment begins only when the batch before it is on disk.
            self.release()?;
            self.before = None;
            (reader, offset) = (self.reader(following.number)?, SEGMENT_HEAD);
        }
    }

    /// Hands the held batch over: it is on disk.
    fn release(&mut self) -> Result<(), OpenError> {
        let Some(batch) = self.held.take() else { return Ok(()) };
        self.erasures.add(&batch);
        self.before = Some(batch.header);
        if batch.header.records == 0 {
            return Ok(());
        }
        let (header, position, end) = (batch.header, batch.position, batch.end());
        (self.replay)(ReplayedBatch {
            first: header.first,
            next: header.next(),
            position,
            end,
            blocks: batch.blocks,
        })
    }

    /// Decides what the end of the log is, and makes it durable.
    fn settle(&mut self, stop: Stop) -> Result<(LogEnd, Option<(LogPosition, u64)>), OpenError> {
        let Stop { reader, mut offset, mut next, tail } = stop;
        let header = reader.header;
        let mut cut = match tail {
            Tail::Torn(to) => Some(to),
            _ => None,
        };
        // With other bytes after it, the held batch was on disk before those were written.
        if let (None, Some(held)) = (cut, &self.held) {
            match content(held) {
                Content::Whole => {}
                Content::Torn => {
                    cut = Some(offset);
                    (offset, next) = (held.position.offset, held.header.first);
                    self.held = None;
                }
                Content::Erased(conversation, n) => {
                    let problem = format!(
                        "record {next} is missing: the last batch has an erased entry ({n} of \
                         conversation {conversation}), and its erasure does not follow"
                    );
                    return Err(reader.damaged(self.directory, offset, &problem));
                }
            }
        }
        let last = self.held.as_ref().map(|held| held.header).or(self.before);
        let closed = last.is_some_and(|last| last.closed);
        if closed && cut.is_some() {
            let problem = format!(
                "the record was closed before this byte, and what follows is no batch with record \
                 {next}"
            );
            return Err(reader.damaged(self.directory, offset, &problem));
        }
        let path = segment_path(self.directory, header.number);
        let file = LogFile::open_writable(&path, self.faults).map_err(fault(&path))?;
        // A killed process leaves its last batch in the page cache, and after a failed sync the
        // kernel takes it for written. Only bytes that are written again are synced for certain.
        let made_durable = || {
            if let Some(held) = &self.held {
                file.write(u64::from(held.position.offset), &held.bytes)?;
            }
            if let Some(to) = cut {
                file.zero(u64::from(offset), u64::from(to.saturating_sub(offset)))?;
            }
            file.sync()
        };
        made_durable().map_err(fault(&path))?;
        sync_directory(self.directory, self.faults).map_err(fault(self.directory))?;
        self.release()?;
        let position = LogPosition { segment: header.number, offset };
        let torn = cut.map(|to| (position, u64::from(to.saturating_sub(offset))));
        let stated = next == 1 || last.is_some_and(|last| last.records == 0);
        Ok((LogEnd { file, header, offset, next, stated, closed }, torn))
    }
}
