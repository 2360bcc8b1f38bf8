//! Audits: reading a whole conversation again, and comparing it with everything this profile knows.

use twinlock_core::chain::{self, Broken};
use twinlock_core::id::{ConversationId, ServerKey};
use twinlock_core::proto::RefusalReason;

use crate::blocking::blocking;
use crate::client::Client;
use crate::directory::ConversationInfo;
use crate::error::{ClientError, Fault, Refusal};
use crate::receipts::Receipts;
use crate::record::{check_head, has_left};
use crate::state::StateError;

/// Entries per read during an audit; the server returns as many as fit into a frame.
const AUDIT_PAGE: u32 = 512;

/// The result of an audit of one conversation.
#[derive(Debug)]
pub struct Audited {
    /// The conversation.
    pub conversation: ConversationInfo,
    /// Number of entries read and verified.
    pub entries: u64,
    /// Number of their links that this profile knew and that matched.
    pub receipts: u64,
    /// The fault at which reading stopped.
    pub fault: Option<ClientError>,
}

impl Audited {
    /// The first entry that is not as it was recorded, if there is one.
    #[must_use]
    pub fn broken_at(&self) -> Option<u64> {
        match self.fault.as_ref()? {
            ClientError::Tampered(broken) => Some(broken.at()),
            ClientError::Truncated { head, .. } => Some(head + 1),
            ClientError::Missing { n, .. } | ClientError::BadEntry { n, .. } => Some(*n),
            ClientError::State(StateError::Conflict { n, .. }) => Some(*n),
            _ => None,
        }
    }
}

/// Reads a conversation from its beginning. Verifies every link, each receipt of this profile, and
/// the server's head.
///
/// # Errors
/// [`ClientError`] if the conversation cannot be read; faults of the record are in
/// [`Audited::fault`].
pub async fn audit(
    client: &Client,
    conversation: ConversationInfo,
) -> Result<Audited, ClientError> {
    let id = conversation.id;
    let key = conversation.server_key.ok_or(ClientError::Protocol("length of a server key"))?;
    let receipts = client.state().receipts();
    let known = {
        let receipts = receipts.clone();
        blocking(move || Ok(receipts.all_for(id)?)).await?
    };
    let mut audited = Audited { conversation, entries: 0, receipts: 0, fault: None };
    let newest = known.last().map_or(0, |known| known.n);
    match walk(client, &key, newest, &mut audited).await {
        Ok(()) => {}
        Err(error) if error.fault() == Fault::Record => audited.fault = Some(error),
        // An unreadable answer ends the audit of this conversation only.
        Err(error @ ClientError::Protocol(_)) => audited.fault = Some(error),
        Err(error) => return Err(error),
    }
    let matched = known.iter().filter(|known| known.n <= audited.entries);
    audited.receipts = matched.count() as u64;
    Ok(audited)
}

/// Reads up to the server's head or the newest known entry, whichever is later. Does not wait for
/// entries recorded during the audit. An empty record is read once.
async fn walk(
    client: &Client,
    key: &ServerKey,
    newest: u64,
    audited: &mut Audited,
) -> Result<(), ClientError> {
    let ConversationInfo { id, head, head_link, .. } = audited.conversation;
    let end = head.max(newest);
    let mut before = chain::link_0(key, id);
    loop {
        let expected = audited.entries + 1;
        let page = client.read_stored_links(id, audited.entries, AUDIT_PAGE).await;
        let page = page.map_err(|error| match error {
            ClientError::Refused(Refusal { why: RefusalReason::Damaged, .. }) => {
                ClientError::Missing { conversation: id, n: expected }
            }
            other => other,
        })?;
        if page.link_after != before {
            return Err(Broken::Link { conversation: id, n: audited.entries }.into());
        }
        let Some(last) = page.entries.last() else { break };
        let at_head = page.entries.iter().find(|entry| entry.n == head);
        if at_head.is_some_and(|entry| entry.link != head_link) {
            return Err(Broken::Link { conversation: id, n: head }.into());
        }
        audited.entries = last.n;
        before = last.link.unwrap_or(before);
        if audited.entries >= end {
            break;
        }
    }
    check_head(id, audited.entries, end)
}

/// The conversations with receipts of this profile that are neither in `listed` nor known to be
/// left.
///
/// # Errors
/// [`ClientError`].
pub fn unexplained(
    receipts: &Receipts,
    listed: &[ConversationId],
) -> Result<Vec<ConversationId>, ClientError> {
    let mut missing = Vec::new();
    for conversation in receipts.conversations()? {
        if !listed.contains(&conversation) && !has_left(receipts, conversation)? {
            missing.push(conversation);
        }
    }
    Ok(missing)
}
