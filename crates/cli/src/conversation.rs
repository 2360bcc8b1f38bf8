//! How the commands present conversations and roles that the server describes.

use twinlock_core::proto;

/// The spelling of a conversation on the command line.
pub(crate) fn target_of(conversation: &proto::Conversation) -> String {
    match conversation.kind() {
        proto::conversation::Kind::Direct => format!("@{}", conversation.name),
        _ => conversation.name.clone(),
    }
}

/// Entries after the read marker, except the user's own among the newest 100.
pub(crate) fn unread(room: &proto::Conversation) -> u64 {
    room.head.saturating_sub(room.read).saturating_sub(room.own)
}

/// A role as the command line and JSON spell it.
pub(crate) fn role_word(role: proto::Role) -> &'static str {
    match role {
        proto::Role::None => "none",
        proto::Role::Member => "member",
        proto::Role::Admin => "admin",
        proto::Role::Owner => "owner",
    }
}
