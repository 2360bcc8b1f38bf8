//! A maintained connection to the server: a task that connects, reconnects, sends the outbox and
//! follows conversations, and the handle to it.
//!
//! Outgoing messages go into the outbox first ([`crate::outbox`]) and are sent from there; the
//! writer then calls [`Client::written`]. Incoming entries arrive as [`Event`]s, checked against
//! the links that this profile knows. They are in order and without gaps across any number of
//! reconnects. If the consumer is slow, the task stops following until the consumer has caught up.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name};
use twinlock_core::keys::{ClassicKey, InviteSecret};
use twinlock_core::limits::{MAX_BODY, MAX_SEARCH, MAX_TOPIC};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use crate::blocking::blocking;
use crate::driver::{self, Command};
use crate::error::{ClientError, Refusal};
use crate::home::Home;
use crate::limits::MAX_LISTED;
use crate::model::{Entry, Event, Facts, NewClassicKey, NewInvite, Options, Rekeyed};
use crate::profile::Profile;
use crate::record::{self, Page};
use crate::state::State;

/// The handle to a client's task. Clones share the task, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    state: State,
    /// Why the task has ended, once it has.
    ended: Arc<OnceLock<ClientError>>,
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
        let ended = Arc::new(OnceLock::new());
        let (commands, events) =
            driver::start(home, profile, state.clone(), options, ended.clone())?;
        Ok((Self { commands, state, ended }, events))
    }

    /// The profile's state: outbox and receipts.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    // ---- the connection

    /// Follows a conversation: entries with numbers greater than `after` arrive as events, also
    /// after reconnects.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn follow(
        &self,
        conversation: ConversationId,
        after: u64,
    ) -> Result<(), ClientError> {
        self.command(Command::Follow { conversation, after }).await
    }

    /// Stops following a conversation.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn unfollow(&self, conversation: ConversationId) -> Result<(), ClientError> {
        self.command(Command::Unfollow { conversation }).await
    }

    /// Notifies the task of new messages in the outbox.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn written(&self) -> Result<(), ClientError> {
        self.command(Command::Written).await
    }

    /// Connects at once instead of waiting for the next attempt.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn hurry(&self) -> Result<(), ClientError> {
        self.command(Command::Hurry).await
    }

    /// The current state of TLS and of the session. Waits for a connection.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn facts(&self) -> Result<Facts, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Facts(reply)).await?;
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
        self.command(Command::Rekey(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Closes the session and ends the task. Messages without an ack stay in the outbox.
    pub async fn close(self) {
        let (reply, done) = oneshot::channel();
        if self.command(Command::Close(reply)).await.is_ok() {
            let _ended = done.await;
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
        self.command(Command::Request { op: Box::new(op), reply }).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    async fn command(&self, command: Command) -> Result<(), ClientError> {
        self.commands.send(command).await.map_err(|_| self.end())
    }

    /// The error that ended the task.
    fn end(&self) -> ClientError {
        self.ended.get().cloned().unwrap_or(ClientError::Closed)
    }

    // ---- conversations

    /// All conversations of this user, or with `joinable` all rooms that the user could join.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn conversations(
        &self,
        joinable: bool,
    ) -> Result<Vec<proto::Conversation>, ClientError> {
        let mut all =
            Listing::new("conversations", |conversation: &proto::Conversation| conversation.id);
        loop {
            let after = all.last().unwrap_or(0);
            let list = proto::ListConversations { joinable, after };
            match self.request(Op::ListConversations(list)).await? {
                Answered::Conversations(some) => {
                    if let Some(all) = all.add(some.conversations, some.more)? {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// The conversation of a target: a room's name, or `@` and a user name. Creates a direct
    /// conversation if there is none.
    ///
    /// # Errors
    /// [`ClientError::NoTarget`], or another [`ClientError`].
    pub async fn target(&self, target: &str) -> Result<proto::Conversation, ClientError> {
        let nobody = || ClientError::NoTarget(target.to_owned());
        let op = match target.strip_prefix('@') {
            Some(user) => Op::OpenDirect(proto::OpenDirect { user: user.to_owned() }),
            None => Op::FindRoom(proto::FindRoom { name: target.to_owned() }),
        };
        match self.conversation(op).await {
            Err(ClientError::Refused(no)) if no.why == RefusalReason::NotFound => Err(nobody()),
            found => found,
        }
    }

    /// Creates a public room and joins it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_room(
        &self,
        name: &Name,
        topic: &str,
    ) -> Result<proto::Conversation, ClientError> {
        let create = proto::CreateRoom { name: name.to_string(), topic: topic.to_owned() };
        self.conversation(Op::CreateRoom(create)).await
    }

    /// Joins a public room.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn join_room(&self, name: &Name) -> Result<proto::Conversation, ClientError> {
        self.conversation(Op::JoinRoom(proto::JoinRoom { name: name.to_string() })).await
    }

    /// Leaves a room.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn leave_room(&self, conversation: ConversationId) -> Result<(), ClientError> {
        self.done(Op::LeaveRoom(proto::LeaveRoom { conversation })).await?;
        let receipts = self.state.receipts();
        blocking(move || record::note_left(&receipts, conversation)).await
    }

    /// Sets a room's topic.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_topic(
        &self,
        conversation: ConversationId,
        topic: &str,
    ) -> Result<proto::Conversation, ClientError> {
        let topic = topic.to_owned();
        self.conversation(Op::SetTopic(proto::SetTopic { conversation, topic })).await
    }

    /// All members of a conversation, sorted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn members(&self, conversation: ConversationId) -> Result<Vec<String>, ClientError> {
        let mut all = Listing::new("members", String::clone);
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListMembers { conversation, after };
            match self.request(Op::ListMembers(list)).await? {
                Answered::Members(some) => {
                    if let Some(all) = all.add(some.users, some.more)? {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Advances the read marker, which all devices of the user share.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mark_read(&self, conversation: ConversationId, n: u64) -> Result<(), ClientError> {
        self.done(Op::Mark(proto::Mark { conversation, n })).await
    }

    // ---- the record

    /// Reads entries with numbers greater than `after`, at most `limit`; the server may return
    /// fewer. Verifies their links against each other and against those that this profile knows.
    ///
    /// # Errors
    /// [`ClientError`]; those with [`crate::error::Blame::Record`] are tamper evidence.
    pub async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_page(conversation, after, limit).await?.whole()
    }

    /// [`Self::read`] that returns the good entries together with the faults of the others.
    ///
    /// # Errors
    /// [`ClientError`] if nothing could be read.
    pub async fn read_page(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_as(proto::Read { conversation, after, limit, links: false }).await
    }

    /// [`Self::read`] that also compares each entry with the link that the server has stored for
    /// it. So a change is found at the changed entry.
    pub(crate) async fn read_stored_links(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_as(proto::Read { conversation, after, limit, links: true }).await?.whole()
    }

    async fn read_as(&self, read: proto::Read) -> Result<Page, ClientError> {
        let proto::Read { conversation, after, .. } = read;
        let receipts = self.state.receipts();
        let known = {
            let receipts = receipts.clone();
            blocking(move || record::known_head(&receipts, conversation)).await?
        };
        match self.request(Op::Read(read)).await {
            Ok(Answered::Page(page)) => {
                let check = move || record::check_page(&receipts, conversation, after, known, page);
                blocking(check).await
            }
            Ok(_) => Err(unexpected()),
            // The record ends before `after`: tamper evidence if that entry is known to be
            // recorded.
            Err(ClientError::Refused(no)) if no.why == RefusalReason::Ahead => {
                record::check_head(conversation, after.saturating_sub(1), known)?;
                Err(ClientError::Refused(no))
            }
            Err(error) => Err(error),
        }
    }

    /// Finds entries that contain all words of `text`, newest first, with numbers below `before`
    /// (0: all).
    ///
    /// The results have gaps, so their links cannot be verified. Entries that cannot be shown are
    /// among the faults.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::BadList`] if the numbers do not decrease.
    pub async fn search(
        &self,
        conversation: ConversationId,
        text: &str,
        before: u64,
        limit: u32,
    ) -> Result<(Vec<Entry>, Vec<ClientError>), ClientError> {
        let text = text.to_owned();
        let search = proto::Search { conversation, text, before, limit };
        let Answered::Page(page) = self.request(Op::Search(search)).await? else {
            return Err(unexpected());
        };
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        let mut below = if before == 0 { u64::MAX } else { before };
        for entry in &page.entries {
            if entry.n >= below {
                return Err(ClientError::BadList("search results"));
            }
            below = entry.n;
            match record::unchecked(conversation, entry) {
                Ok(entry) => entries.push(entry),
                Err(fault) => faults.push(fault),
            }
        }
        Ok((entries, faults))
    }

    // ---- people

    /// All users of the server, sorted. With `watch`, changes of presence are reported from now on,
    /// for as long as this connection lasts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn people(&self, watch: bool) -> Result<Vec<proto::Person>, ClientError> {
        let mut all = Listing::new("people", |person: &proto::Person| person.user.clone());
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListPeople { after, watch };
            match self.request(Op::ListPeople(list)).await? {
                Answered::People(some) => {
                    if let Some(all) = all.add(some.people, some.more)? {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Creates an invite that is valid for `seconds`; 0: the server's default.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn make_invite(
        &self,
        role: proto::Role,
        user: Option<&Name>,
        seconds: u64,
    ) -> Result<NewInvite, ClientError> {
        let user = user.map(ToString::to_string).unwrap_or_default();
        let make = proto::MakeInvite { role: role.into(), user, seconds };
        let Answered::Invite(invite) = self.request(Op::MakeInvite(make)).await? else {
            return Err(unexpected());
        };
        let secret = <[u8; 16]>::try_from(invite.secret.as_ref()).map_err(|_| unexpected())?;
        Ok(NewInvite {
            id: InviteId::from_slice(&invite.id).ok_or_else(unexpected)?,
            secret: InviteSecret::new(&secret),
            expires_ms: invite.expires_ms,
        })
    }

    /// This user's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&self) -> Result<Vec<proto::Device>, ClientError> {
        match self.request(Op::ListDevices(proto::ListDevices {})).await? {
            Answered::Devices(devices) => Ok(devices.devices),
            _ => Err(unexpected()),
        }
    }

    /// Revokes a device: this one, or after [`Client::prove_password`] any other of this user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_device(&self, device: &DeviceId) -> Result<(), ClientError> {
        let device = Bytes::copy_from_slice(&device.0);
        self.done(Op::RevokeDevice(proto::RevokeDevice { device })).await
    }

    // ---- classic keys

    /// Creates a key for a classic connection or the origin bridge, for one conversation of this
    /// user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_classic_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: proto::ClassicForm,
    ) -> Result<NewClassicKey, ClientError> {
        let new = self.add_key(name, conversation, form, Bytes::new()).await?;
        let key = <[u8; 32]>::try_from(new.key.as_ref()).map_err(|_| unexpected())?;
        Ok(NewClassicKey { key: ClassicKey::new(&key), port: port(&new) })
    }

    /// Adds a key that unchanged clients of the origin bridge already have. Returns their port;
    /// `None`: the server does not listen for them now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn import_classic_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: proto::ClassicForm,
        key: &ClassicKey,
    ) -> Result<Option<u16>, ClientError> {
        let key = Bytes::copy_from_slice(key.expose_secret());
        let new = self.add_key(name, conversation, form, key).await?;
        // An older server ignores the field and creates a key, which the clients do not have.
        if !new.key.is_empty() {
            self.revoke_classic_key(name).await?;
            return Err(ClientError::Refused(RefusalReason::Unsupported.into()));
        }
        Ok(port(&new))
    }

    async fn add_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: proto::ClassicForm,
        key: Bytes,
    ) -> Result<proto::NewClassicKey, ClientError> {
        let form = form.into();
        let add = proto::AddClassicKey { name: name.to_string(), conversation, form, key };
        match self.request(Op::AddClassicKey(add)).await? {
            Answered::NewClassicKey(new) => Ok(new),
            _ => Err(unexpected()),
        }
    }

    /// The valid classic keys: all for admins and owners, this user's for others.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn classic_keys(&self) -> Result<Vec<proto::ClassicKey>, ClientError> {
        let mut all = Listing::new("keys", |key: &proto::ClassicKey| key.name.clone());
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListClassicKeys { after };
            match self.request(Op::ListClassicKeys(list)).await? {
                Answered::ClassicKeys(some) => {
                    if let Some(all) = all.add(some.keys, some.more)? {
                        return Ok(all);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Revokes a classic key of this user; admins and owners may revoke any.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_classic_key(&self, name: &Name) -> Result<(), ClientError> {
        let revoke = proto::RevokeClassicKey { name: name.to_string() };
        self.done(Op::RevokeClassicKey(revoke)).await
    }

    async fn conversation(&self, op: Op) -> Result<proto::Conversation, ClientError> {
        match self.request(op).await? {
            Answered::Conversation(conversation) => Ok(conversation),
            _ => Err(unexpected()),
        }
    }

    async fn done(&self, op: Op) -> Result<(), ClientError> {
        match self.request(op).await? {
            Answered::Done(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

/// Maximum size of one list in bytes, encoded.
const LISTED_BYTES: usize = 32 * 1024 * 1024;
/// Maximum overhead of an encoded request in bytes.
const REQUEST_HEAD: usize = 64;

/// A list that arrives in pages. Rejects pages that do not ascend or never end.
struct Listing<T, K> {
    what: &'static str,
    key: fn(&T) -> K,
    all: Vec<T>,
    bytes: usize,
}

impl<T: Message, K: Ord + Default> Listing<T, K> {
    fn new(what: &'static str, key: fn(&T) -> K) -> Self {
        Self { what, key, all: Vec::new(), bytes: 0 }
    }

    fn last(&self) -> Option<K> {
        self.all.last().map(self.key)
    }

    /// Adds a page; returns the complete list after the last page.
    fn add(&mut self, page: Vec<T>, more: bool) -> Result<Option<Vec<T>>, ClientError> {
        let more = more && !page.is_empty();
        let mut last = self.last().unwrap_or_default();
        for item in page {
            let key = (self.key)(&item);
            self.bytes = self.bytes.saturating_add(item.encoded_len());
            let is_over = self.all.len() >= MAX_LISTED || self.bytes > LISTED_BYTES;
            if key <= last || is_over {
                return Err(ClientError::BadList(self.what));
            }
            last = key;
            self.all.push(item);
        }
        Ok((!more).then(|| std::mem::take(&mut self.all)))
    }
}

fn port(new: &proto::NewClassicKey) -> Option<u16> {
    u16::try_from(new.port).ok().filter(|port| *port != 0)
}

fn unexpected() -> ClientError {
    ClientError::Protocol("an answer to another question")
}

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
