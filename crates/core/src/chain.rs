//! The record's hash chain (section 7): commitments, links, and the reader that verifies them.
//!
//! A link covers everything of an entry except the body, which it covers through the salted
//! commitment. A body can therefore be erased and the chain still verifies. A reader that remembers
//! one link detects every later change to anything before it.

use thiserror::Error;

use crate::id::{Commit, ConversationId, Link, MessageId, Salt, ServerKey};
use crate::schedule::{self, hash};

/// The kind byte of an entry. Unknown kinds are stored and chained like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryKind(pub u8);

impl EntryKind {
    /// Text of a user.
    pub const TEXT: Self = Self(1);
    /// A notice from the server: a user joined, a topic changed.
    pub const SYSTEM: Self = Self(2);
    /// A file.
    pub const FILE: Self = Self(3);
    /// Text from a classic connection (section 11).
    pub const CLASSIC: Self = Self(4);
    /// Text from the origin bridge, which has no integrity protection (section 11).
    pub const UNPROTECTED: Self = Self(5);

    /// The stable name in JSON output.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TEXT => "text",
            Self::SYSTEM => "system",
            Self::FILE => "file",
            Self::CLASSIC => "classic",
            Self::UNPROTECTED => "unprotected",
            _ => "unknown",
        }
    }
}

/// `commit = H("tl1 body" || salt || body)`.
#[must_use]
pub fn commit(salt: &Salt, body: &[u8]) -> Commit {
    Commit(hash(&[schedule::BODY, &salt.0, body]))
}

/// `link_0 = H("tl1 conversation" || server_key || conversation)`, with the server key that was
/// current when the conversation was created.
#[must_use]
pub fn link_0(server_key: &ServerKey, conversation: ConversationId) -> Link {
    Link(hash(&[schedule::CONVERSATION, &server_key.0, &conversation.to_be_bytes()]))
}

/// The parts of an entry that a link covers, the body through its commitment.
#[derive(Debug, Clone, Copy)]
pub struct Linked<'a> {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's number, from 1 without gaps.
    pub n: u64,
    /// Milliseconds since 1970 UTC, never less than those of the entry before.
    pub time_ms: u64,
    /// The message's id, drawn by the client.
    pub message_id: &'a MessageId,
    /// The kind of entry.
    pub kind: EntryKind,
    /// 0..=255 bytes; [`crate::id::Sender`] has at most 65.
    pub sender: &'a [u8],
    /// The commitment to salt and body.
    pub commit: &'a Commit,
}

impl Linked<'_> {
    /// Computes `link_n` from the link before it. `None` for a sender of more than 255 bytes, whose
    /// length does not fit into its byte.
    #[must_use]
    pub fn link(&self, before: &Link) -> Option<Link> {
        let sender_len = u8::try_from(self.sender.len()).ok()?;
        Some(Link(hash(&[
            schedule::ENTRY,
            &before.0,
            &self.conversation.to_be_bytes(),
            &self.n.to_be_bytes(),
            &self.time_ms.to_be_bytes(),
            &self.message_id.0,
            &[self.kind.0, sender_len],
            self.sender,
            &self.commit.0,
        ])))
    }
}

/// The record was changed: the fault that a reader found at one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Broken {
    /// The entry does not belong here: not the next number, or of another conversation.
    #[error("entry {got} of conversation {conversation} arrived instead of entry {expected}")]
    Position {
        /// The conversation.
        conversation: ConversationId,
        /// The number received.
        got: u64,
        /// The number expected.
        expected: u64,
    },
    /// The time went backwards.
    #[error("entry {n} of conversation {conversation} is older than the entry before it")]
    Time {
        /// The conversation.
        conversation: ConversationId,
        /// The entry's number.
        n: u64,
    },
    /// The link differs from the one that the server supplied or a receipt holds.
    #[error(
        "entry {n} of conversation {conversation} or one before it was changed: its link does not match"
    )]
    Link {
        /// The conversation.
        conversation: ConversationId,
        /// The entry's number.
        n: u64,
    },
}

impl Broken {
    /// The number of the entry at which the reader stopped.
    #[must_use]
    pub fn at(&self) -> u64 {
        match *self {
            Self::Position { got, .. } => got,
            Self::Time { n, .. } | Self::Link { n, .. } => n,
        }
    }
}

/// A position in one conversation's chain: the newest entry that a reader has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    conversation: ConversationId,
    n: u64,
    link: Link,
    time_ms: u64,
}

impl Position {
    /// Starts after entry `n` (0: before the first) and trusts `link` to be its link.
    #[must_use]
    pub fn new(conversation: ConversationId, n: u64, link: Link) -> Self {
        Self { conversation, n, link, time_ms: 0 }
    }

    /// The number of the newest verified entry.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.n
    }

    /// The link of the newest verified entry.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Verifies the next entry and moves to it.
    ///
    /// Compares the entry's link with `claimed` if given: a stored receipt, or the link that the
    /// server supplied.
    ///
    /// # Errors
    /// [`Broken`]; the position is then unchanged.
    pub fn advance(&mut self, entry: &Linked<'_>, claimed: Option<&Link>) -> Result<Link, Broken> {
        let conversation = self.conversation;
        let expected = self.n.saturating_add(1);
        if entry.n != expected || entry.conversation != conversation {
            return Err(Broken::Position { conversation, got: entry.n, expected });
        }
        let changed = Broken::Link { conversation, n: entry.n };
        if entry.time_ms < self.time_ms {
            return Err(Broken::Time { conversation, n: entry.n });
        }
        let link = entry.link(&self.link).ok_or(changed)?;
        if claimed.is_some_and(|claimed| *claimed != link) {
            return Err(changed);
        }
        (self.n, self.link, self.time_ms) = (entry.n, link, entry.time_ms);
        Ok(link)
    }
}
