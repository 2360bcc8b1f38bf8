//! Conversations, people, devices and classic keys, as the server describes them.
//!
//! Names that the server sends are not checked; show them only after removing control characters.

use twinlock_core::id::{ConversationId, DeviceId, InviteId, Link, ServerKey};
use twinlock_core::proto;
pub use twinlock_core::proto::listed_invite::State as InviteState;
pub use twinlock_core::proto::{ClassicForm, Role};
use twinlock_core::text::Untrusted;

/// The kind of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversationKind {
    /// A room.
    Room,
    /// A direct conversation of two people.
    Direct,
}

/// What the server says of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConversationInfo {
    /// Its number on the server.
    pub id: ConversationId,
    /// Room or direct conversation.
    pub kind: ConversationKind,
    /// The room's name; in a direct conversation, the other user.
    pub name: String,
    /// The room's topic; empty if there is none.
    pub topic: Untrusted,
    /// The key in the conversation's first link; `None` if the server sent no valid one.
    pub server_key: Option<ServerKey>,
    /// Number of the newest entry; 0 if there is none.
    pub head: u64,
    /// The link of the newest entry; `None` if the server sent no valid one.
    pub head_link: Option<Link>,
    /// This user's read marker: the number of the last read entry.
    pub read: u64,
    /// In lists: entries of this user after [`Self::read`], among the newest 100.
    pub own: u64,
    /// Number of members.
    pub members: u32,
    /// Whether this user is a member.
    pub joined: bool,
}

impl ConversationInfo {
    /// A conversation of which nothing is known but its id, kind and name.
    #[must_use]
    pub fn new(id: ConversationId, kind: ConversationKind, name: String) -> Self {
        let (topic, server_key, head_link) = (Untrusted::new(String::new()), None, None);
        let (head, read, own, members, joined) = (0, 0, 0, 0, false);
        Self { id, kind, name, topic, server_key, head, head_link, read, own, members, joined }
    }

    /// Its spelling as a target: the room's name, or `@` and the user's name.
    #[must_use]
    pub fn target(&self) -> String {
        match self.kind {
            ConversationKind::Room => self.name.clone(),
            ConversationKind::Direct => format!("@{}", self.name),
        }
    }

    /// Entries after the read marker, except the user's own among the newest 100.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.head.saturating_sub(self.read).saturating_sub(self.own)
    }
}

impl From<proto::Conversation> for ConversationInfo {
    fn from(found: proto::Conversation) -> Self {
        let kind = match found.kind() {
            proto::conversation::Kind::Direct => ConversationKind::Direct,
            _ => ConversationKind::Room,
        };
        Self {
            id: found.id,
            kind,
            name: found.name,
            topic: Untrusted::new(found.topic),
            server_key: ServerKey::from_slice(&found.server_key),
            head: found.head,
            head_link: Link::from_slice(&found.head_link),
            read: found.read,
            own: found.own,
            members: found.members,
            joined: found.joined,
        }
    }
}

/// A user of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PersonInfo {
    /// The user's name.
    pub user: String,
    /// The user's role.
    pub role: Role,
    /// Whether a device of the user is connected.
    pub online: bool,
    /// Time of registration, in ms since 1970 UTC.
    pub created_ms: u64,
    /// Whether the user is suspended: no credential is accepted.
    pub suspended: bool,
}

impl From<proto::Person> for PersonInfo {
    fn from(person: proto::Person) -> Self {
        let role = person.role();
        let proto::Person { user, online, created_ms, suspended, .. } = person;
        Self { user, role, online, created_ms, suspended }
    }
}

/// An invite, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InviteInfo {
    /// Its id.
    pub id: InviteId,
    /// Role of the user that it registers.
    pub role: Role,
    /// The only name that it is for; empty: any.
    pub user: String,
    /// The user who made it; empty: the server, on its first start.
    pub made_by: String,
    /// Time of creation, in ms since 1970 UTC.
    pub created_ms: u64,
    /// Time of expiry, in ms since 1970 UTC.
    pub expires_ms: u64,
    /// Whether it was used or revoked.
    pub state: InviteState,
    /// The user that it has registered; empty if none.
    pub used_by: String,
}

impl InviteInfo {
    /// `None` if the id is not valid.
    pub(crate) fn of(invite: proto::ListedInvite) -> Option<Self> {
        let id = InviteId::from_slice(&invite.id)?;
        let (role, state) = (invite.role(), invite.state());
        let proto::ListedInvite { user, made_by, created_ms, expires_ms, used_by, .. } = invite;
        Some(Self { id, role, user, made_by, created_ms, expires_ms, state, used_by })
    }
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The device's id.
    pub id: DeviceId,
    /// Its label, as it was enrolled.
    pub label: Untrusted,
    /// Time of enrolment, in ms since 1970 UTC.
    pub created_ms: u64,
    /// Time of the last login, in ms since 1970 UTC, accurate to about a minute.
    pub seen_ms: u64,
    /// Whether it is this device.
    pub current: bool,
    /// Whether it is connected.
    pub online: bool,
}

impl DeviceInfo {
    /// `None` if the id is not valid.
    pub(crate) fn of(device: proto::Device) -> Option<Self> {
        let id = DeviceId::from_slice(&device.id)?;
        let proto::Device { label, created_ms, seen_ms, current, online, .. } = device;
        Some(Self { id, label: Untrusted::new(label), created_ms, seen_ms, current, online })
    }
}

/// A classic key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassicKeyInfo {
    /// The key's name.
    pub name: String,
    /// The user whose name its messages carry.
    pub user: String,
    /// The room that it writes to; empty: a direct conversation.
    pub room: String,
    /// The format of its messages.
    pub form: ClassicForm,
    /// Time of creation, in ms since 1970 UTC.
    pub created_ms: u64,
}

impl From<proto::ClassicKey> for ClassicKeyInfo {
    fn from(key: proto::ClassicKey) -> Self {
        let form = key.form();
        let proto::ClassicKey { name, user, room, created_ms, .. } = key;
        Self { name, user, room, form, created_ms }
    }
}

/// What the server says of itself and of this session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerDescription {
    /// The server's software and version.
    pub software: Untrusted,
    /// The server's clock at the login, in ms since 1970 UTC.
    pub time_ms: u64,
    /// This user's role.
    pub role: Role,
    /// Whether this user has a password.
    pub password: bool,
    /// HOST:PORT for invite links, if the server's operator has set one; otherwise empty.
    pub public_address: String,
}

impl From<&proto::ServerInfo> for ServerDescription {
    fn from(info: &proto::ServerInfo) -> Self {
        Self {
            software: Untrusted::new(info.software.clone()),
            time_ms: info.time_ms,
            role: info.role(),
            password: info.password,
            public_address: info.public_address.clone(),
        }
    }
}
