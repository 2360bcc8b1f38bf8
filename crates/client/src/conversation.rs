//! Conversations as a program uses them: send, and receive from a position that is kept.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use twinlock_core::id::{ConversationId, MessageId, Sender};

use crate::blocking::blocking;
use crate::client::Client;
use crate::delivery::{Deliveries, DeliveryEvent};
use crate::directory::ConversationInfo;
use crate::error::{ClientError, Refusal};
use crate::event_router::EventRouter;
use crate::inbox::{Inbox, InboxEvent};
use crate::model::{Entry, FileEntry};
use crate::receipts::Handled;
use crate::shared_transfers::SentFile;
use crate::transfer::name::harmless;
use crate::transfer::{Destination, DownloadRequest, DownloadTarget, TransferError};

/// Prefix of the names of positions, apart from those of `listen` and of the audit.
const PURPOSE: &str = "sdk:";

/// A room, or a direct conversation; see [`Client::conversation`].
#[derive(Debug, Clone)]
pub struct Conversation {
    client: Client,
    router: EventRouter,
    info: ConversationInfo,
}

/// A message that is on this machine's disk, and will be sent until the server records it.
#[derive(Debug)]
pub struct SentMessage {
    deliveries: Deliveries,
    id: MessageId,
}

/// The messages of a conversation, in order and without gaps, across any number of reconnects.
///
/// A client has one of them for each conversation at a time; the latest gets the messages.
#[derive(Debug)]
pub struct Messages {
    conversation: Conversation,
    inbox: Inbox,
    received: VecDeque<Entry>,
}

/// A received message. Its place in the record is verified.
#[derive(Debug)]
pub struct Message {
    entry: Entry,
    client: Client,
    conversation: ConversationId,
    /// The position that [`Message::handled`] advances.
    position: Option<String>,
}

impl Conversation {
    pub(crate) fn new(client: Client, router: EventRouter, info: ConversationInfo) -> Self {
        Self { client, router, info }
    }

    /// What the server said of it when it was opened.
    #[must_use]
    pub fn info(&self) -> &ConversationInfo {
        &self.info
    }

    /// Sends a text; see [`Client::send`].
    ///
    /// # Errors
    /// [`ClientError::State`] if the message cannot be stored; it is not sent then.
    pub async fn send(&self, text: impl Into<String>) -> Result<SentMessage, ClientError> {
        self.client.send(&self.info.target(), text).await
    }

    /// Sends a file; see [`Client::send_file`].
    ///
    /// # Errors
    /// [`TransferError`] if the file cannot be read; nothing is sent then.
    pub async fn send_file(&self, path: impl AsRef<Path>) -> Result<SentFile, TransferError> {
        self.client.send_file(&self.info.target(), path).await
    }

    /// The members, sorted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn members(&self) -> Result<Vec<String>, ClientError> {
        self.client.until_answered(|| self.client.members(self.info.id)).await
    }

    /// The messages after the last one that existed when the conversation was opened; see
    /// [`Messages::resume`].
    #[must_use]
    pub fn messages(&self) -> Messages {
        let (client, router) = (self.client.clone(), self.router.clone());
        let inbox = Inbox::of(client, router, self.info.clone());
        Messages { conversation: self.clone(), inbox, received: VecDeque::new() }
    }
}

impl SentMessage {
    pub(crate) fn new(deliveries: Deliveries, id: MessageId) -> Self {
        Self { deliveries, id }
    }

    /// Waits until the server has the message on disk; returns its number in the conversation.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the server refuses the message, [`ClientError::Discarded`] if it
    /// was removed from the outbox.
    pub async fn recorded(mut self) -> Result<u64, ClientError> {
        loop {
            match self.deliveries.next().await? {
                DeliveryEvent::Recorded { message_id, ack } if message_id == self.id => {
                    return Ok(ack.n);
                }
                DeliveryEvent::Refused { why, .. } => {
                    return Err(ClientError::Refused(Refusal::from(why)));
                }
                DeliveryEvent::Discarded { .. } => return Err(ClientError::Discarded),
                _ => {}
            }
        }
    }
}

impl Messages {
    /// Continues after the last message that was [handled](Message::handled) under this name, in
    /// this program or in an earlier run. The first time it begins with the next message.
    #[must_use]
    pub fn resume(mut self, name: &str) -> Self {
        self.inbox.set_position(format!("{PURPOSE}{name}"));
        self
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Left`] if the user leaves the conversation, [`ClientError::Superseded`] if
    /// the client receives its messages elsewhere, or the error that ended the client. A lost
    /// connection is not an error.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(entry) = self.received.pop_front() {
                let Conversation { client, info, .. } = &self.conversation;
                return Ok(Message {
                    entry,
                    client: client.clone(),
                    conversation: info.id,
                    position: self.inbox.position_name().map(str::to_owned),
                });
            }
            match self.inbox.next().await? {
                InboxEvent::Entries { entries, .. } => self.received.extend(entries),
                InboxEvent::Left { .. } => return Err(ClientError::Left),
                InboxEvent::Superseded { .. } => return Err(ClientError::Superseded),
                _ => {}
            }
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
        self.sender() == Some(self.client.user().as_str())
    }

    /// The entry of the record.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What it says of its file, if it is a file.
    #[must_use]
    pub fn file(&self) -> Option<&FileEntry> {
        self.entry.file.as_ref()
    }

    /// Fetches its file into a directory, which exists, under the name that its sender gave it; see
    /// [`crate::transfer::name::harmless`]. Continues across reconnects until the file is complete
    /// and its hash matches. Returns its path.
    ///
    /// # Errors
    /// [`TransferError::Exists`] if the directory has a file of that name;
    /// [`TransferError::NoFile`] if the message is not a file.
    pub async fn save_file(&self, dir: impl AsRef<Path>) -> Result<PathBuf, TransferError> {
        let file = self.entry.file.clone().ok_or(TransferError::NoFile)?;
        let name = harmless(file.name.expose_raw()).into();
        let dir = dir.as_ref().to_owned();
        let destination =
            Destination { dir, below: Vec::new(), name, force: false, keep_mode: false };
        let path = destination.path();
        let (conversation, n, own) = (self.conversation, self.entry.n, self.is_own());
        let into = DownloadTarget::File(destination);
        let get = DownloadRequest { conversation, n, file, own, into };
        self.client.transfers().await?.fetch(get).await?;
        Ok(path)
    }

    /// Stores that this message, and all before it, need not be received again.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's state cannot be written.
    pub async fn handled(self) -> Result<(), ClientError> {
        let Some(purpose) = self.position else { return Ok(()) };
        let receipts = self.client.state().receipts();
        let (conversation, n) = (self.conversation, self.entry.n);
        let advance =
            move || Ok(receipts.advance(&Handled { conversation, purpose: &purpose, n })?);
        blocking(advance).await
    }
}
