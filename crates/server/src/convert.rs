//! Conversions between the store's types and the protocol's.

use bytes::{Bytes, BytesMut};
use twinlock_core::id::{Link, Name, Salt};
use twinlock_core::proto;
use twinlock_store::{
    ConversationForm, InviteState, ListedInvite, PersonState, Receipt, RoomKind, StoredContent,
    StoredConversation, StoredEntry, StoredPerson, UserRole,
};

pub(crate) fn entry(entry: &StoredEntry) -> proto::Entry {
    let (salt, body, commit) = match &entry.content {
        StoredContent::Body(salt, body) => (copy(&salt.0), body.clone(), Bytes::new()),
        StoredContent::Erased(commit) => (Bytes::new(), Bytes::new(), copy(&commit.0)),
    };
    proto::Entry {
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: copy(&entry.message_id.0),
        kind: u32::from(entry.kind.0),
        sender: entry.sender.clone(),
        salt,
        body,
        commit,
        ..proto::Entry::default()
    }
}

pub(crate) fn ack(receipt: &Receipt) -> proto::Ack {
    Acks::new(1).ack(receipt)
}

/// Acks of a batch. Their bytes share a few allocations instead of taking two each.
pub(crate) struct Acks(BytesMut);

impl Acks {
    /// For about `count` acks.
    pub(crate) fn new(count: usize) -> Self {
        Self(BytesMut::with_capacity(count * (size_of::<Salt>() + size_of::<Link>())))
    }

    pub(crate) fn ack(&mut self, receipt: &Receipt) -> proto::Ack {
        let mut copy = |bytes: &[u8]| {
            self.0.extend_from_slice(bytes);
            self.0.split().freeze()
        };
        proto::Ack {
            conversation: receipt.conversation,
            n: receipt.n,
            time_ms: receipt.time_ms,
            salt: receipt.salt.map(|salt| copy(&salt.0)).unwrap_or_default(),
            link: copy(&receipt.link.0),
        }
    }
}

pub(crate) fn conversation(conversation: &StoredConversation) -> proto::Conversation {
    use proto::conversation::Kind;
    let (kind, name) = match &conversation.form {
        ConversationForm::Room(name) => (Kind::Room, name),
        ConversationForm::Direct(other) => (Kind::Direct, other),
    };
    proto::Conversation {
        id: conversation.id,
        kind: kind.into(),
        name: name.to_string(),
        topic: conversation.topic.clone(),
        server_key: copy(&conversation.server_key.0),
        head: conversation.head,
        head_link: copy(&conversation.head_link.0),
        read: conversation.read,
        members: conversation.members,
        created_ms: conversation.created_ms,
        joined: conversation.joined,
        own: conversation.own,
        room_kind: match conversation.kind {
            RoomKind::Public => proto::RoomKind::Public,
            RoomKind::Audit => proto::RoomKind::Audit,
        }
        .into(),
    }
}

pub(crate) fn role(role: UserRole) -> proto::Role {
    match role {
        UserRole::Member => proto::Role::Member,
        UserRole::Admin => proto::Role::Admin,
        UserRole::Owner => proto::Role::Owner,
    }
}

pub(crate) fn role_from(role: i32) -> Option<UserRole> {
    match proto::Role::try_from(role).ok()? {
        proto::Role::None => None,
        proto::Role::Member => Some(UserRole::Member),
        proto::Role::Admin => Some(UserRole::Admin),
        proto::Role::Owner => Some(UserRole::Owner),
    }
}

pub(crate) fn person(person: &StoredPerson, online: bool) -> proto::Person {
    proto::Person {
        user: person.user.to_string(),
        role: role(person.role).into(),
        online,
        created_ms: person.created_ms,
        suspended: person.state == PersonState::Suspended,
    }
}

pub(crate) fn invite(invite: &ListedInvite) -> proto::ListedInvite {
    use proto::listed_invite::State;
    let name = |name: Option<&Name>| name.map(Name::to_string).unwrap_or_default();
    let (state, used_by) = match &invite.state {
        InviteState::Unused => (State::Unused, None),
        InviteState::Used(user) => (State::Used, Some(user)),
        InviteState::Revoked => (State::Revoked, None),
    };
    proto::ListedInvite {
        id: copy(&invite.id.0),
        role: role(invite.terms.role).into(),
        user: name(invite.terms.user.as_ref()),
        made_by: name(invite.made_by.as_ref()),
        created_ms: invite.created_ms,
        expires_ms: invite.terms.expires_ms,
        state: state.into(),
        used_by: name(used_by),
    }
}

pub(crate) fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
