//! The line to the server, kept up: one task that connects, reconnects, sends the outbox and
//! follows conversations; and the handle to it.
//!
//! What is written goes into the outbox first ([`crate::outbox`]) and is sent from there; whoever
//! has written calls [`Client::written`]. What comes arrives as [`Event`]s, checked against the
//! links this profile knows, in order and without gaps over any number of lost lines. A consumer
//! that is slow costs a position: the task stops following until it has caught up.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use twinlock_core::chain::Kind;
use twinlock_core::id::{
    ConversationId, DeviceId, InviteId, Link, MessageId, Name, Sender, ServerKey, SessionId,
};
use twinlock_core::invite::Address;
use twinlock_core::keys::{ClassicKey, InviteSecret};
use twinlock_core::limits::{MAX_BODY, MAX_SEARCH, MAX_TOPIC, Timing};
use twinlock_core::proto::{self, Why, answer::Result as Answered, request::Op};
use twinlock_core::session::{Binding, Facts as SessionFacts};
use twinlock_core::text::Untrusted;
use twinlock_link::tls::Facts as TlsFacts;

use crate::driver::{self, Command};
use crate::error::{ClientError, Refusal};
use crate::home::Home;
use crate::outbox::Ack;
use crate::profile::Profile;
use crate::record::{self, Page};
use crate::state::State;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connect again after a lost line. Without it the first failure is the end, but for a server
    /// that has no room for a connection.
    pub reconnect: bool,
    /// How long that is waited for without `reconnect`. Default 10 s.
    pub patience: Duration,
    /// Send what is in the outbox.
    pub send: bool,
    /// Connect there instead of where the profile says; its TLS and server keys count as ever.
    pub address: Option<Address>,
    /// First delay before connecting again; grows by itself, with jitter. Default 0.2 s: a server
    /// that takes a moment to start anew is met within half a second. After a line on which
    /// something moved the first attempt is made at once.
    pub first_delay: Duration,
    /// Longest delay. Default 30 s; longer leaves people waiting after an outage.
    pub longest_delay: Duration,
    /// Timing of the session: rekey, keep-alive. The profile's `rekey-after` goes before that of
    /// here.
    pub timing: Timing,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reconnect: true,
            patience: crate::dial::PATIENCE,
            send: true,
            address: None,
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(30),
            timing: Timing::default(),
        }
    }
}

/// What happens on the line.
#[derive(Debug)]
pub enum Event {
    /// The line stands.
    Up(Box<Up>),
    /// It was lost, or could not be made.
    Down {
        /// Why.
        error: ClientError,
        /// When the next attempt is made.
        retry: Duration,
    },
    /// The server cannot record anything now; what is queued goes on being sent. Told once, until
    /// something is recorded again.
    Held {
        /// Its words.
        error: ClientError,
        /// When the next attempt is made.
        retry: Duration,
    },
    /// Entries of a followed conversation, checked, in order.
    Entries {
        /// Which.
        conversation: ConversationId,
        /// One or more.
        entries: Vec<Entry>,
    },
    /// Everything that was there when the line (again) began to follow has arrived.
    CaughtUp {
        /// Which.
        conversation: ConversationId,
        /// How many entries that were.
        entries: u64,
    },
    /// A message is on the server's disk.
    Recorded {
        /// Which.
        message_id: MessageId,
        /// Where.
        ack: Ack,
    },
    /// The server will not record a message; it is kept in the outbox.
    Refused {
        /// Which.
        message_id: MessageId,
        /// Why.
        why: Why,
    },
    /// A conversation of this user is new or changed, or (not `joined`) left.
    Conversation(proto::Conversation),
    /// Somebody came or went; after [`Client::people`] with `watch`.
    Presence {
        /// Who.
        user: String,
        /// Came.
        online: bool,
    },
    /// The last event: the client has ended, by [`Client::close`] or by this error.
    Ended(Option<ClientError>),
}

/// A line that stands.
#[derive(Debug, Clone)]
pub struct Up {
    /// What the server said in READY.
    pub info: proto::ServerInfo,
    /// What is known about TLS.
    pub binding: Binding,
    /// What TLS is made of.
    pub tls: TlsFacts,
}

/// Both locks as they stand.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of lock 1, and what was said in READY.
    pub up: Up,
    /// Of lock 2.
    pub session: SessionFacts,
    /// What the session is called in the server's log.
    pub id: SessionId,
    /// Who the server is.
    pub server_key: ServerKey,
    /// How long the session has lasted.
    pub age: Duration,
    /// How long ago its last rekey was; `None` before the first.
    pub since_rekey: Option<Duration>,
}

/// A rekey that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rekeyed {
    /// The epoch in which it was asked for.
    pub before: u32,
    /// The epoch of both directions since, as far as this end is concerned.
    pub after: u32,
}

/// An entry whose link was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub n: u64,
    /// Milliseconds since 1970 UTC, by the server's clock.
    pub time_ms: u64,
    /// The sender's id of it.
    pub message_id: MessageId,
    /// Text, system, file and so on.
    pub kind: Kind,
    /// Who; `None` for bytes that name no sender.
    pub sender: Option<Sender>,
    /// What; `None` once erased, and of a file.
    pub text: Option<Untrusted>,
    /// The file, of an entry of kind 3 that is not erased.
    pub file: Option<FileEntry>,
    /// `link_n`; `None` in search results, which have gaps.
    pub link: Option<Link>,
}

/// What an entry says of its file, whose bytes are fetched by its number
/// ([`crate::transfer::Transfers::get`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// As its sender called it; see [`crate::transfer::name::harmless`].
    pub name: Untrusted,
    /// The directories above it as its sender named them, `/` between them; empty: none. See
    /// [`crate::transfer::name::below`].
    pub path: Untrusted,
    /// Bytes.
    pub size: u64,
    /// Permission bits, at most 0777; 0: not known.
    pub mode: u32,
    /// When it was last changed, ms since 1970 UTC; 0: not known.
    pub modified_ms: u64,
    /// BLAKE3 of it.
    pub hash: [u8; 32],
}

/// The handle to a client's task. Clones share it; the task ends with the last.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    state: State,
    /// Why the task has ended, once it has.
    ended: Arc<OnceLock<ClientError>>,
}

impl Client {
    /// Starts the task. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] if the profile's authorities cannot be read.
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

    // ---- the line

    /// Follows a conversation: entries with numbers greater than `after` come as events, now and
    /// over every later line.
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

    /// Ends that.
    ///
    /// # Errors
    /// [`ClientError::Closed`].
    pub async fn unfollow(&self, conversation: ConversationId) -> Result<(), ClientError> {
        self.command(Command::Unfollow { conversation }).await
    }

    /// There is something new in the outbox.
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

    /// Both locks as they stand. Waits for a line.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn facts(&self) -> Result<Facts, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Facts(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Rekeys the session and waits until that is done. Waits for a line, and for the protocol's
    /// pause of 15 s after another rekey; one that is under way serves.
    ///
    /// # Errors
    /// [`ClientError`], also where the line is lost before the rekey is done.
    pub async fn rekey(&self) -> Result<Rekeyed, ClientError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Rekey(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.end()))
    }

    /// Says bye and ends the task. What is not recorded stays in the outbox.
    pub async fn close(self) {
        let (reply, done) = oneshot::channel();
        if self.command(Command::Close(reply)).await.is_ok() {
            let _ended = done.await;
        }
    }

    /// Asks the server something. Waits for a line; a request that was on a line that is lost
    /// fails.
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

    /// What has ended the task.
    fn end(&self) -> ClientError {
        self.ended.get().cloned().unwrap_or(ClientError::Closed)
    }

    // ---- conversations

    /// All conversations of this user, or with `joinable` all rooms it could join.
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

    /// The conversation behind a target: a room's name, or `@` and a user's. A direct
    /// conversation is made if it is new.
    ///
    /// # Errors
    /// [`ClientError::NoTarget`] and others.
    pub async fn target(&self, target: &str) -> Result<proto::Conversation, ClientError> {
        let nobody = || ClientError::NoTarget(target.to_owned());
        let op = match target.strip_prefix('@') {
            Some(user) => Op::OpenDirect(proto::OpenDirect { user: user.to_owned() }),
            None => Op::FindRoom(proto::FindRoom { name: target.to_owned() }),
        };
        match self.conversation(op).await {
            Err(ClientError::Refused(no)) if no.why == Why::NotFound => Err(nobody()),
            found => found,
        }
    }

    /// Makes a public room with this user in it.
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

    /// Everybody in a conversation, in order.
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

    /// Moves the read marker forward, so that other devices know.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn mark_read(&self, conversation: ConversationId, n: u64) -> Result<(), ClientError> {
        self.done(Op::Mark(proto::Mark { conversation, n })).await
    }

    // ---- the record

    /// Reads entries with numbers greater than `after`, at most `limit`; the server may give
    /// fewer. Links are checked against each other and against those this profile knows.
    ///
    /// # Errors
    /// [`ClientError`]; those of [`crate::error::Blame::Record`] are tamper evidence.
    pub async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_page(conversation, after, limit).await?.whole()
    }

    /// [`Self::read`] that returns the good entries and the faults of the others.
    ///
    /// # Errors
    /// [`ClientError`] where nothing could be read.
    pub async fn read_page(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_as(proto::Read { conversation, after, limit, links: false }).await
    }

    /// [`Self::read`] where each entry is also compared with the link that the server has stored
    /// for it, so that a change is found at the entry that was changed.
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
            // The record ends before the entry to begin after: was that one recorded?
            Err(ClientError::Refused(no)) if no.why == Why::Ahead => {
                record::check_head(conversation, after.saturating_sub(1), known)?;
                Err(ClientError::Refused(no))
            }
            Err(error) => Err(error),
        }
    }

    /// Entries that contain all words of `text`, newest first, with numbers below `before`
    /// (0: all). They have gaps, so their links cannot be checked. Those that cannot be shown are
    /// among the faults.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::BadList`] where the numbers do not fall.
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

    /// Everybody on the server, in order; with `watch`, who comes and goes is told from now on,
    /// for as long as this line stands.
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

    /// Makes an invite; `seconds` 0: good for as long as the server's default says.
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

    /// Revokes a device: this one, or after [`Client::prove_password`] any of this user's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_device(&self, device: &DeviceId) -> Result<(), ClientError> {
        let device = Bytes::copy_from_slice(&device.0);
        self.done(Op::RevokeDevice(proto::RevokeDevice { device })).await
    }

    // ---- classic keys

    /// Makes a key of a classic line or of the origin bridge, for one conversation of this user's.
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

    /// Adds a key that unchanged programs of the origin bridge have already. Returns the port they connect to; `None`:
    /// the server does not listen for them now.
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
        // An older server ignores the field and makes a key, which the programs do not have.
        if !new.key.is_empty() {
            self.revoke_classic_key(name).await?;
            return Err(ClientError::Refused(Why::Unsupported.into()));
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

    /// Classic keys that can be used: all for admins and owners, this user's for others.
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

    /// Revokes a classic key: one of this user's, or for admins and owners anybody's.
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

/// Items of one list at most: ten times what a large server has.
pub(crate) const MOST_LISTED: usize = 200_000;
/// Bytes of one list at most, as they come.
const LISTED_BYTES: usize = 32 * 1024 * 1024;
/// What a request is wrapped in on its way, bytes at most.
const REQUEST_HEAD: usize = 64;

/// A list that comes in pages. A server whose pages do not rise, or never end, is not followed.
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

    /// Adds a page; all of them, with the last.
    fn add(&mut self, page: Vec<T>, more: bool) -> Result<Option<Vec<T>>, ClientError> {
        let more = more && !page.is_empty();
        let mut last = self.last().unwrap_or_default();
        for item in page {
            let key = (self.key)(&item);
            self.bytes = self.bytes.saturating_add(item.encoded_len());
            let is_over = self.all.len() >= MOST_LISTED || self.bytes > LISTED_BYTES;
            if key <= last || is_over {
                return Err(ClientError::BadList(self.what));
            }
            last = key;
            self.all.push(item);
        }
        Ok((!more).then(|| std::mem::take(&mut self.all)))
    }
}

/// An invite as the server made it.
#[derive(Debug)]
pub struct NewInvite {
    /// Its id.
    pub id: InviteId,
    /// What it knows; nobody else has it.
    pub secret: InviteSecret,
    /// When it ends, ms since 1970 UTC.
    pub expires_ms: u64,
}

/// A classic key as the server made it.
#[derive(Debug)]
pub struct NewClassicKey {
    /// The key; nobody keeps it but whoever is given it.
    pub key: ClassicKey,
    /// The server's port for it; `None`: that listener is off.
    pub port: Option<u16>,
}

fn port(new: &proto::NewClassicKey) -> Option<u16> {
    u16::try_from(new.port).ok().filter(|port| *port != 0)
}

fn unexpected() -> ClientError {
    ClientError::Protocol("an answer to another question")
}

/// Runs what waits for the disk where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => Err(ClientError::Failed("work on a file ended early")),
        // The runtime is shutting down.
        Err(_) => Err(ClientError::Closed),
    }
}

/// Refuses what fits into no frame as the server would: sent, it would end the connection.
fn check_size(op: &Op) -> Result<(), ClientError> {
    if op.encoded_len() + REQUEST_HEAD <= MAX_BODY {
        return Ok(());
    }
    let (limit, most) = match op {
        Op::CreateRoom(_) | Op::SetTopic(_) => (proto::Limit::TopicBytes, MAX_TOPIC as u64),
        Op::Search(_) => (proto::Limit::SearchBytes, MAX_SEARCH as u64),
        _ => (proto::Limit::None, 0),
    };
    Err(ClientError::Refused(Refusal { limit, most, ..proto::Why::TooLarge.into() }))
}
