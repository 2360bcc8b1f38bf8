//! The headers of segments and batches. `docs/design/019-record-log.md` has the tables.

use crc32fast::Hasher;

use super::cursor::Cursor;
use super::file::PAGE;

/// The version of the log's format that this program reads and writes.
pub(crate) const VERSION: u32 = 1;
/// Bytes of a segment's header; the first batch follows it.
pub(crate) const SEGMENT_HEAD: u32 = 64;
/// Bytes of a batch's header; its blocks follow it.
pub(crate) const BATCH_HEAD: u32 = 40;
/// [`SEGMENT_HEAD`] as a length.
pub(crate) const SEGMENT_HEAD_LEN: usize = SEGMENT_HEAD as usize;
/// [`BATCH_HEAD`] as a length.
pub(crate) const BATCH_HEAD_LEN: usize = BATCH_HEAD as usize;

const SEGMENT_MAGIC: &[u8; 8] = b"TWINLOG\0";
/// First bytes of a batch.
pub(crate) const BATCH_MAGIC: &[u8; 4] = b"TLB1";
/// Offset of a batch's state, which changes in place.
const STATE: usize = 32;
/// The state of the batch that closes the log. More than one bit from 0, because no checksum covers
/// it.
const CLOSED: u8 = b'C';
/// The same byte once the log is written to again.
pub(crate) const OPEN: u8 = 0;
/// [`STATE`] in a segment, after the beginning of the batch.
pub(crate) const STATE_OFFSET: u32 = STATE as u32;

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The segment's number, from 1.
    pub(crate) number: u32,
    /// The record that the segment belongs to.
    pub(crate) record_id: [u8; 16],
    /// Random, so that a batch of another segment does not verify in this one.
    pub(crate) id: [u8; 16],
    /// The sequence of the segment's first record.
    pub(crate) first: u64,
    /// Bytes of the file.
    pub(crate) size: u32,
}

/// Why a segment's header is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// It is not a segment's header, or was changed.
    Invalid,
    /// A newer version of the program wrote it.
    Newer(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEAD_LEN] {
        let mut bytes = Vec::with_capacity(SEGMENT_HEAD_LEN);
        bytes.extend_from_slice(SEGMENT_MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.record_id);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        let mut header = [0; SEGMENT_HEAD_LEN];
        header.copy_from_slice(&bytes);
        header
    }

    /// Adds zeros to a batch at `offset`, up to the end of a page or of the segment. After a batch
    /// there are zeros anyhow, and a write of whole pages need not read a page that is not cached.
    pub(crate) fn pad(&self, offset: u32, batch: &mut Vec<u8>) {
        let end = offset as usize + batch.len();
        let page_end = end.next_multiple_of(PAGE).min(self.size as usize);
        batch.resize(batch.len() + page_end.saturating_sub(end), 0);
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEAD_LEN]) -> Result<Self, BadHeader> {
        let (covered, checksum) = bytes.split_last_chunk::<4>().ok_or(BadHeader::Invalid)?;
        let valid = crc32fast::hash(covered).to_be_bytes() == *checksum;
        let mut cursor = Cursor(covered);
        let magic = cursor.take(SEGMENT_MAGIC.len()) == Some(SEGMENT_MAGIC);
        let version = cursor.u32().ok_or(BadHeader::Invalid)?;
        if !valid || !magic {
            return Err(BadHeader::Invalid);
        }
        if version != VERSION {
            return Err(BadHeader::Newer(version));
        }
        Self::fields(&mut cursor).ok_or(BadHeader::Invalid)
    }

    fn fields(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self {
            number: cursor.u32()?,
            record_id: cursor.array()?,
            id: cursor.array()?,
            first: cursor.u64()?,
            size: cursor.u32()?,
        })
    }
}

/// The header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Bytes of the batch with this header.
    pub(crate) length: u32,
    /// CRC-32 of the blocks, without the flags, salts and bodies of entries.
    pub(crate) checksum: u32,
    /// Number of records.
    pub(crate) records: u32,
    /// The sequence of the first record. All records before it were synced when this batch was
    /// written.
    pub(crate) first: u64,
    /// The record was closed in order after this batch, which is empty.
    pub(crate) closed: bool,
}

impl BatchHeader {
    /// The header of a batch without records.
    pub(crate) fn empty(first: u64, closed: bool) -> Self {
        Self { length: BATCH_HEAD, checksum: 0, records: 0, first, closed }
    }

    /// The sequence after the last record.
    pub(crate) fn next(&self) -> u64 {
        self.first.saturating_add(u64::from(self.records))
    }

    /// The bytes of this header at `offset` of the segment with this id.
    pub(crate) fn encode(&self, segment_id: &[u8; 16], offset: u32) -> [u8; BATCH_HEAD_LEN] {
        let mut bytes = Vec::with_capacity(BATCH_HEAD_LEN);
        bytes.extend_from_slice(BATCH_MAGIC);
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes.extend_from_slice(&self.checksum.to_be_bytes());
        bytes.extend_from_slice(&self.records.to_be_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&[if self.closed { CLOSED } else { OPEN }, 0, 0, 0]);
        bytes.extend_from_slice(&checksum(segment_id, offset, &bytes).to_be_bytes());
        let mut header = [0; BATCH_HEAD_LEN];
        header.copy_from_slice(&bytes);
        header
    }

    /// Decodes the header at `offset` of the segment with this id. `None` if it was not written
    /// there.
    pub(crate) fn decode(bytes: &[u8], segment_id: &[u8; 16], offset: u32) -> Option<Self> {
        let mut cursor = Cursor(bytes.get(..BATCH_HEAD_LEN)?);
        if cursor.take(BATCH_MAGIC.len())? != BATCH_MAGIC {
            return None;
        }
        let (length, blocks, records) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (first, durable) = (cursor.u64()?, cursor.u64()?);
        let (state, zeros) = (cursor.u8()?, cursor.array::<3>()?);
        let closed = state == CLOSED;
        let empty = records == 0;
        let plausible = durable == first
            && (closed || state == OPEN)
            && zeros == [0; 3]
            && length >= BATCH_HEAD
            && empty == (length == BATCH_HEAD)
            && (empty || !closed)
            && first.checked_add(u64::from(records)).is_some();
        let covered = bytes.get(..BATCH_HEAD_LEN - 4)?;
        let valid = plausible && checksum(segment_id, offset, covered) == cursor.u32()?;
        valid.then_some(Self { length, checksum: blocks, records, first, closed })
    }
}

fn checksum(segment_id: &[u8; 16], offset: u32, header: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(segment_id);
    hasher.update(&offset.to_be_bytes());
    // The state is left out: it changes in one byte, which a power cut cannot tear.
    let (before, after) = header.split_at_checked(STATE).unwrap_or((header, &[0]));
    hasher.update(before);
    hasher.update(after.get(1..).unwrap_or_default());
    hasher.finalize()
}
