//! Opening a log: checks, replay, and the end that a power cut left.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use twinlock_core::id::ConversationId;

use super::block::Erasure;
use super::directory::{Contents, check_segments, make_private};
use super::faults::Faults;
use super::options::LogOptions;
use super::recovery::Recovery;
use super::run::{Run, RunPlace};
use super::scan::{ScannedBatch, SegmentReader};
use super::{LogPosition, LogWriter, Segments, create};
use crate::OpenError;

/// Where the replay begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume {
    /// The end of what every database has; `None` replays from the beginning.
    pub(crate) position: Option<LogPosition>,
    /// The sequence of the first record at this position.
    pub(crate) next_seq: u64,
}

impl Resume {
    /// The position of a database without one: the log's beginning.
    pub(crate) fn beginning() -> Self {
        Self { position: None, next_seq: 1 }
    }
}

/// A batch of the log, which is on disk.
#[derive(Debug)]
pub(crate) struct ReplayedBatch {
    /// The sequence of its first record.
    pub(crate) first: u64,
    /// The sequence after its last record.
    pub(crate) next: u64,
    /// Where it begins.
    pub(crate) position: LogPosition,
    /// Where it ends.
    pub(crate) end: LogPosition,
    /// Its blocks, in sequence order.
    pub(crate) blocks: Vec<ReplayedBlock>,
}

impl From<ScannedBatch> for ReplayedBatch {
    fn from(batch: ScannedBatch) -> Self {
        let (position, end) = (batch.position, batch.end());
        let ScannedBatch { header, blocks, .. } = batch;
        Self { first: header.first, next: header.next(), position, end, blocks }
    }
}

/// Gets what a log has, at its opening.
pub(crate) trait Replayed {
    /// Takes the next batch with records, which is on disk.
    fn batch(&mut self, batch: ReplayedBatch) -> Result<(), OpenError>;

    /// Whether the log lacks an acknowledged entry, before bytes at its end are overwritten: then
    /// opening fails. `last`: a batch that [`Replayed::batch`] gets afterwards.
    fn lacks(
        &mut self,
        last: Option<&ScannedBatch>,
    ) -> Result<Option<(ConversationId, u64)>, OpenError>;
}

/// A function that knows of no acknowledged entries.
impl<F: FnMut(ReplayedBatch) -> Result<(), OpenError>> Replayed for F {
    fn batch(&mut self, batch: ReplayedBatch) -> Result<(), OpenError> {
        self(batch)
    }

    fn lacks(
        &mut self,
        _last: Option<&ScannedBatch>,
    ) -> Result<Option<(ConversationId, u64)>, OpenError> {
        Ok(None)
    }
}

/// A block of a batch.
#[derive(Debug)]
pub(crate) enum ReplayedBlock {
    /// Entries.
    Run(RunPlace, Run),
    /// An erasure.
    Erasure(Erasure),
    /// A change set of `people.db`.
    Change(Bytes),
}

/// An open log.
#[derive(Debug)]
pub(crate) struct OpenedLog {
    /// Appends to it.
    pub(crate) writer: LogWriter,
    /// The record's id, as in `marker`.
    pub(crate) record_id: [u8; 16],
    /// The log was created now.
    pub(crate) created: bool,
    /// It was closed in order, and nothing was appended since.
    pub(crate) closed: bool,
    /// Where an unfinished batch was overwritten with zeros, and how many bytes.
    pub(crate) torn: Option<(LogPosition, u64)>,
    /// Replayed entries whose content does not match, and that no erasure names.
    pub(crate) damaged: Vec<(ConversationId, u64)>,
    /// Replayed entries that an erasure names and whose content is still there, in whole or in
    /// part. The caller erases them.
    pub(crate) unfinished_erasures: Vec<(RunPlace, u64)>,
    /// Entries before the replayed ones that a replayed erasure names. The caller erases them too:
    /// whether that is finished was not looked at.
    pub(crate) earlier_erasures: Vec<(ConversationId, u64)>,
}

/// Opens the log in `directory`, or creates it if all of its files are missing.
///
/// `target` gets the batches with records from `from` on, in order. Opening may fail after it got
/// some: until this function has returned, the caller must be able to undo what it did with them.
/// An error changes no file.
pub(crate) fn open(
    directory: &Path,
    from: Resume,
    options: &LogOptions,
    target: &mut dyn Replayed,
) -> Result<OpenedLog, OpenError> {
    let (record_id, headers, created) = create::find_or_create(directory, from, options)?;
    let segments = Arc::new(Segments::new(directory, record_id, &options.faults));
    let recovery = Recovery { directory, headers: &headers, faults: &options.faults };
    let recovered = recovery.run(from, target)?;
    make_private(directory, recovered.end.header.number)?;
    let closed = recovered.end.closed;
    let writer = LogWriter::new(directory.to_owned(), options.clone(), segments, recovered.end)
        .map_err(super::directory::fault(directory))?;
    Ok(OpenedLog {
        writer,
        record_id,
        created,
        closed,
        torn: recovered.torn,
        damaged: recovered.damaged,
        unfinished_erasures: recovered.unfinished,
        earlier_erasures: recovered.earlier,
    })
}

/// Whether a batch with this sequence begins at `position`, or the log ends there with this as its
/// next sequence. If not, the position is of another log, or of another time of this one.
///
/// A position after the log's end is none. That a database is ahead of the log shows after opening,
/// in [`LogWriter::next_seq`]: then the log has lost its end.
pub(crate) fn is_boundary(
    directory: &Path,
    position: LogPosition,
    next_seq: u64,
) -> Result<bool, OpenError> {
    let faults = Faults::default();
    let contents = Contents::find(directory, &faults)?;
    let Some(record_id) = contents.record_id else { return Ok(false) };
    if !contents.segments.contains(&position.segment) {
        return Ok(false);
    }
    let mut reader = SegmentReader::open(directory, position.segment, &record_id, &faults)?;
    Ok(reader.boundary(position.offset, next_seq)?.is_some())
}

/// Checks that all segments are there and belong to the record of the marker. Writes nothing.
pub(crate) fn check_files(directory: &Path) -> Result<(), OpenError> {
    let faults = Faults::default();
    let contents = Contents::find(directory, &faults)?;
    match contents.record_id {
        Some(record_id) => check_segments(directory, &contents, &record_id, &faults).map(drop),
        None => Ok(()),
    }
}

/// The record id of an existing log, from its marker. Writes nothing.
///
/// # Errors
/// [`OpenError::Damaged`] if there are segments and no marker.
pub(crate) fn record_id(directory: &Path) -> Result<Option<[u8; 16]>, OpenError> {
    Ok(Contents::find(directory, &Faults::default())?.record_id)
}
