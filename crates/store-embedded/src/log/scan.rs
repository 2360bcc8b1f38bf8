//! Reading the batches of a segment in order.

use std::path::Path;

use bytes::Bytes;
use crc32fast::Hasher;

use super::LogPosition;
use super::block::Block;
use super::directory::{damaged, fault, open_segment};
use super::faults::Faults;
use super::file::{LogFile, PIECE};
use super::format::{
    BATCH_HEAD, BATCH_HEAD_LEN, BATCH_MAGIC, BatchHeader, SEGMENT_HEAD, SegmentHeader,
};
use super::open::ReplayedBlock;
use super::run::{Run, RunPlace};
use crate::OpenError;

/// A batch whose checksums are right. The bodies of its entries are not checked.
#[derive(Debug)]
pub(crate) struct ScannedBatch {
    pub(crate) header: BatchHeader,
    pub(crate) position: LogPosition,
    pub(crate) bytes: Bytes,
    pub(crate) blocks: Vec<ReplayedBlock>,
}

impl ScannedBatch {
    /// Where the batch ends.
    pub(crate) fn end(&self) -> LogPosition {
        let LogPosition { segment, offset } = self.position;
        LogPosition { segment, offset: offset + self.header.length }
    }

    /// Decodes the blocks of a batch. `None` if they are not what the header says.
    fn decode(header: BatchHeader, position: LogPosition, bytes: Bytes) -> Option<Self> {
        let mut blocks = Vec::new();
        let (mut at, mut seq) = (BATCH_HEAD_LEN, header.first);
        let mut checksum = Hasher::new();
        while at < bytes.len() {
            let (block, length) = Block::read(bytes.get(at..)?, &mut checksum)?;
            let records = u64::from(block.records());
            let of_block = bytes.slice(at..at + length);
            blocks.push(match block {
                Block::Run { conversation, first, count } => {
                    let offset = position.offset.checked_add(u32::try_from(at).ok()?)?;
                    let place = LogPosition { offset, ..position };
                    let length = u32::try_from(length).ok()?;
                    let place =
                        RunPlace { conversation, first, count, seq, position: place, length };
                    ReplayedBlock::Run(place, Run::decode(of_block).ok()?)
                }
                Block::Erasure(erasure) => ReplayedBlock::Erasure(erasure),
                Block::Change(change) => ReplayedBlock::Change(of_block.slice(change)),
            });
            seq = seq.checked_add(records)?;
            at += length;
        }
        let valid = checksum.finalize() == header.checksum && seq == header.next();
        valid.then_some(Self { header, position, bytes, blocks })
    }
}

/// What follows the last batch of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Zeros, as they should.
    Zeros,
    /// Other bytes, up to this offset. No batch begins among them, but at their beginning.
    Torn(u32),
    /// A batch was written at this offset.
    Batch(u32),
}

/// Reads a segment from its beginning to its end, in pieces.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    file: LogFile,
    pub(crate) header: SegmentHeader,
    piece_at: u32,
    piece: Bytes,
}

impl SegmentReader {
    pub(crate) fn open(
        directory: &Path,
        number: u32,
        record_id: &[u8; 16],
        faults: &Faults,
    ) -> Result<Self, OpenError> {
        let (file, header) = open_segment(directory, number, record_id, faults)?;
        Ok(Self { file, header, piece_at: 0, piece: Bytes::new() })
    }

    /// The error of damage at `offset`.
    pub(crate) fn damaged(&self, directory: &Path, offset: u32, problem: &str) -> OpenError {
        damaged(directory, self.file.path(), format!("at byte {offset}: {problem}"))
    }

    /// At most `length` bytes from `offset` on; fewer at the end of the segment.
    fn bytes(&mut self, offset: u32, length: u32) -> Result<Bytes, OpenError> {
        let length = length.min(self.header.size.saturating_sub(offset));
        let from = offset.checked_sub(self.piece_at).and_then(|from| usize::try_from(from).ok());
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if let Some(from) = from
            && let Some(to) = from.checked_add(wanted)
            && to <= self.piece.len()
        {
            return Ok(self.piece.slice(from..to));
        }
        let left = usize::try_from(self.header.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut piece = vec![0; wanted.max(PIECE).min(left)];
        self.file.read(u64::from(offset), &mut piece).map_err(fault(self.file.path()))?;
        (self.piece_at, self.piece) = (offset, piece.into());
        Ok(self.piece.slice(..wanted.min(self.piece.len())))
    }

    /// The header of the batch at `offset`, if one was written there.
    pub(crate) fn header_at(&mut self, offset: u32) -> Result<Option<BatchHeader>, OpenError> {
        let bytes = self.bytes(offset, BATCH_HEAD)?;
        let left = self.header.size.saturating_sub(offset);
        let header = BatchHeader::decode(&bytes, &self.header.id, offset);
        Ok(header.filter(|header| header.length <= left))
    }

    /// The batch at `offset` with the sequence `next`, if it verifies.
    pub(crate) fn batch_at(
        &mut self,
        offset: u32,
        next: u64,
    ) -> Result<Option<ScannedBatch>, OpenError> {
        let Some(header) = self.header_at(offset)?.filter(|header| header.first == next) else {
            return Ok(None);
        };
        let bytes = self.bytes(offset, header.length)?;
        let position = LogPosition { segment: self.header.number, offset };
        Ok(ScannedBatch::decode(header, position, bytes))
    }

    /// Looks at everything from `from` on, where no batch verifies.
    pub(crate) fn tail(&mut self, from: u32) -> Result<Tail, OpenError> {
        let (mut at, mut tail) = (from, Tail::Zeros);
        while at < self.header.size {
            let piece = self.bytes(at, u32::try_from(PIECE).unwrap_or(u32::MAX))?;
            let last = piece.iter().rposition(|byte| *byte != 0);
            if let Some(last) = last {
                let offset_of = |i: usize| at.saturating_add(u32::try_from(i).unwrap_or(u32::MAX));
                tail = Tail::Torn(offset_of(last).saturating_add(1));
                for (i, found) in piece.windows(BATCH_HEAD_LEN).enumerate() {
                    let offset = offset_of(i);
                    if found.starts_with(BATCH_MAGIC)
                        && offset > from
                        && BatchHeader::decode(found, &self.header.id, offset).is_some()
                    {
                        return Ok(Tail::Batch(offset));
                    }
                }
            }
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let end = at.saturating_add(length);
            // A header may begin in this piece and end in the next.
            at = if end < self.header.size { end - (BATCH_HEAD - 1) } else { end };
        }
        Ok(tail)
    }

    /// Whether `offset` is where the record `next` begins, or will begin.
    pub(crate) fn boundary(
        &mut self,
        offset: u32,
        next: u64,
    ) -> Result<Option<Boundary>, OpenError> {
        // The checksum of a header covers its place, so earlier bytes need not be read.
        let header = self.header_at(offset)?;
        if offset > SEGMENT_HEAD && header.is_some_and(|header| header.first == next) {
            return Ok(Some(Boundary::Batch));
        }
        let (mut at, mut last) = (SEGMENT_HEAD, None);
        while at < offset {
            let Some(header) = self.header_at(at)? else { return Ok(None) };
            at = at.saturating_add(header.length);
            last = Some(header);
        }
        let reached = last.map_or(self.header.first, |last| last.next());
        Ok((at == offset && reached == next).then_some(Boundary::After(last)))
    }
}

/// What a position in a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// A batch begins here.
    Batch,
    /// This batch ends here; `None` is the beginning of the segment.
    After(Option<BatchHeader>),
}
