//! Reading the record with suspicion: every link against the one before it, and against those
//! this profile knows.

use std::collections::BTreeMap;

use twinlock_core::chain::{self, Broken, Kind, Linked, Position};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Salt, Sender, ServerKey};
use twinlock_core::proto::{self, Why};
use twinlock_core::text::Untrusted;

use crate::client::{Client, Entry, blocking};
use crate::error::{Blame, ClientError, Refusal};
use crate::receipts::{Known, Receipts};
use crate::state::StateError;

/// Entries of one read while auditing; the server gives as many as fit a frame.
const AUDIT_PAGE: u32 = 512;

/// Entries that were read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The link of the entry before the first.
    pub link_after: Link,
    /// The newest number of the conversation.
    pub head: u64,
    /// Ascending, without gaps.
    pub entries: Vec<Entry>,
}

/// Begins reading after entry `after`, whose link the server says is `link`.
///
/// # Errors
/// [`ClientError`] if that is not the link this profile knows, or if the record ends (`head`)
/// before an entry it knows.
pub(crate) fn begin(
    receipts: &Receipts,
    conversation: ConversationId,
    after: u64,
    link: &[u8],
    head: u64,
) -> Result<Position, ClientError> {
    let link = Link::from_slice(link).ok_or(ClientError::Protocol("length of a link"))?;
    if let Some(known) = receipts.known(conversation)?
        && known.n > head
    {
        return Err(ClientError::Truncated { conversation, head, known: known.n });
    }
    if after > 0
        && let Some(known) = receipts.within(conversation, after..=after)?.first()
        && known.link != link
    {
        return Err(Broken::Link { conversation, n: after }.into());
    }
    Ok(Position::new(conversation, after, link))
}

/// Checks entries that follow on a position, and remembers the newest link. The position moves
/// past the good ones.
///
/// # Errors
/// [`ClientError`]; nothing is remembered then.
pub(crate) fn advance(
    receipts: &Receipts,
    conversation: ConversationId,
    position: &mut Position,
    entries: &[proto::Entry],
) -> Result<Vec<Entry>, ClientError> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Ok(Vec::new());
    };
    if last.n < first.n {
        return Err(ClientError::Protocol("entries out of order"));
    }
    let known = receipts.within(conversation, first.n..=last.n)?;
    let known: BTreeMap<u64, Link> = known.into_iter().map(|k| (k.n, k.link)).collect();
    let mut checked = Vec::with_capacity(entries.len());
    let mut moved = position.clone();
    for entry in entries {
        checked.push(check(conversation, &mut moved, entry, known.get(&entry.n))?);
    }
    let newest = Known { conversation, n: moved.n(), link: *moved.link(), time_ms: last.time_ms };
    receipts.remember(&newest)?;
    *position = moved;
    Ok(checked)
}

/// Checks the answer to a read after `after`.
pub(crate) fn check_page(
    receipts: &Receipts,
    conversation: ConversationId,
    after: u64,
    page: proto::Page,
) -> Result<Page, ClientError> {
    if page.conversation != conversation || page.after != after {
        return Err(ClientError::Protocol("an answer to another read"));
    }
    let mut position = begin(receipts, conversation, after, &page.link_after, page.head)?;
    let link_after = *position.link();
    let entries = advance(receipts, conversation, &mut position, &page.entries)?;
    Ok(Page { link_after, head: page.head, entries })
}

fn check(
    conversation: ConversationId,
    position: &mut Position,
    entry: &proto::Entry,
    known: Option<&Link>,
) -> Result<Entry, ClientError> {
    let malformed = || ClientError::Protocol("an entry that cannot be read");
    let mut read = unchecked(entry)?;
    let commit = match Salt::from_slice(&entry.salt) {
        Some(salt) => chain::commit(&salt, &entry.body),
        None => Commit::from_slice(&entry.commit).ok_or_else(malformed)?,
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
        return Err(Broken::Link { conversation, n: entry.n }.into());
    }
    read.link = Some(link);
    Ok(read)
}

/// An entry as it came.
pub(crate) fn unchecked(entry: &proto::Entry) -> Result<Entry, ClientError> {
    let malformed = || ClientError::Protocol("an entry that cannot be read");
    Ok(Entry {
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: MessageId::from_slice(&entry.message_id).ok_or_else(malformed)?,
        kind: Kind(u8::try_from(entry.kind).map_err(|_| malformed())?),
        sender: Sender::parse(&entry.sender).ok(),
        text: (!entry.salt.is_empty()).then(|| Untrusted::from_bytes(&entry.body)),
        link: None,
    })
}

/// What an audit found in one conversation.
#[derive(Debug)]
pub struct Audited {
    /// Which.
    pub conversation: proto::Conversation,
    /// Entries read and linked.
    pub entries: u64,
    /// Links of them that this profile knew and that matched.
    pub receipts: u64,
    /// What is wrong; reading ended there.
    pub fault: Option<ClientError>,
}

impl Audited {
    /// The entry at which the record stops being what it was, if it does.
    #[must_use]
    pub fn broken_at(&self) -> Option<u64> {
        match self.fault.as_ref()? {
            ClientError::Tampered(broken) => Some(broken.at()),
            ClientError::Truncated { head, .. } => Some(head + 1),
            ClientError::Missing { n, .. } => Some(*n),
            ClientError::State(StateError::Conflict { n, .. }) => Some(*n),
            _ => None,
        }
    }
}

/// Reads a conversation from its beginning and checks every link, each receipt of this profile,
/// and the head that the server names.
///
/// # Errors
/// [`ClientError`] if it cannot be read; what is wrong with the record itself is in
/// [`Audited::fault`].
pub async fn audit(
    client: &Client,
    conversation: proto::Conversation,
) -> Result<Audited, ClientError> {
    let id = conversation.id;
    let key = ServerKey::from_slice(&conversation.server_key)
        .ok_or(ClientError::Protocol("length of a server key"))?;
    let receipts = client.state().receipts();
    let known = {
        let receipts = receipts.clone();
        blocking(move || Ok(receipts.all_for(id)?)).await?
    };
    let mut audited = Audited { conversation, entries: 0, receipts: 0, fault: None };
    match walk(client, &key, &mut audited).await {
        Ok(()) => {}
        Err(error) if error.blame() == Blame::Record => audited.fault = Some(error),
        Err(error) => return Err(error),
    }
    let matched = known.iter().filter(|known| known.n <= audited.entries);
    audited.receipts = matched.count() as u64;
    Ok(audited)
}

async fn walk(client: &Client, key: &ServerKey, audited: &mut Audited) -> Result<(), ClientError> {
    let proto::Conversation { id, head, .. } = audited.conversation;
    let mut before = chain::link_0(key, id);
    // What is recorded while we read is not waited for; an empty record is asked once.
    loop {
        let expected = audited.entries + 1;
        let page = client.read_stored_links(id, audited.entries, AUDIT_PAGE).await;
        let page = page.map_err(|error| match error {
            ClientError::Refused(Refusal { why: Why::Damaged, .. }) => {
                ClientError::Missing { conversation: id, n: expected }
            }
            other => other,
        })?;
        if page.link_after != before {
            return Err(Broken::Link { conversation: id, n: audited.entries }.into());
        }
        let Some(last) = page.entries.last() else { break };
        audited.entries = last.n;
        before = last.link.unwrap_or(before);
        if audited.entries >= head {
            break;
        }
    }
    if audited.entries < head {
        let known = head;
        return Err(ClientError::Truncated { conversation: id, head: audited.entries, known });
    }
    Ok(())
}
