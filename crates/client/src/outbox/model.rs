//! Messages, their outcomes, and the changes of one transaction.

use std::collections::HashSet;

use bytes::Bytes;
use twinlock_core::id::{ConversationId, Link, MessageId, Salt};
use twinlock_core::proto::{self, RefusalReason};

use crate::error::ClientError;

/// The server's acknowledgement that a message is on its disk (PROTOCOL section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The conversation.
    pub conversation: ConversationId,
    /// The number of its entry, from 1.
    pub n: u64,
    /// Time of recording, in ms since 1970 UTC, by the server's clock.
    pub time_ms: u64,
    /// `None` if the entry is already erased.
    pub salt: Option<Salt>,
    /// `link_n`.
    pub link: Link,
}

impl Ack {
    /// Decodes the server's message.
    pub(crate) fn read(ack: &proto::Ack) -> Result<Self, ClientError> {
        Ok(Self {
            conversation: ack.conversation,
            n: ack.n,
            time_ms: ack.time_ms,
            salt: Salt::from_slice(&ack.salt),
            link: Link::from_slice(&ack.link).ok_or(ClientError::Protocol("length of a link"))?,
        })
    }
}

/// A message without ack or refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The message id, the same in each attempt.
    pub message_id: MessageId,
    /// A room's name, or `@` and a user name.
    pub target: String,
    /// At most [`MAX_TEXT`](twinlock_core::limits::MAX_TEXT) bytes.
    pub body: Bytes,
    /// Time of enqueueing, in ms since 1970 UTC, by this machine's clock.
    pub enqueued_ms: u64,
}

/// A message that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedMessage {
    /// The message.
    pub message: Pending,
    /// The server's reason.
    pub why: RefusalReason,
}

/// The outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageOutcome {
    /// Neither ack nor refusal yet.
    Pending,
    /// It is on the server's disk.
    Recorded(Ack),
    /// The server refused it.
    Refused(RefusalReason),
}

/// The changes of one transaction; see [`super::Outbox::settle`].
#[derive(Debug, Default)]
pub struct Settle<'a> {
    /// Acks: see [`super::Outbox::mark_recorded_many`].
    pub recorded: &'a [(MessageId, Ack)],
    /// Refusals: see [`super::Outbox::mark_refused`].
    pub refused: &'a [(MessageId, RefusalReason)],
    /// Release the claims of this process that have no outcome.
    pub release: bool,
    /// Claim messages, see [`super::Outbox::claim`], and return those that this process claimed when it
    /// enqueued them.
    pub claim: Option<Claim>,
}

/// The parameters of a claim.
#[derive(Debug, Default)]
pub struct Claim {
    /// Maximum number of messages.
    pub limit: usize,
    /// Claimed messages that the process has in memory already.
    pub held: HashSet<MessageId>,
}
