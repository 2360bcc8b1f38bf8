//! The log of entries (section 7): appends, reads, erasure and notices of new heads.
//!
//! This is a part of the contract of [`Store`](crate::Store). The
//! [`sequencer`](crate::sequencer) assigns numbers and links. Clients verify links, the log does
//! not.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;
use twinlock_core::chain::{self, Broken, EntryKind, Linked, Position};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Name, Salt, Sender};

use crate::appended::{Appended, Receipt};
use crate::error::StoreError;
use crate::files::FileRef;
use crate::order::{AppendAnswer, Order};

/// The entries of all conversations.
#[async_trait]
pub trait EntryLog: Send + Sync + 'static {
    /// Queues a batch of entries for the recorder. Resolves when the batch is queued.
    ///
    /// The recorder records batches in the order of these calls, each as a whole or not at all. The
    /// [`AppendAnswer`] has one item for each entry, in the order of the batch. Queued batches may
    /// share a transaction (group commit).
    ///
    /// This future waits only while the queue is full. Poll it to completion, because later callers
    /// queue behind it. Dropping the [`AppendAnswer`] does not cancel the append.
    async fn hand_over(
        &self,
        batch: Vec<NewEntry>,
        order: &Order,
    ) -> Result<AppendAnswer, StoreError>;

    /// Queues a batch with [`Self::hand_over`] and waits for its answer.
    async fn append(&self, batch: Vec<NewEntry>) -> Result<Vec<Appended>, StoreError> {
        self.hand_over(batch, &Order::default()).await?.await
    }

    /// Reads entries with numbers greater than `after`, in ascending order.
    ///
    /// Returns at most `limit.entries` entries with about `limit.bytes` of bodies, but at least one
    /// entry if there is one. The page ends before a missing entry. If the first entry is missing,
    /// the error is [`StoreError::Damaged`]. If `after` is at or past the head, the page is empty
    /// and `link_after` is the head's link. A conversation that does not exist reads as empty.
    async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: ReadLimit,
    ) -> Result<EntryPage, StoreError>;

    /// Looks at the last `entries` entries of the whole record, and returns the newest entry of
    /// each conversation among them, newest first.
    async fn newest(&self, entries: usize) -> Result<Vec<Newest>, StoreError>;

    /// Subscribes to all later commits, which arrive in order for each conversation. A receiver
    /// that lags gets an error and must read the heads itself.
    fn watch(&self) -> broadcast::Receiver<Arc<[Published]>>;

    /// Removes salt and body of an entry and keeps its commitment, so that the links still verify.
    /// Returns `None` if the entry does not exist or is erased already.
    async fn erase(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<Erased>, StoreError>;

    /// The receipt of this user's message, if it was recorded.
    async fn receipt(
        &self,
        user: &Name,
        message_id: &MessageId,
    ) -> Result<Option<Receipt>, StoreError>;
}

/// An entry to record. The store assigns number, time, salt and link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// The conversation.
    pub conversation: ConversationId,
    /// The author; [`Sender::Server`] needs no membership.
    pub sender: Sender,
    /// Chosen by the client; unique for its user over all conversations.
    pub message_id: MessageId,
    /// Text, system, file and others.
    pub kind: EntryKind,
    /// The body as received.
    pub body: Bytes,
}

/// A recorded entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// The entry's number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// The id that the client assigned.
    pub message_id: MessageId,
    /// Text, system, file and others.
    pub kind: EntryKind,
    /// The [`Sender`] in its protocol encoding, kept as bytes because the link covers these bytes.
    pub sender: Bytes,
    /// Salt and body, or the commitment once erased.
    pub content: StoredContent,
    /// The entry's link, `link_n`, as stored when the entry was recorded.
    pub link: Link,
}

impl StoredEntry {
    /// The receipt of this entry of `conversation`.
    #[must_use]
    pub fn receipt(&self, conversation: ConversationId) -> Receipt {
        let salt = match &self.content {
            StoredContent::Body(salt, _) => Some(*salt),
            StoredContent::Erased(_) => None,
        };
        Receipt { conversation, n: self.n, time_ms: self.time_ms, salt, link: self.link }
    }

    /// Moves `position` past this entry of `conversation`, as a client verifies it, and returns the
    /// entry's link.
    ///
    /// # Errors
    /// [`Broken`] if the entry does not follow `position`, which then stays where it is.
    pub fn advance(
        &self,
        position: &mut Position,
        conversation: ConversationId,
    ) -> Result<Link, Broken> {
        let commit = match &self.content {
            StoredContent::Body(salt, body) => chain::commit(salt, body),
            StoredContent::Erased(commit) => *commit,
        };
        let linked = Linked {
            conversation,
            n: self.n,
            time_ms: self.time_ms,
            message_id: &self.message_id,
            kind: self.kind,
            sender: &self.sender,
            commit: &commit,
        };
        position.advance(&linked, None)
    }
}

/// The body of an entry, or its commitment once erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredContent {
    /// The salt, and the body as recorded.
    Body(Salt, Bytes),
    /// The commitment of an erased entry.
    Erased(Commit),
}

/// The newest entry of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The entry's position in the whole record, over all conversations.
    pub seq: u64,
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// The entry's link, `link_n`.
    pub link: Link,
}

/// The result of erasing an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// The file that the entry referred to. The content can be deleted unless another entry refers
    /// to it.
    pub file: Option<FileRef>,
}

/// Limits of one read.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// Maximum number of entries.
    pub entries: usize,
    /// Approximate maximum of body bytes.
    pub bytes: usize,
}

/// A range of a conversation's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPage {
    /// The link of entry `after`, against which the first entry's link is verified.
    pub link_after: Link,
    /// The conversation's newest number.
    pub head: u64,
    /// Entries in ascending order, without gaps, from `after + 1`.
    pub entries: Vec<StoredEntry>,
}

/// New entries of one conversation, published after the commit and before the acks.
#[derive(Debug, Clone)]
pub struct Published {
    /// The conversation.
    pub conversation: ConversationId,
    /// The conversation's newest number.
    pub head: u64,
    /// The new entries up to `head`, without gaps. Empty if another process recorded them.
    pub entries: Vec<StoredEntry>,
}
