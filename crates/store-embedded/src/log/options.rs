//! Sizes of segments, and the hook of tests.

use super::faults::Faults;
use super::format::{BATCH_HEAD, SEGMENT_HEAD};

const MIB: u32 = 1024 * 1024;
/// A segment that is larger for one batch ends at a multiple of this.
const BLOCK: u64 = 4096;
/// Every batch with records leaves room for the empty batches that state it durable and close the
/// log.
const RESERVE: u32 = 2 * BATCH_HEAD;

/// Options that only tests change.
#[derive(Debug, Clone)]
pub(crate) struct LogOptions {
    /// Bytes of the first segment. Default 1 MiB; the next ones double.
    pub(crate) smallest: u32,
    /// Most bytes of a segment, unless one batch needs more. Default 64 MiB: a larger one takes
    /// longer to write before its use.
    pub(crate) largest: u32,
    pub(crate) faults: Faults,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { smallest: MIB, largest: 64 * MIB, faults: Faults::default() }
    }
}

impl LogOptions {
    /// Bytes of segment `number`.
    pub(crate) fn size(&self, number: u32) -> u32 {
        let doubled = u64::from(self.smallest) << number.saturating_sub(1).min(31);
        u32::try_from(doubled).unwrap_or(u32::MAX).min(self.largest)
    }

    /// Bytes of segment `number`, if its first batch has this length. `None` if no segment can be
    /// so large.
    pub(crate) fn size_for(&self, number: u32, batch: u32) -> Option<u32> {
        let needed = u64::from(SEGMENT_HEAD) + u64::from(batch) + u64::from(RESERVE);
        if needed <= u64::from(self.size(number)) {
            return Some(self.size(number));
        }
        u32::try_from(needed.next_multiple_of(BLOCK)).ok()
    }
}

/// Whether a batch of this length can be written at `offset` of a segment.
pub(crate) fn fits(size: u32, offset: u32, batch: u32) -> bool {
    let reserve = if batch > BATCH_HEAD { RESERVE } else { 0 };
    let end = u64::from(offset) + u64::from(batch) + u64::from(reserve);
    end <= u64::from(size)
}
