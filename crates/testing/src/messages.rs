//! Requests to a server, and what its answers contain.

use bytes::Bytes;
use twinlock_core::proto::{self, answer::Result as Answered, request::Op};

use crate::random;

/// The room of all users.
pub const LOBBY: u64 = 1;

/// Bytes of a message's field.
#[must_use]
pub fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Appends a text, with a fresh message id.
#[must_use]
pub fn append(conversation: u64, text: &str) -> Op {
    append_as(random(), conversation, text)
}

/// Appends a text with this message id.
#[must_use]
pub fn append_as(id: [u8; 16], conversation: u64, text: &str) -> Op {
    Op::Append(proto::Append { conversation, message_id: copy(&id), body: copy(text.as_bytes()) })
}

/// Offers a file for the lobby.
#[must_use]
pub fn put(id: [u8; 16], name: &str, size: u64) -> proto::PutFile {
    let file = proto::FileMeta { name: name.to_owned(), size, ..proto::FileMeta::default() };
    proto::PutFile { conversation: LOBBY, message_id: copy(&id), file: Some(file) }
}

/// Requests the file of an entry in the lobby.
#[must_use]
pub fn get(n: u64) -> proto::GetFile {
    proto::GetFile { conversation: LOBBY, n, ..proto::GetFile::default() }
}

/// The hash of a file.
#[must_use]
pub fn hash(data: &[u8]) -> Bytes {
    copy(blake3::hash(data).as_bytes())
}

/// The ack in an answer.
///
/// # Panics
/// If the answer is another one.
pub fn ack(answered: Answered) -> proto::Ack {
    if let Answered::Ack(ack) = answered { ack } else { panic!("{answered:?}") }
}

/// The page in an answer.
///
/// # Panics
/// If the answer is another one.
#[must_use]
pub fn page(answered: Answered) -> proto::Page {
    if let Answered::Page(page) = answered { page } else { panic!("{answered:?}") }
}

/// The conversation in an answer.
///
/// # Panics
/// If the answer is another one.
#[must_use]
pub fn conversation(answered: Answered) -> proto::Conversation {
    if let Answered::Conversation(c) = answered { c } else { panic!("{answered:?}") }
}

/// The accepted upload in an answer.
///
/// # Panics
/// If the answer is another one.
#[must_use]
pub fn accepted(answered: Answered) -> proto::FileAccepted {
    if let Answered::FileAccepted(accepted) = answered { accepted } else { panic!("{answered:?}") }
}

/// The announced download in an answer.
///
/// # Panics
/// If the answer is another one.
#[must_use]
pub fn coming(answered: Answered) -> proto::FileComing {
    if let Answered::FileComing(coming) = answered { coming } else { panic!("{answered:?}") }
}

/// Asserts that the answer is only a confirmation.
///
/// # Panics
/// If the answer is another one.
pub fn done(answered: Answered) {
    assert!(matches!(answered, Answered::Done(_)), "{answered:?}");
}

/// The texts of entries, in order.
///
/// # Panics
/// If one is not UTF-8.
#[must_use]
pub fn texts(entries: &[proto::Entry]) -> Vec<String> {
    entries.iter().map(|e| String::from_utf8(e.body.to_vec()).unwrap()).collect()
}
