//! Verified reading: checks every link against the one before it, and against those that this
//! profile knows.

use std::collections::BTreeMap;

use prost::Message as _;
use twinlock_core::chain::{self, Broken, EntryKind, Linked, Position};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Salt, Sender};
use twinlock_core::proto;
use twinlock_core::text::Untrusted;

use crate::error::ClientError;
use crate::model::{Entry, FileEntry};
use crate::receipts::{Handled, Known, Receipts, Seen};

/// The purpose whose position marks a conversation as left.
const LEFT: &str = "left";
/// A page of entries that were read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The link of the entry before the first.
    pub link_after: Link,
    /// Number of the conversation's newest entry.
    pub head: u64,
    /// Ascending; the only gaps are entries in [`Self::faults`].
    pub entries: Vec<Entry>,
    /// Entries that were altered, or that no honest server records.
    pub faults: Vec<ClientError>,
    /// Number of the last entry that was checked; `after` if none was.
    pub upto: u64,
}

/// The result of a check of entries.
pub(crate) struct Advanced {
    pub(crate) entries: Vec<Entry>,
    pub(crate) faults: Vec<ClientError>,
    /// Number of entries before the first fault.
    pub(crate) good: usize,
    upto: u64,
}

/// The latest time that can be shown, in ms since 1970 UTC: the year 9999.
const LATEST: u64 = 253_402_207_200_999;
/// Number of faults after which the check of a page stops.
const MOST_FAULTS: usize = 16;

impl Page {
    /// The page, unless it has a fault.
    ///
    /// # Errors
    /// The first fault.
    pub fn whole(self) -> Result<Self, ClientError> {
        match self.faults.first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(self),
        }
    }
}

/// Starts to read after entry `after`, with the link that the server supplied.
///
/// # Errors
/// [`ClientError`] if the link differs from the one that this profile knows.
pub(crate) fn begin(
    receipts: &Receipts,
    conversation: ConversationId,
    after: u64,
    link: &[u8],
) -> Result<Position, ClientError> {
    let link = Link::from_slice(link).ok_or(ClientError::Protocol("length of a link"))?;
    if after == 0 && link != chain::link_0(&receipts.origin(conversation), conversation) {
        return Err(Broken::Link { conversation, n: 0 }.into());
    }
    if after > 0
        && let Some(known) = receipts.within(conversation, after..=after)?.first()
        && known.link != link
    {
        return Err(Broken::Link { conversation, n: after }.into());
    }
    Ok(Position::new(conversation, after, link))
}

/// Verifies entries that follow a position, stores the newest link and advances the position. With
/// a fault, nothing is stored and the position stays.
///
/// After a faulty entry the check continues if that entry's link is known. Otherwise it stops, and
/// the next read gets the link from the server.
///
/// # Errors
/// [`ClientError`] if the profile's state fails.
pub(crate) fn advance(
    receipts: &Receipts,
    conversation: ConversationId,
    position: &mut Position,
    entries: &[proto::Entry],
) -> Result<Advanced, ClientError> {
    let mut advanced =
        Advanced { entries: Vec::new(), faults: Vec::new(), good: 0, upto: position.n() };
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Ok(advanced);
    };
    let known = receipts.within(conversation, first.n..=last.n.max(first.n))?;
    let known: BTreeMap<u64, Link> = known.into_iter().map(|k| (k.n, k.link)).collect();
    let mut moved = position.clone();
    for entry in entries {
        let link = known.get(&entry.n);
        advanced.upto = advanced.upto.saturating_add(1);
        match check(conversation, &mut moved, entry, link) {
            Ok(read) => advanced.entries.push(read),
            Err(fault) => {
                if advanced.faults.is_empty() {
                    advanced.good = advanced.entries.len();
                }
                advanced.faults.push(fault);
                let is_next = entry.n == moved.n().saturating_add(1);
                let Some(link) = link.copied().filter(|_| is_next) else { break };
                if advanced.faults.len() == MOST_FAULTS {
                    break;
                }
                moved = Position::new(conversation, entry.n, link);
            }
        }
    }
    if advanced.faults.is_empty() {
        advanced.good = advanced.entries.len();
        let last = Known { conversation, n: moved.n(), link: *moved.link(), time_ms: last.time_ms };
        receipts.remember(&Seen { last, after: position.n() })?;
        *position = moved;
    }
    Ok(advanced)
}

/// The newest entry that is known now. The answer to a later request must reach it. The answer to
/// an earlier one need not: other processes of this profile learn of entries at any time.
pub(crate) fn known_head(
    receipts: &Receipts,
    conversation: ConversationId,
) -> Result<u64, ClientError> {
    Ok(receipts.known(conversation)?.map_or(0, |known| known.n))
}

/// Compares the server's head with the one known before the request.
///
/// # Errors
/// [`ClientError::Truncated`].
pub(crate) fn check_head(
    conversation: ConversationId,
    head: u64,
    known: u64,
) -> Result<(), ClientError> {
    if known > head {
        return Err(ClientError::Truncated { conversation, head, known });
    }
    Ok(())
}

/// Checks the answer to a read after `after`; `known` is the earlier result of [`known_head`].
pub(crate) fn check_page(
    receipts: &Receipts,
    conversation: ConversationId,
    after: u64,
    known: u64,
    page: proto::Page,
) -> Result<Page, ClientError> {
    if page.conversation != conversation || page.after != after {
        return Err(ClientError::Protocol("an answer to another read"));
    }
    check_head(conversation, page.head, known)?;
    let mut position = begin(receipts, conversation, after, &page.link_after)?;
    let link_after = *position.link();
    let Advanced { entries, faults, upto, .. } =
        advance(receipts, conversation, &mut position, &page.entries)?;
    Ok(Page { link_after, head: page.head, entries, faults, upto })
}

fn check(
    conversation: ConversationId,
    position: &mut Position,
    entry: &proto::Entry,
    known: Option<&Link>,
) -> Result<Entry, ClientError> {
    let mut read = unchecked(conversation, entry)?;
    let unlike = Broken::Link { conversation, n: entry.n };
    let commit = match content(entry).ok_or(unlike)? {
        EntryContent::Body(salt) => chain::commit(&salt, &entry.body),
        EntryContent::Erased(commit) => commit,
    };
    let linked = Linked {
        conversation,
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: &read.message_id,
        kind: read.kind,
        sender: &entry.sender,
        commit: &commit,
    };
    let stored = Link::from_slice(&entry.link);
    let link = position.advance(&linked, known.or(stored.as_ref()))?;
    if stored.is_some_and(|stored| stored != link) {
        return Err(unlike.into());
    }
    read.link = Some(link);
    Ok(read)
}

/// Decodes an entry without verifying its link.
///
/// # Errors
/// [`ClientError::BadEntry`].
pub(crate) fn unchecked(
    conversation: ConversationId,
    entry: &proto::Entry,
) -> Result<Entry, ClientError> {
    let bad = |what| ClientError::BadEntry { conversation, n: entry.n, what };
    let malformed = || bad("its kind or its message id is none");
    if entry.time_ms > LATEST {
        return Err(bad("its time is after the year 9999"));
    }
    if i64::try_from(entry.n).is_err() {
        return Err(bad("it has no number that an entry can have"));
    }
    let kind = EntryKind(u8::try_from(entry.kind).map_err(|_| malformed())?);
    let (text, file) = match content(entry) {
        Some(EntryContent::Body(_)) if kind == EntryKind::FILE => (None, file(&entry.body)),
        Some(EntryContent::Body(_)) => (Some(Untrusted::from_bytes(&entry.body)), None),
        Some(EntryContent::Erased(_)) | None => (None, None),
    };
    Ok(Entry {
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: MessageId::from_slice(&entry.message_id).ok_or_else(malformed)?,
        kind,
        sender: Sender::parse(&entry.sender).ok(),
        text,
        file,
        link: None,
    })
}

/// Decodes the body of a file entry; `None` if no server of this version writes such a body.
fn file(body: &[u8]) -> Option<FileEntry> {
    let proto::FileBody { file, hash } = proto::FileBody::decode(body).ok()?;
    let proto::FileMeta { name, size, mode, modified_ms, path, .. } = file?;
    let hash = <[u8; 32]>::try_from(hash.as_ref()).ok()?;
    let (name, path) = (Untrusted::new(name), Untrusted::new(path));
    Some(FileEntry { name, path, size, mode: mode & 0o777, modified_ms, hash })
}

enum EntryContent {
    Body(Salt),
    Erased(Commit),
}

/// The content of an entry: a body with its salt, or the commitment of an erased one. What is shown
/// must be what the link covers, so any mixture is rejected.
fn content(entry: &proto::Entry) -> Option<EntryContent> {
    let (salt, commit) = (Salt::from_slice(&entry.salt), Commit::from_slice(&entry.commit));
    match (salt, commit) {
        (Some(salt), None) if entry.commit.is_empty() => Some(EntryContent::Body(salt)),
        (None, Some(commit)) if entry.salt.is_empty() && entry.body.is_empty() => {
            Some(EntryContent::Erased(commit))
        }
        _ => None,
    }
}

/// Stores that this user has left a conversation. It cannot be read from then on, which is not
/// evidence of tampering.
///
/// # Errors
/// [`ClientError`].
pub(crate) fn note_left(
    receipts: &Receipts,
    conversation: ConversationId,
) -> Result<(), ClientError> {
    let n = known_head(receipts, conversation)?;
    Ok(receipts.advance(&Handled { conversation, purpose: LEFT, n })?)
}

/// Whether this user has left a conversation, after all that is known of it.
///
/// # Errors
/// [`ClientError`].
pub(crate) fn has_left(
    receipts: &Receipts,
    conversation: ConversationId,
) -> Result<bool, ClientError> {
    let known = known_head(receipts, conversation)?;
    Ok(receipts.position(conversation, LEFT)?.is_some_and(|left| left >= known))
}

#[cfg(test)]
mod tests {
    use twinlock_core::id::{Name, ServerKey};

    use super::*;
    use crate::home::Home;
    use crate::state::State;

    fn entry(n: u64, text: &str) -> proto::Entry {
        proto::Entry {
            n,
            time_ms: n,
            message_id: vec![n as u8; 16].into(),
            kind: 1,
            sender: "ada".into(),
            salt: vec![7; 16].into(),
            body: text.to_owned().into(),
            ..proto::Entry::default()
        }
    }

    fn receipts(dir: &std::path::Path) -> Receipts {
        let (profile, user) = (Name::new("p").unwrap(), Name::new("ada").unwrap());
        State::open_for(&Home::at(dir), &profile, &ServerKey([1; 32]), &user).unwrap().receipts()
    }

    #[test]
    fn entry_check__content_not_covered_by_link_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let receipts = receipts(dir.path());
        let start = Position::new(1, 0, Link([0; 32]));
        let good = entry(1, "yes");
        let mut position = start.clone();
        let checked = advance(&receipts, 1, &mut position, std::slice::from_ref(&good)).unwrap();
        let link = checked.entries.first().unwrap().link.unwrap();
        let genuine = chain::commit(&Salt([7; 16]), b"yes");
        let commit = bytes::Bytes::copy_from_slice(&genuine.0);
        let erased = proto::Entry {
            salt: bytes::Bytes::new(),
            body: bytes::Bytes::new(),
            commit: commit.clone(),
            ..good.clone()
        };
        let read = check(1, &mut start.clone(), &erased, Some(&link)).unwrap();
        assert_eq!((read.link, read.text), (Some(link), None));
        for forged in [
            proto::Entry {
                salt: vec![7].into(),
                body: "no".into(),
                commit: commit.clone(),
                ..good.clone()
            },
            proto::Entry { body: "no".into(), commit: commit.clone(), ..good.clone() },
            proto::Entry { salt: bytes::Bytes::new(), body: "no".into(), commit, ..good.clone() },
            proto::Entry { body: "no".into(), ..good.clone() },
            proto::Entry { kind: 2, ..good.clone() },
            proto::Entry { link: vec![9; 32].into(), ..good.clone() },
        ] {
            let error = check(1, &mut start.clone(), &forged, Some(&link)).unwrap_err();
            assert_eq!(error, Broken::Link { conversation: 1, n: 1 }.into(), "{forged:?}");
        }
    }
}
