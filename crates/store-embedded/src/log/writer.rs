//! Appending batches.

use std::path::PathBuf;
use std::sync::Arc;

use super::builder::BatchBuilder;
use super::directory::{segment_path, spare_path};
use super::error::LogError;
use super::file::{LogFile, sync_directory};
use super::format::{BATCH_HEAD, BatchHeader, OPEN, SEGMENT_HEAD, STATE_OFFSET, SegmentHeader};
use super::options::{LogOptions, fits};
use super::run::RunPlace;
use super::spare::Spare;
use super::{LogPosition, Segments};

/// A batch that is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppendedBatch {
    /// The sequence of its first record.
    pub(crate) first: u64,
    /// The sequence after its last record.
    pub(crate) next: u64,
    /// Where it begins.
    pub(crate) position: LogPosition,
    /// Where it ends.
    pub(crate) end: LogPosition,
    /// Its runs, in the order in which they were added. Their entries come first in the sequence.
    pub(crate) runs: Vec<RunPlace>,
}

/// Where a log ends, and how.
#[derive(Debug)]
pub(crate) struct LogEnd {
    /// The last segment.
    pub(crate) file: LogFile,
    pub(crate) header: SegmentHeader,
    /// Where the next batch begins.
    pub(crate) offset: u32,
    /// The sequence of the next record.
    pub(crate) next: u64,
    /// An empty batch states that all records are durable, or there are none.
    pub(crate) stated: bool,
    /// The last batch says that the log was closed. It is in this segment.
    pub(crate) closed: bool,
}

/// The only writer of a log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    directory: PathBuf,
    options: LogOptions,
    segments: Arc<Segments>,
    spare: Spare,
    /// The spare was asked for since this segment began.
    prepared: bool,
    end: LogEnd,
    /// Bytes after the end that a failed write may have left.
    torn: u32,
    /// The next segment was begun. It may have its name already, so that nothing may be added to
    /// this one.
    leaving: bool,
    /// The next segment, if only its name is not durable yet.
    named: Option<(LogFile, SegmentHeader)>,
}

impl LogWriter {
    pub(crate) fn new(
        directory: PathBuf,
        options: LogOptions,
        segments: Arc<Segments>,
        end: LogEnd,
    ) -> std::io::Result<Self> {
        let spare = Spare::start(&spare_path(&directory), &options.faults)?;
        let (prepared, torn, leaving, named) = (false, 0, false, None);
        Ok(Self { directory, options, segments, spare, prepared, end, torn, leaving, named })
    }

    /// Writes and syncs one batch. An empty one does nothing.
    ///
    /// After an error nothing of the batch is in the log, unless the process ends before the next
    /// append: then the next start decides, and a repeated message is answered from its first
    /// place. Every later append repairs the end of the log first, and fails until that succeeds.
    pub(crate) fn append(&mut self, batch: &mut BatchBuilder) -> Result<AppendedBatch, LogError> {
        let first = self.end.next;
        if batch.is_empty() {
            let (position, runs) = (self.end(), Vec::new());
            return Ok(AppendedBatch { first, next: first, position, end: position, runs });
        }
        self.make_room(batch.length()?)?;
        let position = self.end();
        let (header, bytes) = batch.seal(first, &self.end.header, position.offset)?;
        self.commit(&header, bytes)?;
        let (next, end) = (header.next(), self.end());
        Ok(AppendedBatch { first, next, position, end, runs: batch.places(first, position) })
    }

    /// The sequence of the next record.
    pub(crate) fn next_seq(&self) -> u64 {
        self.end.next
    }

    /// Where the log ends.
    pub(crate) fn end(&self) -> LogPosition {
        LogPosition { segment: self.end.header.number, offset: self.end.offset }
    }

    /// The segments, for readers.
    pub(crate) fn segments(&self) -> Arc<Segments> {
        Arc::clone(&self.segments)
    }

    /// States in an empty batch that all records are durable, if that is not stated yet. Call it
    /// within 1 s of the last append.
    pub(crate) fn state_durable(&mut self) -> Result<(), LogError> {
        if self.end.stated { self.repair() } else { self.append_empty(false) }
    }

    /// Marks the log as closed in order.
    pub(crate) fn close(mut self) -> Result<(), LogError> {
        if self.end.closed { Ok(()) } else { self.append_empty(true) }
    }

    fn append_empty(&mut self, closed: bool) -> Result<(), LogError> {
        self.make_room(BATCH_HEAD)?;
        let header = BatchHeader::empty(self.end.next, closed);
        let mut bytes = header.encode(&self.end.header.id, self.end.offset).to_vec();
        self.end.header.pad(self.end.offset, &mut bytes);
        self.commit(&header, &bytes)
    }

    /// Prepares for a batch of this length.
    fn make_room(&mut self, length: u32) -> Result<(), LogError> {
        self.repair()?;
        self.reopen()?;
        while self.leaving || !fits(self.end.header.size, self.end.offset, length) {
            self.begin_segment(length)?;
        }
        Ok(())
    }

    fn commit(&mut self, header: &BatchHeader, bytes: &[u8]) -> Result<(), LogError> {
        let file = &self.end.file;
        let written = file
            .write(u64::from(self.end.offset), bytes)
            .and_then(|()| file.sync())
            .and_then(|()| file.check_in_place());
        if let Err(error) = written {
            self.torn = header.length;
            let error = LogError::io(self.end.file.path(), &error);
            tracing::error!(%error, "a commit of the record failed");
            // At once, so that a killed process does not leave a batch that was refused.
            let _tried_again_before_the_next_batch = self.repair();
            return Err(error);
        }
        self.end.offset += header.length;
        self.end.next = header.next();
        (self.end.stated, self.end.closed) = (header.records == 0, header.closed);
        if !self.prepared && self.end.offset > self.end.header.size / 2 {
            let next = self.end.header.number.saturating_add(1);
            self.spare.prepare(self.options.size(next));
            self.prepared = true;
        }
        Ok(())
    }

    /// Overwrites what a failed write may have left.
    fn repair(&mut self) -> Result<(), LogError> {
        if self.torn == 0 {
            return Ok(());
        }
        let file = &self.end.file;
        file.zero(u64::from(self.end.offset), u64::from(self.torn))
            .and_then(|()| file.sync())
            .map_err(|error| LogError::io(file.path(), &error))?;
        self.torn = 0;
        Ok(())
    }

    /// Takes back that the log was closed, by one byte: after a batch that closes the log, a torn
    /// one would be damage.
    fn reopen(&mut self) -> Result<(), LogError> {
        if !self.end.closed {
            return Ok(());
        }
        let offset = self.end.offset.saturating_sub(BATCH_HEAD) + STATE_OFFSET;
        let file = &self.end.file;
        file.write(u64::from(offset), &[OPEN])
            .and_then(|()| file.sync())
            .map_err(|error| LogError::io(file.path(), &error))?;
        self.end.closed = false;
        Ok(())
    }

    /// Continues in a new segment with room for a batch of this length.
    fn begin_segment(&mut self, length: u32) -> Result<(), LogError> {
        let (file, header) = match self.named.take() {
            Some(named) => named,
            None => self.name_segment(length)?,
        };
        if let Err(error) = sync_directory(&self.directory, &self.options.faults) {
            self.named = Some((file, header));
            return Err(LogError::io(&self.directory, &error));
        }
        self.end.file = file;
        (self.end.header, self.end.offset) = (header, SEGMENT_HEAD);
        (self.prepared, self.leaving) = (false, false);
        Ok(())
    }

    fn name_segment(&mut self, length: u32) -> Result<(LogFile, SegmentHeader), LogError> {
        let too_large = || LogError::Failed("the log has no room for this batch".into());
        let number = self.end.header.number.checked_add(1).ok_or_else(too_large)?;
        let needed = self.options.size_for(number, length).ok_or_else(too_large)?;
        let (file, size) = self.spare.take(needed)?;
        let SegmentHeader { record_id, .. } = self.end.header;
        let (id, first) = (random()?, self.end.next);
        let header = SegmentHeader { number, record_id, id, first, size };
        let path = segment_path(&self.directory, number);
        self.leaving = true;
        let file = write_header(file, &header)
            .and_then(|file| file.rename(&path))
            .map_err(|error| LogError::io(&path, &error))?;
        Ok((file, header))
    }
}

/// Writes and syncs the header of a segment.
pub(crate) fn write_header(file: LogFile, header: &SegmentHeader) -> std::io::Result<LogFile> {
    file.write(0, &header.encode())?;
    file.sync()?;
    Ok(file)
}

/// Random bytes for the id of a record or segment.
pub(crate) fn random() -> Result<[u8; 16], LogError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| LogError::Failed(format!("no randomness: {error}")))?;
    Ok(id)
}
