//! Entries and conversations for tests.

use twinlock_client::model::Entry;
use twinlock_client::outbox::Ack;
use twinlock_client::{ConversationInfo, ConversationKind};
use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, Link, MessageId, Name, Sender};
use twinlock_core::text::Untrusted;

/// The user of the chat.
pub(crate) const ALICE: &str = "alice";
pub(crate) const BOB: &str = "bob";
pub(crate) const USERS: [&str; 3] = [ALICE, BOB, "carol"];

pub(crate) fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

pub(crate) fn id(i: u8) -> MessageId {
    MessageId([i; 16])
}

pub(crate) fn ack(n: u64) -> Ack {
    Ack { conversation: 1, n, time_ms: 0, salt: None, link: Link([0; 32]) }
}

/// An entry with the message id 0.
pub(crate) fn entry(n: u64, from: &str, text: &str) -> Entry {
    Entry {
        n,
        time_ms: n,
        message_id: id(0),
        kind: EntryKind::TEXT,
        sender: Some(Sender::User(name(from), None)),
        text: Some(Untrusted::new(text)),
        file: None,
        link: None,
    }
}

/// A joined room, `room1` for the id 1.
pub(crate) fn room(id: ConversationId, head: u64, read: u64) -> ConversationInfo {
    let mut room = ConversationInfo::new(id, ConversationKind::Room, format!("room{id}"));
    (room.head, room.read, room.joined) = (head, read, true);
    room
}

/// The direct conversation with a user.
pub(crate) fn direct(id: ConversationId, user: &str, head: u64) -> ConversationInfo {
    let mut direct = ConversationInfo::new(id, ConversationKind::Direct, user.to_owned());
    (direct.head, direct.read, direct.joined) = (head, head, true);
    direct
}
