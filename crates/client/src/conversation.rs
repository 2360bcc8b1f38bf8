//! Conversations as a program uses them: send, and receive from a position that is kept.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};
use twinlock_core::id::{ConversationId, MessageId, Name, Sender};
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::client::Client;
use crate::clock::now_ms;
use crate::error::{ClientError, Refusal};
use crate::event_router::{EventRouter, MessageResult, Subscription, SubscriptionItem};
use crate::model::Entry;
use crate::outbox::MessageOutcome;
use crate::receipts::{Handled, Receipts};

/// How often [`SentMessage::recorded`] looks whether another process of the profile has sent the
/// message: that process gets the event.
const LOOK: Duration = Duration::from_millis(200);
/// Prefix of the names of positions, apart from those of `listen` and of the audit.
const PURPOSE: &str = "sdk:";

/// A room, or a direct conversation; see [`Client::conversation`].
#[derive(Debug, Clone)]
pub struct Conversation {
    client: Client,
    router: EventRouter,
    /// A room's name, or `@` and a user name.
    target: String,
    id: ConversationId,
    /// Number of its last entry when it was opened.
    head: u64,
}

/// A message that is on this machine's disk, and will be sent until the server records it.
#[derive(Debug)]
pub struct SentMessage {
    client: Client,
    router: EventRouter,
    id: MessageId,
    result: oneshot::Receiver<MessageResult>,
}

/// The messages of a conversation, in order and without gaps, across any number of reconnects.
///
/// The client receives them until it ends, also after this is dropped.
#[derive(Debug)]
pub struct Messages {
    conversation: Conversation,
    after: u64,
    purpose: Option<String>,
    subscription: Option<Arc<Subscription>>,
}

/// A received message. Its place in the record is verified.
#[derive(Debug)]
pub struct Message {
    entry: Entry,
    /// The user of the client that received it.
    user: Arc<Name>,
    resume: Option<Resume>,
}

/// The position that [`Message::handled`] advances.
#[derive(Debug)]
struct Resume {
    receipts: Receipts,
    conversation: ConversationId,
    purpose: String,
}

impl Conversation {
    pub(crate) fn new(
        client: Client,
        router: EventRouter,
        target: &str,
        id: ConversationId,
        head: u64,
    ) -> Self {
        Self { client, router, target: target.to_owned(), id, head }
    }

    /// Sends a text. When this returns, the message survives a crash of this program.
    ///
    /// # Errors
    /// [`ClientError::State`] if the message cannot be stored; it is not sent then.
    pub async fn send(&self, text: impl Into<String>) -> Result<SentMessage, ClientError> {
        let (outbox, target, text) =
            (self.client.state().outbox(), self.target.clone(), text.into());
        let enqueue =
            move || Ok(outbox.enqueue(&target, text.as_bytes(), now_ms(), &mut OsEntropy)?);
        let id = blocking(enqueue).await?;
        let result = self.router.watch(id);
        // The message is on disk: an error here would make the caller send it twice.
        let _closed = self.client.notify_enqueued().await;
        Ok(SentMessage { client: self.client.clone(), router: self.router.clone(), id, result })
    }

    /// The messages after the last one that existed when the conversation was opened; see
    /// [`Messages::resume`].
    #[must_use]
    pub fn messages(&self) -> Messages {
        let conversation = self.clone();
        Messages { after: conversation.head, conversation, purpose: None, subscription: None }
    }
}

impl SentMessage {
    /// Waits until the server has the message on disk; returns its number in the conversation.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the server refuses the message, [`ClientError::Discarded`] if it
    /// was removed from the outbox.
    pub async fn recorded(mut self) -> Result<u64, ClientError> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut self.result => {
                    return result.unwrap_or(Err(ClientError::Closed)).map(|ack| ack.n);
                }
                _ = looks.tick() => {}
            }
            let (outbox, id) = (self.client.state().outbox(), self.id);
            match blocking(move || Ok(outbox.outcome(&id)?)).await? {
                Some(MessageOutcome::Recorded(ack)) => return Ok(ack.n),
                Some(MessageOutcome::Refused(why)) => {
                    return Err(ClientError::Refused(Refusal::from(why)));
                }
                Some(MessageOutcome::Pending) => {}
                None => return Err(ClientError::Discarded),
            }
        }
    }
}

impl Drop for SentMessage {
    fn drop(&mut self) {
        self.router.forget(&self.id);
    }
}

impl Messages {
    /// Continues after the last message that was [handled](Message::handled) under this name, in
    /// this program or in an earlier run. The first time it begins with the next message.
    #[must_use]
    pub fn resume(mut self, name: &str) -> Self {
        self.purpose = Some(format!("{PURPOSE}{name}"));
        self
    }

    /// The next message. Cancel-safe once the first call has returned.
    ///
    /// # Errors
    /// [`ClientError::Left`] if the user leaves the conversation, or the error that ended the
    /// client. A lost connection is not an error.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            let subscription = match &self.subscription {
                Some(subscription) => subscription.clone(),
                None => self.start().await?,
            };
            let entry = match subscription.next().await? {
                SubscriptionItem::Entry(entry) => entry,
                SubscriptionItem::FollowAgain(after) => {
                    let Conversation { client, id, .. } = &self.conversation;
                    client.unfollow(*id).await?;
                    client.follow(*id, after).await?;
                    subscription.followed_again();
                    continue;
                }
            };
            let Conversation { client, router, .. } = &self.conversation;
            let user = router.user();
            let resume = self.purpose.as_ref().map(|purpose| Resume {
                receipts: client.state().receipts(),
                conversation: self.conversation.id,
                purpose: purpose.clone(),
            });
            return Ok(Message { entry: *entry, user, resume });
        }
    }

    async fn start(&mut self) -> Result<Arc<Subscription>, ClientError> {
        let Conversation { client, router, id, .. } = &self.conversation;
        let (receipts, id, head) = (client.state().receipts(), *id, self.after);
        let after = match self.purpose.clone() {
            None => head,
            // The first time stores the position, so that a message during a restart is not lost.
            Some(purpose) => {
                let position = move || match receipts.position(id, &purpose)? {
                    Some(position) => Ok(position),
                    None => {
                        let purpose = purpose.as_str();
                        receipts.advance(&Handled { conversation: id, purpose, n: head })?;
                        Ok(head)
                    }
                };
                blocking(position).await?
            }
        };
        let subscription = router.subscribe(id, after);
        client.unfollow(id).await?;
        client.follow(id, after).await?;
        self.subscription = Some(subscription.clone());
        Ok(subscription)
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Some(subscription) = &self.subscription {
            self.conversation.router.unsubscribe(self.conversation.id, subscription);
        }
    }
}

impl Message {
    /// Its number in the conversation, from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.entry.n
    }

    /// Its text, as the sender wrote it: show it only after removing control characters. Empty for
    /// a file and for an erased message.
    #[must_use]
    pub fn text(&self) -> &str {
        self.entry.text.as_ref().map_or("", |text| text.expose_raw())
    }

    /// The user who sent it; `None`: the server.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        match self.entry.sender.as_ref()? {
            Sender::Server => None,
            Sender::User(user, _) | Sender::Classic(user, _) => Some(user.as_str()),
        }
    }

    /// Whether this client's user sent it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.sender() == Some(self.user.as_str())
    }

    /// The entry of the record.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Stores that this message, and all before it, need not be received again.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's state cannot be written.
    pub async fn handled(self) -> Result<(), ClientError> {
        let Some(Resume { receipts, conversation, purpose }) = self.resume else { return Ok(()) };
        let n = self.entry.n;
        let advance =
            move || Ok(receipts.advance(&Handled { conversation, purpose: &purpose, n })?);
        blocking(advance).await
    }
}
