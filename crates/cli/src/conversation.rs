//! What the commands derive from a conversation as the server describes it.

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
