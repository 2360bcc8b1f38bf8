//! The directory of rooms, direct conversations and their members.

use async_trait::async_trait;
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};

use crate::error::StoreError;

/// The room of all users. It is created with the record, and no member can leave it.
pub const LOBBY: ConversationId = 1;

/// Name of the [audit](crate::Administration), unless a room had it before there was one.
pub const AUDIT: &str = "audit";

/// Number of newest entries in which a list of conversations counts the user's own, to bound its
/// cost.
pub const OWN_COUNTED: u64 = 100;

/// Rooms, direct conversations, their members and read markers.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The conversations of `user` with ids greater than `after`, at most `limit`. With `joinable`:
    /// instead, the public rooms that `user` is not a member of.
    async fn conversations(
        &self,
        user: &Name,
        joinable: bool,
        after: ConversationId,
        limit: usize,
    ) -> Result<Vec<StoredConversation>, StoreError>;

    /// The room of this name, if `user` is a member.
    async fn room(
        &self,
        user: &Name,
        room: &Name,
    ) -> Result<Option<StoredConversation>, StoreError>;

    /// One conversation as `user` sees it, if `user` is a member.
    async fn conversation(
        &self,
        user: &Name,
        id: ConversationId,
    ) -> Result<Option<StoredConversation>, StoreError>;

    /// Creates a room with `user` as its only member. `None`: the name is taken, or it is
    /// [`AUDIT`].
    /// [`StoreError::TooMany`] at [`Bound::Rooms`](crate::Bound::Rooms) and
    /// [`Bound::Memberships`](crate::Bound::Memberships).
    async fn create_room(
        &self,
        user: &Name,
        name: &Name,
        topic: &str,
    ) -> Result<Option<StoredConversation>, StoreError>;

    /// Joins a public room by name; joining twice is not an error. `None`: the room does not exist,
    /// or it is not public.
    /// [`StoreError::TooMany`] at [`Bound::Memberships`](crate::Bound::Memberships).
    async fn join_room(&self, user: &Name, name: &Name) -> Result<Option<Joined>, StoreError>;

    /// Leaves a room. `false`: `user` is not a member, or the conversation is the lobby, the audit
    /// or direct.
    async fn leave_room(&self, user: &Name, id: ConversationId) -> Result<bool, StoreError>;

    /// Sets a room's topic. `None`: it is not a room or it is the audit, or `user` is not a member.
    async fn set_topic(
        &self,
        user: &Name,
        id: ConversationId,
        topic: &str,
    ) -> Result<Option<StoredConversation>, StoreError>;

    /// The direct conversation of two users, created if necessary. `None`: `user` does not exist or
    /// is not active, or there is none and `other` does not exist or was removed. [`StoreError::TooMany`] at [`Bound::Memberships`](crate::Bound::Memberships) of
    /// `user`, if it would have to be created.
    async fn open_direct(
        &self,
        user: &Name,
        other: &Name,
    ) -> Result<Option<StoredConversation>, StoreError>;

    /// Members with names greater than `after`, in ascending order, at most `limit`.
    async fn members(
        &self,
        id: ConversationId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<Name>, StoreError>;

    /// Moves the read marker of `user` forward to `n`, never backward and never past the head. It is
    /// visible at once, and on disk some seconds later.
    async fn mark_read(&self, user: &Name, id: ConversationId, n: u64) -> Result<(), StoreError>;
}

/// A conversation as one of its members sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredConversation {
    /// The conversation's id.
    pub id: ConversationId,
    /// Room or direct conversation.
    pub form: ConversationForm,
    /// Who may read a room and write to it; public for a direct conversation.
    pub kind: RoomKind,
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

/// Who may read a room and write to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoomKind {
    /// Everybody joins it, and its members write.
    #[default]
    Public,
    /// The audit: its members are the owners, and only the server writes.
    Audit,
}

impl RoomKind {
    /// The number of this kind in rows.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Public => 0,
            Self::Audit => 3,
        }
    }

    /// The kind of this number.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if there is none.
    pub fn from_number(number: u8) -> Result<Self, StoreError> {
        match number {
            0 => Ok(Self::Public),
            3 => Ok(Self::Audit),
            _ => Err(StoreError::Damaged("a room is of no known kind".into())),
        }
    }
}

/// The form of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversationForm {
    /// A room, with its name.
    Room(Name),
    /// A direct conversation, with the other user (the user itself for notes).
    Direct(Name),
}

/// The result of joining a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The room.
    pub conversation: StoredConversation,
    /// The user was not a member before.
    pub new: bool,
}
