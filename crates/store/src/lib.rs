//! The contract of the record: [`Store`].
//!
//! [`Store`] is everything that the server requires of its record. The contract assumes neither
//! that this process is the only writer nor that anything is cached, so that several servers may
//! share one record later. Every implementation passes [`conformance`].
//!
//! The store knows nothing of connections, sessions or the protocol. It never sees a password, a
//! device secret or the OPAQUE setup, only the row key that is derived from the setup.

pub mod conformance;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::broadcast;
use twinlock_core::chain::Kind;
use twinlock_core::classic::Form as ClassicForm;
use twinlock_core::id::{
    Commit, ConversationId, CredentialId, DeviceId, InviteId, Link, MessageId, Name, Salt, Sender,
    ServerKey,
};

/// The room of all users. It is created with the record, and no member can leave it.
pub const LOBBY: ConversationId = 1;

/// Maximum number of login sources kept for a user.
pub const KNOWN_SOURCES: u32 = 16;

/// Maximum number of them that only device logins came from.
pub const KNOWN_DEVICE_SOURCES: u32 = 4;

/// Time for which a login source stays known, ms: 30 days.
pub const KNOWN_SOURCE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// Minimum charge for a file, bytes: one disk block.
pub const LEAST_CHARGE: u64 = 4096;

/// Source of the store's time: milliseconds since 1970 UTC.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A durable record of conversations, people and their credentials.
///
/// Unless stated otherwise, a method that writes returns after the data is on disk (fsync). Every
/// method may be cancelled; a write that has started completes nevertheless.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    // ---- the record

    /// Queues a batch of entries for the recorder. Resolves when the batch is queued.
    ///
    /// The recorder records batches in the order of these calls and answers each entry in the order
    /// of the batch. Batches in the queue share a transaction (group commit); each batch is
    /// recorded as a whole or not at all. This future waits only while the queue is full. Poll it
    /// to completion: later callers queue behind it. Dropping the returned [`Answer`] does not
    /// cancel the append.
    async fn hand_over(&self, batch: Vec<NewEntry>, order: &Order) -> Result<Answer, StoreError>;

    /// Queues a batch with [`Store::hand_over`] and waits for its answer.
    async fn append(&self, batch: Vec<NewEntry>) -> Result<Vec<Appended>, StoreError> {
        self.hand_over(batch, &Order::default()).await?.await
    }

    /// Reads entries with numbers greater than `after`, in ascending order.
    ///
    /// Returns at most `limit.entries` entries with about `limit.bytes` of bodies, but at least one
    /// entry if there is one. The page ends before a missing entry; if that is the first entry, the
    /// error is [`StoreError::Damaged`]. At or past the head the page is empty, and `link_after` is
    /// the head's link. A conversation that does not exist is empty.
    async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: Limit,
    ) -> Result<Page, StoreError>;

    /// Searches for entries that contain all words of `text`, newest first, for about `time`.
    ///
    /// A last word of three or more letters matches as a prefix. [`Found::next`] says where the
    /// search resumes. The call reads one snapshot of the record, which delays checkpoints until it
    /// returns. It finds at most `limit.entries` entries with about `limit.bytes` of bodies, but at
    /// least one entry if there is one.
    async fn search_some(
        &self,
        conversation: ConversationId,
        text: &str,
        from: SearchFrom,
        limit: Limit,
        time: Duration,
    ) -> Result<Found, StoreError>;

    /// Approximate number of bytes that a search may have to read because they are not indexed yet.
    /// Counts bodies, plus 256 for each entry; 0 when the index is up to date.
    fn unindexed(&self) -> u64;

    /// Repeats [`Store::search_some`] below `before` until it is complete or has `entries` entries.
    /// Its time is not bounded.
    async fn search(
        &self,
        conversation: ConversationId,
        text: &str,
        before: u64,
        entries: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        let mut from = Some(SearchFrom::below(before));
        while let Some(at) = from
            && all.len() < entries
        {
            let limit = Limit { entries: entries - all.len(), bytes: usize::MAX };
            let found = self.search_some(conversation, text, at, limit, SLICE).await?;
            all.extend(found.entries);
            from = found.next;
        }
        Ok(all)
    }

    /// The newest entry of each conversation among the last `entries` of the whole record, newest
    /// first.
    async fn newest(&self, entries: usize) -> Result<Vec<Newest>, StoreError>;

    /// Subscribes to all later commits, in order for each conversation. A receiver that lags gets
    /// an error and must read the heads itself.
    fn watch(&self) -> broadcast::Receiver<Arc<[Published]>>;

    /// Removes salt and body of an entry and keeps its commitment, so that the links still verify.
    /// `None`: the entry does not exist, or it is erased already.
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

    // ---- files

    /// The file of entry `n`, if `user` is a member of the conversation.
    ///
    /// An entry of kind [`Kind::FILE`] is a file if its body is a `FileBody` with a hash. The
    /// reference is recorded in the entry's transaction and kept until the entry is erased.
    async fn file(
        &self,
        user: &Name,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<FileRef>, StoreError>;

    /// Total of all files that this user has sent and that are not erased. Content that was sent
    /// twice counts twice.
    async fn stored(&self, user: &Name) -> Result<Stored, StoreError>;

    /// The distinct hashes of content that entries refer to, ascending, greater than `after`, at
    /// most `limit`.
    async fn file_hashes(
        &self,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<[u8; 32]>, StoreError>;

    /// Whether an entry refers to this content.
    async fn is_referenced(&self, hash: &[u8; 32]) -> Result<bool, StoreError>;

    // ---- conversations

    /// The conversations of `user` with ids greater than `after`, at most `limit`. With `joinable`:
    /// instead, the rooms that `user` is not a member of.
    async fn conversations(
        &self,
        user: &Name,
        joinable: bool,
        after: ConversationId,
        limit: usize,
    ) -> Result<Vec<Conversation>, StoreError>;

    /// The room of this name, if `user` is a member.
    async fn room(&self, user: &Name, room: &Name) -> Result<Option<Conversation>, StoreError>;

    /// One conversation as `user` sees it, if `user` is a member.
    async fn conversation(
        &self,
        user: &Name,
        id: ConversationId,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Creates a room with `user` as its only member. `None`: the name is taken.
    /// [`StoreError::TooMany`] at [`Bound::Rooms`] and [`Bound::Memberships`].
    async fn create_room(
        &self,
        user: &Name,
        name: &Name,
        topic: &str,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Joins a room by name; joining twice is not an error. `None`: the room does not exist.
    /// [`StoreError::TooMany`] at [`Bound::Memberships`].
    async fn join_room(&self, user: &Name, name: &Name) -> Result<Option<Joined>, StoreError>;

    /// Leaves a room. `false`: `user` is not a member, or the conversation is the lobby or direct.
    async fn leave_room(&self, user: &Name, id: ConversationId) -> Result<bool, StoreError>;

    /// Sets a room's topic. `None`: it is not a room, or `user` is not a member.
    async fn set_topic(
        &self,
        user: &Name,
        id: ConversationId,
        topic: &str,
    ) -> Result<Option<Conversation>, StoreError>;

    /// The direct conversation of two users, created if necessary. `None`: one of them does not
    /// exist. [`StoreError::TooMany`] at [`Bound::Memberships`] of `user`, if it would have to be
    /// created.
    async fn open_direct(
        &self,
        user: &Name,
        other: &Name,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Members with names greater than `after`, in ascending order, at most `limit`.
    async fn members(
        &self,
        id: ConversationId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<Name>, StoreError>;

    /// Moves the read marker of `user` forward to `n`, never backward and never past the head.
    async fn mark_read(&self, user: &Name, id: ConversationId, n: u64) -> Result<(), StoreError>;

    // ---- people and credentials

    /// Looks up the usable credential of `id`: one that exists and is not revoked, used or expired
    /// at `now_ms`.
    ///
    /// A hit and every kind of miss cost the same reads and return the same amount of data. A row
    /// whose MAC does not verify is a miss.
    async fn look_up(&self, id: &CredentialId, now_ms: u64) -> Result<LookedUp, StoreError>;

    /// As [`Store::look_up`], for callers that need not hide whether the credential is usable.
    async fn credential(
        &self,
        id: &CredentialId,
        now_ms: u64,
    ) -> Result<Option<Credential>, StoreError> {
        Ok(self.look_up(id, now_ms).await?.into_credential())
    }

    /// Adds an invite. [`StoreError::TooMany`] at [`Bound::Invites`] of its creator.
    async fn add_invite(&self, invite: NewInvite) -> Result<(), StoreError>;

    /// Registers a user with an invite.
    ///
    /// One transaction checks that the invite is unused, unexpired at `now_ms` and valid for this
    /// name, and that the name is free. It then creates user, password and device, and adds the
    /// user to the lobby. Of concurrent registrations with one invite or one name, one succeeds.
    async fn register(
        &self,
        registration: Registration,
        now_ms: u64,
    ) -> Result<Registered, StoreError>;

    /// Adds a device of an existing user. `false`: the user does not exist. [`StoreError::TooMany`]
    /// at [`Bound::Devices`].
    async fn add_device(
        &self,
        user: &Name,
        device: NewDevice,
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Replaces a user's password record. `false`: the user does not exist.
    async fn set_password(
        &self,
        user: &Name,
        record: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// The devices of a user that are not revoked, oldest first.
    async fn devices(&self, user: &Name) -> Result<Vec<Device>, StoreError>;

    /// Revokes a device of this user. `false`: the user has no such device.
    async fn revoke_device(&self, user: &Name, device: &DeviceId) -> Result<bool, StoreError>;

    /// Notes a login of a device at `now_ms`. Written asynchronously, without a guarantee.
    async fn touch_device(&self, device: &DeviceId, now_ms: u64) -> Result<(), StoreError>;

    /// Whether `user` has logged in from `source` (any bytes that name an address prefix) within
    /// [`KNOWN_SOURCE_MS`]. A hit, a miss and an unknown name cost the same reads.
    async fn is_known_source(
        &self,
        user: &Name,
        source: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Notes a login of `user` from `source` at `now_ms`. Written asynchronously, without a
    /// guarantee.
    ///
    /// Keeps at most [`KNOWN_SOURCES`] for a user, as keyed hashes, and ignores unknown names. A
    /// password login replaces the oldest source of device logins, or else the oldest source. A
    /// device login renews a source or adds one, up to [`KNOWN_DEVICE_SOURCES`], and replaces none.
    async fn note_source(
        &self,
        user: &Name,
        source: &[u8],
        method: LoginMethod,
        now_ms: u64,
    ) -> Result<(), StoreError>;

    /// Removes all login sources of `user`, and returns their number.
    async fn forget_sources(&self, user: &Name) -> Result<u64, StoreError>;

    /// One user.
    async fn person(&self, user: &Name) -> Result<Option<Person>, StoreError>;

    /// Users with names greater than `after`, in ascending order, at most `limit`.
    async fn people(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Person>, StoreError>;

    // ---- classic keys

    /// Adds a classic key.
    ///
    /// One transaction checks that the user is a member of the conversation and that the name is
    /// free, or belongs to a revoked key of the same user. A form of the origin bridge may have one
    /// key only, because the bridge's messages do not name their key. [`StoreError::TooMany`] at
    /// [`Bound::ClassicKeys`].
    async fn add_classic_key(&self, key: ClassicKey) -> Result<AddedClassicKey, StoreError>;

    /// The usable key of this name. `None`: it is unknown or revoked.
    ///
    /// A hit and every kind of miss cost the same reads. A row whose MAC does not verify is a miss.
    async fn classic_key(&self, name: &Name) -> Result<Option<ClassicKey>, StoreError>;

    /// The usable key of this form of the origin bridge.
    async fn classic_key_of(&self, form: ClassicForm) -> Result<Option<ClassicKey>, StoreError>;

    /// Usable keys of one user or of all, with names greater than `after`, in ascending order, at
    /// most `limit`.
    async fn classic_keys(
        &self,
        of: Option<&Name>,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<ListedClassicKey>, StoreError>;

    /// Revokes a key. `false`: there is no usable key of this name.
    async fn revoke_classic_key(&self, name: &Name) -> Result<bool, StoreError>;

    /// Flushes and closes the record. Later calls fail, and the files can be moved or copied.
    async fn close(&self) -> Result<(), StoreError>;
}

/// A failure of the store, or a limit that the request would exceed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The disk is full. Appends fail until there is space again; reads still work.
    #[error("the disk that holds the record is full")]
    Full,
    /// Any other error of the database.
    #[error("the record's database failed: {0}")]
    Database(String),
    /// A row does not match its MAC, or its values are invalid.
    #[error("the record is damaged: {0}")]
    Damaged(String),
    /// An earlier append of the same [`Order`] failed.
    #[error("an earlier append of this connection failed")]
    OutOfOrder,
    /// The store was closed.
    #[error("the record is closed")]
    Closed,
    /// The request would exceed a bound that the store was opened with; nothing was changed.
    #[error("the limit of {1} is reached ({0:?})")]
    TooMany(Bound, usize),
}

/// What is limited for each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Rooms that the user created.
    Rooms,
    /// Conversations that the user is a member of.
    Memberships,
    /// Invites that the user created and that can still be used.
    Invites,
    /// Devices that are not revoked.
    Devices,
    /// Classic keys that are not revoked.
    ClassicKeys,
}

/// Limits for each user.
///
/// Each limit is checked in the transaction that would exceed it, so that concurrent requests
/// cannot exceed it. Lowering a limit removes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rooms created by one user. Default 256; each takes a name and adds a row to every user's
    /// list of joinable rooms.
    pub rooms: usize,
    /// Conversations that one user joins or opens. Default 4096; a list of joinable rooms may skip
    /// this number of rows. Direct conversations that others open with the user count, but are not
    /// refused.
    pub memberships: usize,
    /// Unused invites created by one user. Default 1024; each is a credential that registers a
    /// user.
    pub invites: usize,
    /// Devices of one user that are not revoked. Default 32.
    pub devices: usize,
    /// Classic keys of one user that are not revoked. Default 256.
    pub classic_keys: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rooms: 256, memberships: 4096, invites: 1024, devices: 32, classic_keys: 256 }
    }
}

/// Time of one slice of a search. Between slices, other reads and checkpoints run.
pub const SLICE: Duration = Duration::from_millis(20);

/// Where a search starts or resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchFrom {
    /// Only entries with numbers below this.
    pub before: u64,
    /// The position in the index, once the search has reached it.
    pub position: Option<IndexPosition>,
}

/// A search's position in the index, with the words that earlier slices have read. Opaque to
/// callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPosition {
    /// Only entries with a `seq` below this.
    pub below: i64,
    /// The indexed words that match a last word of four or more letters.
    pub words: PrefixWords,
}

/// The indexed words that begin with the last word of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrefixWords {
    /// The words read so far, ascending.
    Partial(Vec<String>),
    /// All words, ascending.
    All(Vec<String>),
    /// More words than the search looks up individually.
    TooMany,
}

impl SearchFrom {
    /// Starts at the newest entry with a number below `before`.
    #[must_use]
    pub fn below(before: u64) -> Self {
        Self { before, position: None }
    }
}

/// The result of one slice of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Matching entries, newest first.
    pub entries: Vec<Entry>,
    /// Where the search resumes; `None`: it is complete.
    pub next: Option<SearchFrom>,
}

/// The result of joining a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The room.
    pub conversation: Conversation,
    /// The user was not a member before.
    pub new: bool,
}

/// Resolves to the outcome of an append once its transaction has ended.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<Appended>, StoreError>> + Send>>;

/// Appends whose order matters.
///
/// After one append of an order fails, later ones fail too ([`StoreError::OutOfOrder`]), so that
/// resending all of them keeps the order. Clones share one order; a new order starts without a
/// failure.
#[derive(Debug, Clone, Default)]
pub struct Order(Arc<AtomicBool>);

impl Order {
    /// Whether an append of this order has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Notes that an append of this order failed. For stores.
    pub fn fail(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// An entry to be recorded. The store assigns number, time, salt and link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// The conversation.
    pub conversation: ConversationId,
    /// The author; [`Sender::Server`] needs no membership.
    pub sender: Sender,
    /// Unique for a user over all conversations.
    pub message_id: MessageId,
    /// Text, system, file and others.
    pub kind: Kind,
    /// The body, as received.
    pub body: Bytes,
}

/// The answer to one [`NewEntry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// The entry is on disk. For a repeated `message_id`, the receipt of the first recording.
    Recorded(Receipt),
    /// The conversation does not exist, or the sender is not a member. Or the sender's classic key
    /// is revoked, or bound to another conversation.
    NotAMember,
}

/// Position, time and link of a recorded entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// `None` once the entry is erased.
    pub salt: Option<Salt>,
    /// The entry's link, `link_n`.
    pub link: Link,
}

/// A recorded entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The entry's number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// The id that the client assigned.
    pub message_id: MessageId,
    /// Text, system, file and others.
    pub kind: Kind,
    /// [`Sender`] in its protocol encoding, kept as bytes because the link covers these bytes.
    pub sender: Bytes,
    /// The body, or its commitment.
    pub content: Content,
    /// `link_n`, as stored when the entry was recorded.
    pub link: Link,
}

/// The body of an entry, or its commitment once erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The body as recorded, and its salt.
    Body(Salt, Bytes),
    /// The commitment of an erased entry.
    Erased(Commit),
}

/// A reference to the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRef {
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
    /// Size of the content, bytes.
    pub size: u64,
}

/// Total of a user's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes charged: for each file its size, but at least [`LEAST_CHARGE`].
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

/// The newest entry of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The entry's position in the whole record; each entry increments it by one.
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
    /// The file that the entry referred to. Its content can be deleted unless another entry refers
    /// to it.
    pub file: Option<FileRef>,
}

/// Limits of one read.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Maximum number of entries.
    pub entries: usize,
    /// Approximate maximum of body bytes.
    pub bytes: usize,
}

/// A range of a conversation's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The link of entry `after`, against which the first entry's link is verified.
    pub link_after: Link,
    /// The newest number of the conversation.
    pub head: u64,
    /// Entries in ascending order, without gaps, from `after + 1`.
    pub entries: Vec<Entry>,
}

/// New entries of one conversation, published after the commit and before the acks.
#[derive(Debug, Clone)]
pub struct Published {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its newest number.
    pub head: u64,
    /// The new entries up to `head`, without gaps, if this process recorded them.
    pub entries: Vec<Entry>,
}

/// Number of newest entries in which a list of conversations counts the user's own, to bound its
/// cost.
pub const OWN_COUNTED: u64 = 100;

/// A conversation as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The conversation's id.
    pub id: ConversationId,
    /// Room or direct conversation.
    pub form: Form,
    /// A room's topic.
    pub topic: String,
    /// The server key that `link_0` covers.
    pub server_key: ServerKey,
    /// The newest number, 0 while empty.
    pub head: u64,
    /// The head's link.
    pub head_link: Link,
    /// The user's read marker.
    pub read: u64,
    /// In lists: number of the user's own entries after `read` among the newest [`OWN_COUNTED`].
    /// Elsewhere 0.
    pub own: u64,
    /// Number of members.
    pub members: u32,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
    /// Whether the user is a member; false only in a list of joinable rooms.
    pub joined: bool,
}

/// The form of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A room, with its name.
    Room(Name),
    /// A direct conversation, with the other user (the user itself for notes).
    Direct(Name),
}

/// The data that a login needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What the credential belongs to.
    pub holder: Holder,
}

/// A credential, or a stand-in of the same size.
///
/// Data from another thread takes longer to read and to free than `None` would. Without the
/// stand-in, this difference would reveal a miss.
#[derive(Debug)]
pub struct LookedUp {
    credential: Credential,
    usable: bool,
}

impl LookedUp {
    /// A credential, or a stand-in that is not `usable`. For stores.
    #[must_use]
    pub fn new(credential: Credential, usable: bool) -> Self {
        Self { credential, usable }
    }

    /// The `N` bytes of a usable credential's OPAQUE record. A stand-in's record is read as well,
    /// for equal timing.
    #[must_use]
    pub fn record<const N: usize>(&self) -> Option<[u8; N]> {
        let record = <[u8; N]>::try_from(&*self.credential.record);
        std::hint::black_box(record).ok().filter(|_| self.usable)
    }

    /// The credential, if it is usable.
    #[must_use]
    pub fn into_credential(self) -> Option<Credential> {
        self.usable.then_some(self.credential)
    }
}

/// The owner of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user, by password.
    User(Person),
    /// A device of a user.
    Device(Person, DeviceId),
    /// An invite.
    Invite(InviteTerms),
}

/// What an invite permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteTerms {
    /// Role of the user that it registers.
    pub role: Role,
    /// The only name it can register; `None`: any.
    pub user: Option<Name>,
    /// Expiry, ms since 1970 UTC.
    pub expires_ms: u64,
}

/// An invite to be added.
#[derive(Debug, Clone)]
pub struct NewInvite {
    /// Random, drawn by the server.
    pub id: InviteId,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What the invite permits.
    pub terms: InviteTerms,
    /// The user who created it; `None`: the server, on its first start.
    pub made_by: Option<Name>,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
}

/// The registration of a user with an invite.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The invite.
    pub invite: InviteId,
    /// The new user's name.
    pub user: Name,
    /// The password's OPAQUE record, 192 bytes, if the user has one.
    pub password: Option<Vec<u8>>,
    /// The first device.
    pub device: Option<NewDevice>,
}

/// A device to be enrolled.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Random, drawn by the server.
    pub id: DeviceId,
    /// The user's name for it.
    pub label: String,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
}

/// The result of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The user was created.
    Done(Person),
    /// The invite is used, expired, revoked or unknown.
    InviteGone,
    /// The invite is for another name.
    NotThisName,
    /// A user of that name exists.
    NameTaken,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The name.
    pub user: Name,
    /// The user's permissions.
    pub role: Role,
    /// Whether the user can log in with a password.
    pub password: bool,
    /// Time of registration, ms since 1970 UTC.
    pub created_ms: u64,
}

/// A user's permissions beyond sending messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// No further permissions.
    Member,
    /// Invites members, manages rooms and users.
    Admin,
    /// All permissions.
    Owner,
}

/// How a user logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginMethod {
    /// With the password.
    Password,
    /// With the secret of a device, which may be stolen.
    Device,
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The id of its credential.
    pub id: DeviceId,
    /// The user's name for it.
    pub label: String,
    /// Time of enrolment, ms since 1970 UTC.
    pub created_ms: u64,
    /// Approximate time of its last login, ms since 1970 UTC.
    pub seen_ms: u64,
}

/// A key of classic connections or of the origin bridge.
///
/// The key itself is not stored. It is derived from the server's setup, the name and the salt, or
/// it is sealed under a key that is derived from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicKey {
    /// The key's name, in the protocol and in the record.
    pub name: Name,
    /// The user who owns it.
    pub user: Name,
    /// The only conversation that it may append to.
    pub conversation: ConversationId,
    /// The message format that it is for.
    pub form: ClassicForm,
    /// Input of the key's derivation, drawn by the server. Reveals nothing without the setup.
    pub salt: [u8; 32],
    /// An imported key, sealed with [`twinlock_core::keys::ClassicRoot::seal_imported`]; `None`:
    /// the key is derived.
    pub sealed: Option<[u8; 32]>,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
}

/// The result of adding a classic key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedClassicKey {
    /// The key can be used.
    Added,
    /// A key of this name exists.
    NameTaken,
    /// The origin bridge has a key of this form already.
    FormTaken,
    /// The user does not exist or is not a member of the conversation.
    NotAMember,
}

/// A classic key in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedClassicKey {
    /// The key.
    pub key: ClassicKey,
    /// The room's name, if the conversation is a room.
    pub room: Option<Name>,
}

/// Key of the MACs over credential rows, derived from the OPAQUE setup by
/// [`twinlock_core::opaque::ServerSetup::row_key`].
///
/// A stolen database alone does not permit guessing. Replacing one user's record with another's is
/// detected.
pub use twinlock_core::keys::RowKey;
