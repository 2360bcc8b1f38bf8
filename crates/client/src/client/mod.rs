//! A maintained connection to the server: a task that connects, reconnects, sends the outbox and
//! follows conversations, and the handle to it.
//!
//! Outgoing messages go into the outbox first ([`crate::outbox`]) and are sent from there; the
//! writer then calls [`Client::notify_enqueued`]. Incoming entries arrive as [`Event`]s, checked against
//! the links that this profile knows. They are in order and without gaps across any number of
//! reconnects. If the consumer is slow, the task stops following until the consumer has caught up.

mod classic_keys;
mod conversations;
mod listing;
mod open;
mod people;
mod reading;
mod step_up;

use std::sync::{Arc, OnceLock};

use tokio::sync::{OnceCell, mpsc, oneshot};
use twinlock_core::id::{ConversationId, Name, ServerKey};
use twinlock_core::limits::{MAX_BODY, MAX_SEARCH, MAX_TOPIC};
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};

use crate::directory::ConversationInfo;
use crate::driver::{self, DriverCommand};
use crate::error::{ClientError, Refusal};
use crate::event_router::EventRouter;
use crate::home::Home;
use crate::model::{Event, Facts, FollowToken, Options, Rekeyed};
use crate::profile::Profile;
use crate::shared_transfers::SharedTransfers;
use crate::state::State;

/// The handle to a client's task. Clones share the task, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<DriverCommand>,
    state: State,
    /// Why the task has ended, once it has.
    ended: Arc<OnceLock<ClientError>>,
    source: Arc<ClientSource>,
    /// Who waits for events; `None`: the caller of [`Client::start`] takes them.
    router: Option<EventRouter>,
}

/// What a client was started with, and its file transfers.
#[derive(Debug)]
struct ClientSource {
    home: Home,
    profile: Name,
    user: Name,
    server_key: ServerKey,
    options: Options,
    transfers: OnceCell<Arc<SharedTransfers>>,
}

impl Client {
    /// Starts the task. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's CA certificates cannot be read.
    pub fn start(
        home: &Home,
        profile: Profile,
        state: State,
        options: Options,
    ) -> Result<(Self, mpsc::Receiver<Event>), ClientError> {
        let source = ClientSource {
            home: home.clone(),
            profile: profile.name().clone(),
            user: profile.user().clone(),
            server_key: *profile.server_key(),
            options: options.clone(),
            transfers: OnceCell::new(),
        };
        let ended = Arc::new(OnceLock::new());
        let (commands, events) =
            driver::start(home, profile, state.clone(), options, ended.clone())?;
        let source = Arc::new(source);
        Ok((Self { commands, state, ended, source, router: None }, events))
    }

    /// The user of the profile.
    #[must_use]
    pub fn user(&self) -> &Name {
        &self.source.user
    }

    /// The profile's state: outbox and receipts.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Follows a conversation: entries with numbers greater than `after` arrive as events, also
    /// after reconnects. For a client of [`Self::start`]; others have [`Self::inbox`].
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn follow(
        &self,
        conversation: ConversationId,
        after: u64,
    ) -> Result<(), ClientError> {
        self.command(DriverCommand::Follow { conversation, after, token: 0 }).await
    }

    /// Stops following a conversation.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn unfollow(&self, conversation: ConversationId) -> Result<(), ClientError> {
        self.command(DriverCommand::Unfollow { conversation, token: 0 }).await
    }

    /// Notifies the task of new messages in the outbox.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn notify_enqueued(&self) -> Result<(), ClientError> {
        self.command(DriverCommand::Enqueued).await
    }

    /// Connects at once instead of waiting for the next attempt.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn reconnect_now(&self) -> Result<(), ClientError> {
        self.command(DriverCommand::ReconnectNow).await
    }

    /// The current state of TLS and of the session. Waits for a connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn facts(&self) -> Result<Facts, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(DriverCommand::Facts(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Rekeys the session and waits for completion.
    ///
    /// Waits for a connection, and for the protocol's interval of 15 s after another rekey. A rekey
    /// that is in progress counts.
    ///
    /// # Errors
    /// [`ClientError`], also if the connection is lost before the rekey is complete.
    pub async fn rekey(&self) -> Result<Rekeyed, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(DriverCommand::Rekey(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Closes the session and ends the task. Messages without an ack stay in the outbox. File
    /// transfers end where they are, and resume when they are begun again.
    pub async fn close(self) {
        if let Some(transfers) = self.source.transfers.get() {
            transfers.close();
        }
        let (reply, done) = oneshot::channel();
        if self.command(DriverCommand::Close(reply)).await.is_ok() {
            let _ended = done.await;
        }
    }

    /// Repeats a request until a connection delivers the answer.
    ///
    /// # Errors
    /// [`ClientError`], but not [`ClientError::Lost`].
    pub async fn until_answered<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        loop {
            match ask().await {
                Err(ClientError::Lost(_)) => {}
                answered => return answered,
            }
        }
    }

    /// Sends a request and waits for the answer. Waits for a connection; fails if the connection is
    /// lost before the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn request(&self, op: Op) -> Result<Answered, ClientError> {
        check_size(&op)?;
        let (reply, answer) = oneshot::channel();
        self.command(DriverCommand::Request { op: Box::new(op), reply }).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Follows a conversation as `token` instead of an earlier follow.
    pub(crate) async fn follow_as(
        &self,
        conversation: ConversationId,
        after: u64,
        token: FollowToken,
    ) -> Result<(), ClientError> {
        self.command(DriverCommand::Follow { conversation, after, token }).await
    }

    async fn command(&self, command: DriverCommand) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| self.end())
    }

    /// The error that ended the task.
    fn end(&self) -> ClientError {
        self.ended.get().cloned().unwrap_or(ClientError::Closed)
    }

    /// Sends a request that a conversation answers.
    async fn ask_conversation(&self, op: Op) -> Result<ConversationInfo, ClientError> {
        match self.request(op).await? {
            Answered::Conversation(conversation) => Ok(conversation.into()),
            _ => Err(unexpected()),
        }
    }

    /// Sends a request that has no result.
    async fn done(&self, op: Op) -> Result<(), ClientError> {
        match self.request(op).await? {
            Answered::Done(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> ClientError {
    ClientError::Protocol("an answer to another question")
}

/// Maximum overhead of an encoded request in bytes.
const REQUEST_HEAD: usize = 64;

/// Refuses a request that fits into no frame, as the server would; sending it would end the
/// connection.
fn check_size(op: &Op) -> Result<(), ClientError> {
    if op.encoded_len() + REQUEST_HEAD <= MAX_BODY {
        return Ok(());
    }
    let (limit, most) = match op {
        Op::CreateRoom(_) | Op::SetTopic(_) => (proto::Limit::TopicBytes, MAX_TOPIC as u64),
        Op::Search(_) => (proto::Limit::SearchBytes, MAX_SEARCH as u64),
        _ => (proto::Limit::None, 0),
    };
    Err(ClientError::Refused(Refusal { limit, most, ..proto::RefusalReason::TooLarge.into() }))
}
