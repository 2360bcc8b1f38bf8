//! Verifies the hash chain of entries as a server sends them.

use twinlock_core::chain::{self, Broken, EntryKind, Linked, Position};
use twinlock_core::id::{ConversationId, Link, MessageId, Salt};
use twinlock_core::proto;

/// Moves `position` past an entry that a server sent, and returns the entry's link.
///
/// A salt or message id of an invalid length counts as zeros, so that any entry has a result.
///
/// # Errors
/// [`Broken`] if the entry does not follow `position`, which stays where it is then.
pub fn advance_sent(
    position: &mut Position,
    conversation: ConversationId,
    entry: &proto::Entry,
) -> Result<Link, Broken> {
    let salt = Salt::from_slice(&entry.salt).unwrap_or(Salt([0; 16]));
    let linked = Linked {
        conversation,
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: &MessageId::from_slice(&entry.message_id).unwrap_or(MessageId([0; 16])),
        kind: EntryKind(entry.kind as u8),
        sender: &entry.sender,
        commit: &chain::commit(&salt, &entry.body),
    };
    position.advance(&linked, None)
}

/// Verifies the links of consecutive entries that a server sent, and returns the last one.
///
/// `after` is the position in front of the first entry: its number and link.
///
/// # Panics
/// If a link is wrong.
#[must_use]
pub fn verify_sent(
    conversation: ConversationId,
    (n, link): (u64, &[u8]),
    entries: &[proto::Entry],
) -> Link {
    let mut position = Position::new(conversation, n, Link::from_slice(link).unwrap());
    for entry in entries {
        let _link = advance_sent(&mut position, conversation, entry).unwrap();
    }
    *position.link()
}
