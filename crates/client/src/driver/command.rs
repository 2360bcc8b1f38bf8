//! What a handle asks of the driver, and where each answer goes.

use tokio::sync::oneshot;
use twinlock_core::id::{ConversationId, MessageId};
use twinlock_core::proto::{answer::Result as Answered, request::Op};

use crate::error::ClientError;
use crate::model::{Facts, FollowToken, Rekeyed};

/// A command from a handle to the task.
#[derive(Debug)]
pub(crate) enum DriverCommand {
    Follow { conversation: ConversationId, after: u64, token: FollowToken },
    Unfollow { conversation: ConversationId, token: FollowToken },
    Enqueued,
    ReconnectNow,
    Facts(Reply<Facts>),
    Rekey(Reply<Rekeyed>),
    Request { op: Box<Op>, reply: Reply<Answered> },
    Close(oneshot::Sender<()>),
}

/// Where the answer to a command goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, ClientError>>;

/// The recipient of an answer.
#[derive(Debug)]
pub(super) enum Recipient {
    /// A caller of the handle.
    Caller(Reply<Answered>),
    /// The outbox, for this message.
    Append(MessageId),
    /// The outbox, which looks up this target.
    Target(String),
    /// A follow.
    Follow(ConversationId),
    /// No recipient.
    Discard,
}

impl DriverCommand {
    /// Answers a command with an error, because the task has ended.
    pub(super) fn refuse(self, error: &ClientError) {
        match self {
            Self::Request { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Facts(reply) => drop(reply.send(Err(error.clone()))),
            Self::Rekey(reply) => drop(reply.send(Err(error.clone()))),
            Self::Close(reply) => drop(reply.send(())),
            Self::Follow { .. } | Self::Unfollow { .. } | Self::Enqueued | Self::ReconnectNow => {}
        }
    }
}
