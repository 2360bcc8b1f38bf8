//! The record: one contract, and the SQLite database behind it.
//!
//! [`Store`] is everything the server asks of its record, on one screen. It assumes neither that
//! this process is the only writer nor that anything is cached: several servers may share one
//! record later. Whatever implements it passes [`conformance`].
//!
//! The store knows nothing of connections, sessions or the wire; it never sees a password, a
//! device secret or the OPAQUE setup, only the row key derived from it.

pub mod conformance;
mod sqlite;

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

pub use sqlite::{Expected, OpenError, Options, RecordLock, SqliteStore};

/// The room everybody is in. Made with the record, never left, never removed.
pub const LOBBY: ConversationId = 1;

/// Sources of logins kept of a user.
pub const KNOWN_SOURCES: u32 = 16;

/// How many of them only device logins came from.
pub const KNOWN_DEVICE_SOURCES: u32 = 4;

/// How long a source of logins is known, ms: 30 days.
pub const KNOWN_SOURCE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// What a file is charged at least, bytes: a block of the disk.
pub const LEAST_CHARGE: u64 = 4096;

/// Where a store takes its time from: milliseconds since 1970 UTC.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A durable record of conversations, people and their credentials.
///
/// Every method that writes returns after the data is on disk (fsync). Every method may be
/// cancelled; a write that was begun then still happens.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    // ---- the record

    /// Hands entries to the recorder, which records them in this order and after everything that
    /// was handed over before, and answers each in the same order. They share a transaction with
    /// whatever else is waiting (group commit), and are recorded all or none. Returns once the
    /// recorder has them, which takes a moment only while it is behind; a caller must not leave
    /// this future unpolled meanwhile, since others wait behind it. The answer comes whenever it
    /// comes, and may be dropped.
    async fn hand_over(&self, batch: Vec<NewEntry>, order: &Order) -> Result<Answer, StoreError>;

    /// [`Store::hand_over`] and its answer.
    async fn append(&self, batch: Vec<NewEntry>) -> Result<Vec<Appended>, StoreError> {
        self.hand_over(batch, &Order::default()).await?.await
    }

    /// Entries with numbers greater than `after`, ascending, at most `limit.entries` of them and
    /// about `limit.bytes` of bodies (at least one entry if there is one). An entry that is missing
    /// ends what is read before it, and is [`StoreError::Damaged`] where it is the first. Past the head there is
    /// nothing, and `link_after` is the head's; a conversation that does not exist is empty.
    async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: Limit,
    ) -> Result<Page, StoreError>;

    /// Looks for entries that contain all words of `text`, newest first: the last word as a
    /// prefix where it has three letters or more. Works for about `time` and says where to go on;
    /// until then it keeps one state of the record, which holds up checkpoints. Finds at most
    /// `limit.entries`, and about `limit.bytes` of bodies (at least one entry if there is one).
    async fn search_some(
        &self,
        conversation: ConversationId,
        text: &str,
        from: SearchFrom,
        limit: Limit,
        time: Duration,
    ) -> Result<Found, StoreError>;

    /// About how many bytes a search may have to read because they are not in the index of words yet:
    /// those of bodies, each entry counting 256 more. 0 once the index has caught up.
    fn unindexed(&self) -> u64;

    /// [`Store::search_some`] to the end, however long that takes: entries below `before`.
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

    /// The newest entries of the whole record, of each conversation only the newest, newest first.
    /// `entries`: how many entries are looked at.
    async fn newest(&self, entries: usize) -> Result<Vec<Newest>, StoreError>;

    /// Tells of every commit from now on, in order per conversation. A receiver that lags learns
    /// so and reads the heads itself.
    fn watch(&self) -> broadcast::Receiver<Arc<[Published]>>;

    /// Removes salt and body of an entry and leaves its commit; the links still verify. `None`:
    /// there is no such entry, or it is erased already.
    async fn erase(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<Erased>, StoreError>;

    /// Where this user's message of this id was recorded, if it was.
    async fn receipt(
        &self,
        user: &Name,
        message_id: &MessageId,
    ) -> Result<Option<Receipt>, StoreError>;

    // ---- files

    /// The file that entry `n` is, where `user` is in the conversation. Entries of kind
    /// [`Kind::FILE`] are files if their body is a `FileBody` with a hash; what it says is kept
    /// beside the entry from the same transaction on, until the entry is erased.
    async fn file(
        &self,
        user: &Name,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<FileRef>, StoreError>;

    /// All files that this user has sent and that are not erased. Content that was sent twice
    /// counts twice.
    async fn stored(&self, user: &Name) -> Result<Stored, StoreError>;

    /// The hashes of content that entries refer to, each once, ascending from the one after
    /// `after`, at most `limit`.
    async fn file_hashes(
        &self,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<[u8; 32]>, StoreError>;

    /// Whether an entry refers to this content.
    async fn is_referenced(&self, hash: &[u8; 32]) -> Result<bool, StoreError>;

    // ---- conversations

    /// The conversations `user` is in with ids greater than `after`, or with `joinable` the
    /// public rooms it is not in; at most `limit`.
    async fn conversations(
        &self,
        user: &Name,
        joinable: bool,
        after: ConversationId,
        limit: usize,
    ) -> Result<Vec<Conversation>, StoreError>;

    /// The room of this name, if `user` is in it.
    async fn room(&self, user: &Name, room: &Name) -> Result<Option<Conversation>, StoreError>;

    /// One conversation as `user` sees it: one it is in.
    async fn conversation(
        &self,
        user: &Name,
        id: ConversationId,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Makes a room with `user` in it. `None`: the name is taken. [`StoreError::TooMany`] of
    /// [`Bound::Rooms`] and [`Bound::Memberships`].
    async fn create_room(
        &self,
        user: &Name,
        name: &Name,
        topic: &str,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Joins a public room by name; again is no error. `None`: no such room.
    /// [`StoreError::TooMany`] of [`Bound::Memberships`].
    async fn join_room(&self, user: &Name, name: &Name) -> Result<Option<Joined>, StoreError>;

    /// Leaves. `false`: not in it, or it cannot be left (lobby, direct).
    async fn leave_room(&self, user: &Name, id: ConversationId) -> Result<bool, StoreError>;

    /// Sets a room's topic. `None`: not a room of this user's.
    async fn set_topic(
        &self,
        user: &Name,
        id: ConversationId,
        topic: &str,
    ) -> Result<Option<Conversation>, StoreError>;

    /// The direct conversation of two users, made if it is new. `None`: no such other user.
    /// [`StoreError::TooMany`] of [`Bound::Memberships`] of `user`, if it would be new.
    async fn open_direct(
        &self,
        user: &Name,
        other: &Name,
    ) -> Result<Option<Conversation>, StoreError>;

    /// Members with names greater than `after`, in order, at most `limit`.
    async fn members(
        &self,
        id: ConversationId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<Name>, StoreError>;

    /// Moves the read marker of `user` forward to `n`; never back, never past the head.
    async fn mark_read(&self, user: &Name, id: ConversationId, n: u64) -> Result<(), StoreError>;

    // ---- people and credentials

    /// Looks for the usable credential behind `id`: none where it is unknown, revoked, used or
    /// expired at `now_ms`. A hit and every kind of miss cost the same reads, and give as much to
    /// hand on. A row whose MAC does not verify is no credential.
    async fn look_up(&self, id: &CredentialId, now_ms: u64) -> Result<LookedUp, StoreError>;

    /// As [`Store::look_up`], for whoever need not hide what comes of it.
    async fn credential(
        &self,
        id: &CredentialId,
        now_ms: u64,
    ) -> Result<Option<Credential>, StoreError> {
        Ok(self.look_up(id, now_ms).await?.into_credential())
    }

    /// Keeps a new invite. [`StoreError::TooMany`] of [`Bound::Invites`] of its maker.
    async fn add_invite(&self, invite: NewInvite) -> Result<(), StoreError>;

    /// Uses an invite: in one transaction checks that it is unused, unexpired at `now_ms` and
    /// allows this name, that no user has the name, and makes user, password and device and puts
    /// the user into the lobby. One winner.
    async fn register(
        &self,
        registration: Registration,
        now_ms: u64,
    ) -> Result<Registered, StoreError>;

    /// Adds a device of an existing user. `false`: no such user. [`StoreError::TooMany`] of
    /// [`Bound::Devices`].
    async fn add_device(
        &self,
        user: &Name,
        device: NewDevice,
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Replaces a user's password record. `false`: no such user.
    async fn set_password(
        &self,
        user: &Name,
        record: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// The devices of a user that are not revoked, oldest first.
    async fn devices(&self, user: &Name) -> Result<Vec<Device>, StoreError>;

    /// Revokes a device of this user's. `false`: it has no such device.
    async fn revoke_device(&self, user: &Name, device: &DeviceId) -> Result<bool, StoreError>;

    /// Notes that a device logged in at `now_ms`. May be written late; it is no promise.
    async fn touch_device(&self, device: &DeviceId, now_ms: u64) -> Result<(), StoreError>;

    /// Whether `user` has logged in from `source` (any bytes that name an address prefix) within
    /// [`KNOWN_SOURCE_MS`]. A hit, a miss and an unknown name cost the same reads.
    async fn is_known_source(
        &self,
        user: &Name,
        source: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Notes a login of `user` from `source` at `now_ms`. Keeps [`KNOWN_SOURCES`] of a user, as keyed
    /// hashes; unknown names are ignored. A login by password replaces the oldest source of device
    /// logins, or else the oldest. A login by device renews a source or adds one, of which there are
    /// [`KNOWN_DEVICE_SOURCES`] at most, and replaces none. Written asynchronously, without a
    /// guarantee.
    async fn note_source(
        &self,
        user: &Name,
        source: &[u8],
        method: LoginMethod,
        now_ms: u64,
    ) -> Result<(), StoreError>;

    /// Forgets where `user` has logged in from; how many sources that were.
    async fn forget_sources(&self, user: &Name) -> Result<u64, StoreError>;

    /// One user.
    async fn person(&self, user: &Name) -> Result<Option<Person>, StoreError>;

    /// Users with names greater than `after`, in order, at most `limit`.
    async fn people(&self, after: Option<&Name>, limit: usize) -> Result<Vec<Person>, StoreError>;

    // ---- classic keys

    /// Keeps a new key. Checks in one transaction that its name is free (or was this user's and is
    /// revoked), that the user is in the conversation, and of the origin bridge's forms, of whose
    /// messages none names its key, that there is no other of this form. [`StoreError::TooMany`] of
    /// [`Bound::ClassicKeys`].
    async fn add_classic_key(&self, key: ClassicKey) -> Result<AddedClassicKey, StoreError>;

    /// The usable key of this name, or `None` where it is unknown or revoked. A hit and every kind
    /// of miss cost the same reads. A row whose MAC does not verify is no key.
    async fn classic_key(&self, name: &Name) -> Result<Option<ClassicKey>, StoreError>;

    /// The usable key of this form of the origin bridge.
    async fn classic_key_of(&self, form: ClassicForm) -> Result<Option<ClassicKey>, StoreError>;

    /// Usable keys with names greater than `after`, in order, at most `limit`: of one user, or of
    /// all.
    async fn classic_keys(
        &self,
        of: Option<&Name>,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<ListedClassicKey>, StoreError>;

    /// Revokes a key. `false`: there is no usable one of this name.
    async fn revoke_classic_key(&self, name: &Name) -> Result<bool, StoreError>;

    /// Flushes and closes: later calls fail, the files can be moved or copied.
    async fn close(&self) -> Result<(), StoreError>;
}

/// What went wrong beneath the store; never the caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The disk is full. Appends fail until there is room again; reading goes on.
    #[error("the disk that holds the record is full")]
    Full,
    /// Anything else the database says.
    #[error("the record's database failed: {0}")]
    Database(String),
    /// A row is not what its MAC or its form says.
    #[error("the record is damaged: {0}")]
    Damaged(String),
    /// Entries that were to be recorded before these were not.
    #[error("what was to be recorded before could not be")]
    OutOfOrder,
    /// The store was closed.
    #[error("the record is closed")]
    Closed,
    /// A bound that the store was opened with; nothing was done.
    #[error("there are {1} already, which is the bound ({0:?})")]
    TooMany(Bound, usize),
}

/// What is counted for each user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Rooms that it made.
    Rooms,
    /// Conversations that it is in.
    Memberships,
    /// Invites that it made and that can still be used.
    Invites,
    /// Devices that are not revoked.
    Devices,
    /// Classic keys that are not revoked.
    ClassicKeys,
}

/// How many of each. Checked in the transaction that would exceed them, so that requests which come
/// at the same time cannot. What exists already stays, whatever the bounds are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rooms made by one user. Default 256; each is a name taken, and a row in everybody's list of
    /// rooms to join.
    pub rooms: usize,
    /// Conversations that one user joins or opens. Those that others open with it count and are not
    /// refused. Default 4096; a list of rooms to join passes over as many rows.
    pub memberships: usize,
    /// Unused invites made by one user. Default 1024; each is a credential that registers a user.
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

/// Time of a slice of a search, after which others get their turn.
pub const SLICE: Duration = Duration::from_millis(20);

/// Where a search begins or resumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchFrom {
    /// Entries with numbers below this.
    pub before: u64,
    /// Where the index resumes, once the search has reached it.
    pub position: Option<IndexPosition>,
}

/// A search's position in the index, with what earlier slices have read. Only the store reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPosition {
    /// Entries with a number in the record below this.
    below: i64,
    /// The words that a last word of four letters or more stands for.
    words: PrefixWords,
}

/// The words of the index that begin with the last word of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PrefixWords {
    /// Read so far, ascending.
    Partial(Vec<String>),
    /// All of them, ascending.
    All(Vec<String>),
    /// More than are searched for by name.
    TooMany,
}

impl SearchFrom {
    /// Entries with numbers below `before`.
    #[must_use]
    pub fn below(before: u64) -> Self {
        Self { before, position: None }
    }
}

/// What a slice of a search has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Newest first.
    pub entries: Vec<Entry>,
    /// Where to go on; `None`: everything was looked at.
    pub next: Option<SearchFrom>,
}

/// A room that a user is in now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The room.
    pub conversation: Conversation,
    /// The user was not in it before.
    pub new: bool,
}

/// What becomes of entries that were handed over.
pub type Answer = Pin<Box<dyn Future<Output = Result<Vec<Appended>, StoreError>> + Send>>;

/// Entries of several calls whose order matters: once one call has failed, those that were handed
/// over after it fail as well ([`StoreError::OutOfOrder`]), so that sending all of them again keeps
/// the order. Clones are one order; a new one begins with a clean slate.
#[derive(Debug, Clone, Default)]
pub struct Order(Arc<AtomicBool>);

impl Order {
    /// A call of this order has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn fail(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// An entry to be recorded. Number, time, salt and link are the store's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    /// Where to.
    pub conversation: ConversationId,
    /// Who wrote it; [`Sender::Server`] needs no membership.
    pub sender: Sender,
    /// Unique per user over all conversations.
    pub message_id: MessageId,
    /// Text, system, file and so on.
    pub kind: Kind,
    /// The body, as it came.
    pub body: Bytes,
}

/// The answer to one [`NewEntry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// On disk; or it was before, with the same `message_id`: the first place's receipt.
    Recorded(Receipt),
    /// There is no such conversation, or the sender is not in it; or the classic key that it came
    /// under is not for it, or revoked.
    NotAMember,
}

/// Where an entry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The conversation.
    pub conversation: ConversationId,
    /// The number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// `None` once the entry is erased.
    pub salt: Option<Salt>,
    /// `link_n`.
    pub link: Link,
}

/// An entry as it stands in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// The client's id of it.
    pub message_id: MessageId,
    /// Text, system, file and so on.
    pub kind: Kind,
    /// [`Sender`] in its wire form; kept as bytes, since it is what the link covers.
    pub sender: Bytes,
    /// The body, or what is left of it.
    pub content: Content,
    /// `link_n`, as it was stored at the recording.
    pub link: Link,
}

/// The body of an entry, or its commit once erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// As recorded.
    Body(Salt, Bytes),
    /// Erased.
    Erased(Commit),
}

/// The content of a file, by which it is found, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRef {
    /// BLAKE3 of all bytes.
    pub hash: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// What all files of a user come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes that are charged: of each file its size, and [`LEAST_CHARGE`] at least.
    pub bytes: u64,
    /// How many there are.
    pub files: u64,
}

/// Where the record of a conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// The entry's place in the order of all entries; it grows by one with each.
    pub seq: u64,
    /// The conversation.
    pub conversation: ConversationId,
    /// The number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// `link_n`.
    pub link: Link,
}

/// An entry that is erased now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// The file it was. Its content can go unless another entry refers to it.
    pub file: Option<FileRef>,
}

/// How much a read may return.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Entries at most.
    pub entries: usize,
    /// Bytes of bodies, about.
    pub bytes: usize,
}

/// Part of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The link of entry `after`, so that the first entry can be checked.
    pub link_after: Link,
    /// The newest number of the conversation.
    pub head: u64,
    /// Ascending, without gaps, from `after + 1`.
    pub entries: Vec<Entry>,
}

/// News of one conversation, told after the commit and before the acks go out.
#[derive(Debug, Clone)]
pub struct Published {
    /// The conversation.
    pub conversation: ConversationId,
    /// Its newest number.
    pub head: u64,
    /// The new entries up to `head`, without gaps, where this process recorded them.
    pub entries: Vec<Entry>,
}

/// How many of the newest entries are searched for one's own, so that a list of conversations has a
/// bounded cost.
pub const OWN_COUNTED: u64 = 100;

/// A conversation as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its number.
    pub id: ConversationId,
    /// Room or direct.
    pub form: Form,
    /// The topic of a room.
    pub topic: String,
    /// The key in `link_0`.
    pub server_key: ServerKey,
    /// The newest number, 0 while empty.
    pub head: u64,
    /// Its link.
    pub head_link: Link,
    /// The user's read marker.
    pub read: u64,
    /// In lists: how many of the newest [`OWN_COUNTED`] entries are after `read` and by the user. Else 0.
    pub own: u64,
    /// How many members it has.
    pub members: u32,
    /// When it was made.
    pub created_ms: u64,
    /// The user is in it (false only in a list of joinable rooms).
    pub joined: bool,
}

/// What kind of conversation it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A room and its name.
    Room(Name),
    /// A direct conversation and the other person (oneself for notes).
    Direct(Name),
}

/// What logging in needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What the credential is for.
    pub holder: Holder,
}

/// A credential, or something of its size that stands in for it: what comes from another thread
/// takes longer to read and to free than nothing does.
#[derive(Debug)]
pub struct LookedUp {
    credential: Credential,
    usable: bool,
}

impl LookedUp {
    pub(crate) fn new(credential: Credential, usable: bool) -> Self {
        Self { credential, usable }
    }

    /// The OPAQUE record of a usable credential of `N` bytes; the stand-in's is read as well.
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

/// Who stands behind a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user by password.
    User(Person),
    /// A user's device.
    Device(Person, DeviceId),
    /// An invite.
    Invite(InviteTerms),
}

/// What an invite allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteTerms {
    /// The role of whoever uses it.
    pub role: Role,
    /// The only name it is for, or any.
    pub user: Option<Name>,
    /// When it ends, in ms since 1970 UTC.
    pub expires_ms: u64,
}

/// An invite to keep.
#[derive(Debug, Clone)]
pub struct NewInvite {
    /// Drawn by the server.
    pub id: InviteId,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What it allows.
    pub terms: InviteTerms,
    /// Who made it; `None`: the server on its first start.
    pub made_by: Option<Name>,
    /// When, in ms since 1970 UTC.
    pub created_ms: u64,
}

/// A new user by way of an invite.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The invite used.
    pub invite: InviteId,
    /// The name.
    pub user: Name,
    /// The password's OPAQUE record, 192 bytes, if the user has one.
    pub password: Option<Vec<u8>>,
    /// The first device.
    pub device: Option<NewDevice>,
}

/// A device to be enrolled.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Drawn by the server.
    pub id: DeviceId,
    /// What the person calls it.
    pub label: String,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
}

/// How a registration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The user exists now.
    Done(Person),
    /// The invite is used, expired, revoked or was never there.
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
    /// What it may do.
    pub role: Role,
    /// There is a password to log in with.
    pub password: bool,
    /// Since when, in ms since 1970 UTC.
    pub created_ms: u64,
}

/// What a user may do beyond talking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Talks.
    Member,
    /// Invites members, manages rooms and people.
    Admin,
    /// Everything.
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
    /// Its credential id.
    pub id: DeviceId,
    /// What the person calls it.
    pub label: String,
    /// Since when, in ms since 1970 UTC.
    pub created_ms: u64,
    /// Its last login, about.
    pub seen_ms: u64,
}

/// A key of classic lines or of the origin bridge. The key itself is not here: it is derived from
/// the server's setup, the name and the salt, or sealed under what is derived from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicKey {
    /// What it is called on the wire and in the record.
    pub name: Name,
    /// Whose it is.
    pub user: Name,
    /// The one conversation it may append to.
    pub conversation: ConversationId,
    /// What it is for.
    pub form: ClassicForm,
    /// What it is derived from, drawn by the server. Says nothing without the setup.
    pub salt: [u8; 32],
    /// A key that the server did not make, sealed
    /// ([`twinlock_core::keys::ClassicRoot::seal_imported`]); `None`: it is derived.
    pub sealed: Option<[u8; 32]>,
    /// Since when, in ms since 1970 UTC.
    pub created_ms: u64,
}

/// How adding a classic key ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedClassicKey {
    /// It can be used.
    Added,
    /// There is one of this name.
    NameTaken,
    /// There is one of this form of the origin bridge.
    FormTaken,
    /// Its user is not in the conversation, or there is none.
    NotAMember,
}

/// A classic key in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedClassicKey {
    /// The key.
    pub key: ClassicKey,
    /// Of a room, its name.
    pub room: Option<Name>,
}

/// Key of the credential rows' MACs, derived from the OPAQUE setup by
/// [`twinlock_core::opaque::ServerSetup::row_key`]; so a stolen or edited database alone can
/// neither be used for guessing nor exchange one user's record for another's unseen.
pub use twinlock_core::keys::RowKey;
