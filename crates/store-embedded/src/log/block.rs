//! The blocks of a batch: runs of entries, erasures, changes.

use std::ops::Range;

use crc32fast::Hasher;
use twinlock_core::id::{Commit, ConversationId};

use super::cursor::Cursor;

/// First byte of a block: entries of one conversation with consecutive numbers.
pub(crate) const RUN: u8 = 1;
/// First byte of a block: an [`Erasure`].
pub(crate) const ERASURE: u8 = 2;
/// First byte of a block: a change set of `people.db`.
pub(crate) const CHANGE: u8 = 3;

/// Bytes of a run before its first entry.
pub(crate) const RUN_HEAD: usize = 25;
/// Bytes of an entry before its sender.
pub(crate) const ENTRY_HEAD: usize = 95;
/// Offset of an entry's flags.
pub(crate) const ENTRY_FLAGS: usize = 25;
/// Bytes of a salt.
pub(crate) const SALT: usize = 16;
/// Most entries of a run.
pub(crate) const RUN_ENTRIES: u32 = 256;
/// Most bytes of a run's entries, unless it has only one.
pub(crate) const RUN_BYTES: usize = 64 * 1024;

/// An entry's salt and body are to be overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Erasure {
    /// The entry's conversation.
    pub(crate) conversation: ConversationId,
    /// The entry's number.
    pub(crate) n: u64,
    /// When it was erased, milliseconds since 1970 UTC.
    pub(crate) time_ms: u64,
    /// The commitment that stays in its place.
    pub(crate) commit: Commit,
}

/// What a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Block {
    /// Entries `first` to `first + count - 1`.
    Run { conversation: ConversationId, first: u64, count: u32 },
    /// An erasure.
    Erasure(Erasure),
    /// A change; the range is that of its bytes in the block.
    Change(Range<usize>),
}

impl Block {
    /// Reads the block at the beginning of `bytes` and adds the bytes of it that never change to
    /// `checksum`. Returns the block and its length, or `None` for other bytes.
    pub(crate) fn read(bytes: &[u8], checksum: &mut Hasher) -> Option<(Self, usize)> {
        let mut cursor = Cursor(bytes);
        let block = match cursor.u8()? {
            RUN => {
                let (conversation, first) = (cursor.u64()?, cursor.u64()?);
                let (count, length) = (cursor.u32()?, cursor.length()?);
                if !(1..=RUN_ENTRIES).contains(&count) {
                    return None;
                }
                first.checked_add(u64::from(count))?;
                checksum.update(bytes.get(..RUN_HEAD)?);
                let mut entries = cursor.take(length)?;
                for _ in 0..count {
                    let span = EntrySpan::read(entries)?;
                    checksum.update(entries.get(..ENTRY_FLAGS)?);
                    checksum.update(entries.get(ENTRY_FLAGS + 1..span.content.start)?);
                    entries = entries.get(span.content.end..)?;
                }
                if !entries.is_empty() {
                    return None;
                }
                Self::Run { conversation, first, count }
            }
            ERASURE => {
                let (conversation, n, time_ms) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
                let commit = Commit(cursor.array()?);
                checksum.update(bytes.get(..bytes.len() - cursor.0.len())?);
                Self::Erasure(Erasure { conversation, n, time_ms, commit })
            }
            CHANGE => {
                let length = cursor.length()?;
                let start = bytes.len() - cursor.0.len();
                cursor.take(length)?;
                checksum.update(bytes.get(..start + length)?);
                Self::Change(start..start + length)
            }
            _ => return None,
        };
        Some((block, bytes.len() - cursor.0.len()))
    }

    /// Number of records in this block.
    pub(crate) fn records(&self) -> u32 {
        match self {
            Self::Run { count, .. } => *count,
            Self::Erasure(_) | Self::Change(_) => 1,
        }
    }
}

/// Where the parts of an entry are, relative to its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntrySpan {
    /// The sender.
    pub(crate) sender: Range<usize>,
    /// Salt and body, the bytes that an erasure overwrites. They end the entry.
    pub(crate) content: Range<usize>,
}

impl EntrySpan {
    /// Reads the lengths of the entry at the beginning of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes.get(ENTRY_FLAGS + 1..)?);
        let sender = ENTRY_HEAD + usize::from(cursor.u8()?);
        let end = sender.checked_add(SALT)?.checked_add(cursor.length()?)?;
        (end <= bytes.len()).then_some(Self { sender: ENTRY_HEAD..sender, content: sender..end })
    }
}
