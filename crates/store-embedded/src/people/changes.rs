//! Changes of `people.db`, as the log keeps them.
//!
//! A change is the image of one row: applying it puts or deletes this row, so that it can be
//! repeated. This is a file format. Tags are never reused, and a decoder ignores fields that it does
//! not know. It refuses a kind of change that it does not know, because without it the tables would
//! be wrong.
//!
//! Read markers after joining, the time of a device's last login and the sources of logins are in
//! no change: the log never forgets.

use std::path::Path;

use prost::Message as _;
use thiserror::Error;
use twinlock_store::StoreError;

use crate::open_error::OpenError;

/// The changes of one write, which are applied as a whole or not at all.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ChangeSet {
    /// The changes, in the order in which they are applied.
    #[prost(message, repeated, tag = "1")]
    pub(crate) changes: Vec<ChangeRecord>,
}

/// One change. Every kind has a separate tag.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ChangeRecord {
    /// The change; `None`: of a kind that this version does not know.
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) change: Option<Change>,
}

/// The highest tag of a kind of change.
const KINDS: usize = 6;

/// The image of one row.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Change {
    /// Puts a user. The name of a number never changes.
    #[prost(message, tag = "1")]
    Person(PersonImage),
    /// Puts a password, a device or an invite.
    #[prost(message, tag = "2")]
    Credential(CredentialImage),
    /// Puts a room or a direct conversation.
    #[prost(message, tag = "3")]
    Conversation(ConversationImage),
    /// Puts a member. No effect on one that is there.
    #[prost(message, tag = "4")]
    Joined(MemberJoined),
    /// Deletes a member.
    #[prost(message, tag = "5")]
    Left(MemberLeft),
    /// Puts a classic key.
    #[prost(message, tag = "6")]
    ClassicKey(ClassicKeyImage),
}

/// A row of `users`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PersonImage {
    /// The user's number.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// The user's name.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// [`twinlock_store::UserRole::number`].
    #[prost(uint32, tag = "3")]
    pub(crate) role: u32,
    /// Whether the user can log in with a password.
    #[prost(bool, tag = "4")]
    pub(crate) password: bool,
    /// Time of registration, ms since 1970 UTC.
    #[prost(uint64, tag = "5")]
    pub(crate) created_ms: u64,
    /// The row's MAC, 32 bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) mac: Vec<u8>,
    /// [`twinlock_store::PersonState::number`].
    #[prost(uint32, tag = "7")]
    pub(crate) state: u32,
}

/// A row of `credentials`, without the time of the last login.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CredentialImage {
    /// [`twinlock_core::id::CredentialId::cid`].
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) cid: Vec<u8>,
    /// The holder; for an invite, the only name that it can register.
    #[prost(string, optional, tag = "2")]
    pub(crate) user: Option<String>,
    /// The OPAQUE record, 192 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) record: Vec<u8>,
    /// The user's name for a device.
    #[prost(string, tag = "4")]
    pub(crate) label: String,
    /// Time of creation, ms since 1970 UTC.
    #[prost(uint64, tag = "5")]
    pub(crate) created_ms: u64,
    /// Role of the user that an invite registers.
    #[prost(uint32, tag = "6")]
    pub(crate) role: u32,
    /// Expiry of an invite, ms since 1970 UTC.
    #[prost(uint64, tag = "7")]
    pub(crate) expires_ms: u64,
    /// The user who created an invite.
    #[prost(string, optional, tag = "8")]
    pub(crate) made_by: Option<String>,
    /// [`twinlock_store::row_mac::CredentialState::number`].
    #[prost(uint32, tag = "9")]
    pub(crate) state: u32,
    /// The user that an invite has registered.
    #[prost(string, optional, tag = "10")]
    pub(crate) used_by: Option<String>,
    /// The row's MAC, 32 bytes.
    #[prost(bytes = "vec", tag = "11")]
    pub(crate) mac: Vec<u8>,
}

/// A row of `conversations`, without the number of members.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConversationImage {
    /// The conversation's id.
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    /// A room's name.
    #[prost(string, optional, tag = "2")]
    pub(crate) name: Option<String>,
    /// The lesser name of a direct conversation.
    #[prost(string, optional, tag = "3")]
    pub(crate) low: Option<String>,
    /// The greater name of a direct conversation; the same as the lesser one for notes.
    #[prost(string, optional, tag = "4")]
    pub(crate) high: Option<String>,
    /// A room's topic.
    #[prost(string, tag = "5")]
    pub(crate) topic: String,
    /// The server key that `link_0` covers, 32 bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) server_key: Vec<u8>,
    /// Time of creation, ms since 1970 UTC.
    #[prost(uint64, tag = "7")]
    pub(crate) created_ms: u64,
    /// The user who created a room.
    #[prost(string, optional, tag = "8")]
    pub(crate) made_by: Option<String>,
    /// [`twinlock_store::RoomKind::number`].
    #[prost(uint32, tag = "9")]
    pub(crate) kind: u32,
}

/// A new row of `members`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MemberJoined {
    /// The conversation.
    #[prost(uint64, tag = "1")]
    pub(crate) conversation: u64,
    /// The user's name.
    #[prost(string, tag = "2")]
    pub(crate) user: String,
    /// The conversation's head when the user joined.
    #[prost(uint64, tag = "3")]
    pub(crate) read: u64,
}

/// A deleted row of `members`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MemberLeft {
    /// The conversation.
    #[prost(uint64, tag = "1")]
    pub(crate) conversation: u64,
    /// The user's name.
    #[prost(string, tag = "2")]
    pub(crate) user: String,
}

/// A row of `classic_keys`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ClassicKeyImage {
    /// The key's name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The user who owns it.
    #[prost(string, tag = "2")]
    pub(crate) user: String,
    /// The only conversation that it may append to.
    #[prost(uint64, tag = "3")]
    pub(crate) conversation: u64,
    /// [`twinlock_core::classic::ClassicScheme::number`].
    #[prost(uint32, tag = "4")]
    pub(crate) form: u32,
    /// Input of the key's derivation, 32 bytes.
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) salt: Vec<u8>,
    /// An imported key, sealed, 32 bytes.
    #[prost(bytes = "vec", optional, tag = "6")]
    pub(crate) sealed: Option<Vec<u8>>,
    /// Time of creation, ms since 1970 UTC.
    #[prost(uint64, tag = "7")]
    pub(crate) created_ms: u64,
    /// 0: usable, 1: revoked.
    #[prost(uint32, tag = "8")]
    pub(crate) state: u32,
    /// The row's MAC, 32 bytes.
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) mac: Vec<u8>,
}

/// Why changes cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BadChange {
    /// The bytes cannot be decoded, although their checksum is right.
    #[error("a change in the log cannot be decoded: {0}")]
    Malformed(String),
    /// A newer version has written a change of this kind.
    #[error(
        "the log has a change of kind {0}, and this version knows {KINDS}: a newer version wrote it"
    )]
    Newer(usize),
}

impl From<BadChange> for StoreError {
    fn from(error: BadChange) -> Self {
        Self::Damaged(error.to_string())
    }
}

impl BadChange {
    /// The error of opening the record in `directory`, whose change at `path` (a segment) is bad.
    pub(crate) fn into_open_error(self, path: &Path, directory: &Path) -> OpenError {
        let path = path.to_path_buf();
        match self {
            Self::Newer(found) => OpenError::Newer { path, found, known: KINDS },
            Self::Malformed(_) => OpenError::Damaged {
                path,
                directory: directory.to_path_buf(),
                problem: self.to_string(),
            },
        }
    }
}

/// Encodes the changes of one write, as one record of the log.
pub(crate) fn encode(changes: Vec<Change>) -> Vec<u8> {
    let record = |change| ChangeRecord { change: Some(change) };
    ChangeSet { changes: changes.into_iter().map(record).collect() }.encode_to_vec()
}

/// Decodes one record of the log.
///
/// # Errors
/// [`BadChange`]; then nothing of the record must be applied.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Change>, BadChange> {
    let malformed = |error: prost::DecodeError| BadChange::Malformed(error.to_string());
    let set = ChangeSet::decode(bytes).map_err(malformed)?;
    let known = set.changes.into_iter().map(|record| record.change).collect::<Option<Vec<_>>>();
    match known {
        Some(changes) => Ok(changes),
        None => Err(unknown_kind(bytes).unwrap_or_else(malformed)),
    }
}

/// A [`ChangeSet`] whose changes are not decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct RawChangeSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    changes: Vec<Vec<u8>>,
}

/// The error of a set with a change of an unknown kind, which is the tag of its first field.
fn unknown_kind(bytes: &[u8]) -> Result<BadChange, prost::DecodeError> {
    for change in RawChangeSet::decode(bytes)?.changes {
        if ChangeRecord::decode(&*change)?.change.is_none() {
            // A field begins with its tag, shifted by the three bits of its wire type.
            return Ok(match prost::decode_length_delimiter(&*change) {
                Ok(key) if key >> 3 > KINDS => BadChange::Newer(key >> 3),
                _ => BadChange::Malformed("a change is empty".to_owned()),
            });
        }
    }
    Ok(BadChange::Malformed("a change is empty".to_owned()))
}

#[cfg(test)]
mod tests;
