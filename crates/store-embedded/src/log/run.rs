//! Runs: entries of one conversation with consecutive numbers, as readers get them.

use bytes::Bytes;
use twinlock_core::chain::{self, EntryKind, Linked};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Salt};
use twinlock_store::{StoredContent, StoredEntry};

use super::LogPosition;
use super::block::{EntrySpan, RUN, RUN_ENTRIES, RUN_HEAD, SALT};
use super::cursor::Cursor;
use super::error::LogError;

/// The flag of an erased entry.
pub(crate) const ERASED: u8 = 1;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunPlace {
    /// The conversation.
    pub(crate) conversation: ConversationId,
    /// The number of the first entry.
    pub(crate) first: u64,
    /// How many entries it has.
    pub(crate) count: u32,
    /// The sequence of its first entry.
    pub(crate) seq: u64,
    /// The first byte of its block.
    pub(crate) position: LogPosition,
    /// Bytes of its block.
    pub(crate) length: u32,
}

/// A run whose header was decoded. Its entries are decoded one by one.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    bytes: Bytes,
    conversation: ConversationId,
    first: u64,
    count: u32,
}

impl Run {
    /// Decodes the block of a run.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, LogError> {
        let (conversation, first, count) = Self::header(&bytes)
            .ok_or_else(|| LogError::Damaged("the index names bytes that are not a run".into()))?;
        Ok(Self { bytes, conversation, first, count })
    }

    fn header(bytes: &[u8]) -> Option<(ConversationId, u64, u32)> {
        let mut cursor = Cursor(bytes);
        let run = cursor.u8()? == RUN;
        let (conversation, first) = (cursor.u64()?, cursor.u64()?);
        let (count, length) = (cursor.u32()?, cursor.length()?);
        first.checked_add(u64::from(count))?;
        let valid = run && (1..=RUN_ENTRIES).contains(&count) && cursor.0.len() == length;
        valid.then_some((conversation, first, count))
    }

    /// The conversation.
    pub(crate) fn conversation(&self) -> ConversationId {
        self.conversation
    }

    /// The number of the first entry.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// How many entries it has.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The entries in order. An entry that cannot be decoded is the last item.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<RunEntry, LogError>> + '_ {
        let mut at = RUN_HEAD;
        let mut broken = false;
        (self.first..self.first + u64::from(self.count)).map_while(move |n| {
            if broken {
                return None;
            }
            let entry = RunEntry::decode(&self.bytes, at, n);
            match &entry {
                Some((_, end)) => at = *end,
                None => broken = true,
            }
            Some(entry.map(|(entry, _)| entry).ok_or_else(|| self.damaged(n)))
        })
    }

    /// Where the parts of entry `n` are, and where it begins in the block.
    pub(crate) fn locate(&self, n: u64) -> Result<(usize, EntrySpan), LogError> {
        let mut at = RUN_HEAD;
        for i in self.first..self.first + u64::from(self.count) {
            let span = self.bytes.get(at..).and_then(EntrySpan::read);
            let span = span.ok_or_else(|| self.damaged(i))?;
            if i == n {
                return Ok((at, span));
            }
            at += span.content.end;
        }
        Err(self.damaged(n))
    }

    fn damaged(&self, n: u64) -> LogError {
        let conversation = self.conversation;
        LogError::Damaged(format!(
            "entry {n} of conversation {conversation} cannot be read where the index has it"
        ))
    }
}

/// An entry of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunEntry {
    /// The entry's number.
    pub(crate) n: u64,
    /// Milliseconds since 1970 UTC.
    pub(crate) time_ms: u64,
    /// The id that the client assigned.
    pub(crate) message_id: MessageId,
    /// Text, system, file and others.
    pub(crate) kind: EntryKind,
    /// The sender in its protocol encoding.
    pub(crate) sender: Bytes,
    /// The entry's link.
    pub(crate) link: Link,
    /// The commitment to salt and body.
    pub(crate) commit: Commit,
    /// Salt and body were overwritten with zeros, and the flag says so.
    pub(crate) erased: bool,
    /// The salt.
    pub(crate) salt: Salt,
    /// The body.
    pub(crate) body: Bytes,
    flags: u8,
}

impl RunEntry {
    /// Decodes entry `n` at offset `at` of a run's block. Returns it and the offset after it.
    fn decode(bytes: &Bytes, at: usize, n: u64) -> Option<(Self, usize)> {
        let entry = bytes.get(at..)?;
        let span = EntrySpan::read(entry)?;
        let mut cursor = Cursor(entry);
        let time_ms = cursor.u64()?;
        let message_id = MessageId(cursor.array()?);
        let kind = EntryKind(cursor.u8()?);
        let flags = cursor.u8()?;
        let _lengths = cursor.take(5)?;
        let (commit, link) = (Commit(cursor.array()?), Link(cursor.array()?));
        let content = entry.get(span.content.clone())?;
        let salt = Salt(Cursor(content).array()?);
        let erased = flags == ERASED && content.iter().all(|byte| *byte == 0);
        let sender = bytes.slice(at + span.sender.start..at + span.sender.end);
        let end = at + span.content.end;
        let body = bytes.slice(at + span.content.start + SALT..end);
        let entry =
            Self { n, time_ms, message_id, kind, sender, link, commit, erased, salt, body, flags };
        Some((entry, end))
    }

    /// Whether salt and body are those that the commitment was made of. An erased entry's are not.
    pub(crate) fn body_matches(&self) -> bool {
        self.flags == 0 && chain::commit(&self.salt, &self.body) == self.commit
    }

    /// The parts that the link covers.
    pub(crate) fn linked(&self, conversation: ConversationId) -> Linked<'_> {
        Linked {
            conversation,
            n: self.n,
            time_ms: self.time_ms,
            message_id: &self.message_id,
            kind: self.kind,
            sender: &self.sender,
            commit: &self.commit,
        }
    }

    /// The entry for readers. Check [`Self::body_matches`] first: content that is neither that nor
    /// erased is damaged, and is returned as it is.
    pub(crate) fn into_stored(self) -> StoredEntry {
        let Self { n, time_ms, message_id, kind, sender, link, commit, .. } = self;
        let content = match self.erased {
            true => StoredContent::Erased(commit),
            false => StoredContent::Body(self.salt, self.body),
        };
        StoredEntry { n, time_ms, message_id, kind, sender, content, link }
    }
}
