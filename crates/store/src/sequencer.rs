//! The sequencer assigns number, time and link to an entry, or detects a duplicate (section 7).
//!
//! [`next_head`] is a pure function of the conversation's head, so that every store assigns the same
//! values. The store supplies the head and writes the entry: a store with one writer caches the
//! heads in memory, a store with several writers reads them under a lock.
//!
//! [`PreparedEntry`] has the hashes that do not depend on the head. The caller of an append
//! computes them, so that the recorder does not hash bodies.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use twinlock_core::chain::{self, EntryKind, Linked};
use twinlock_core::id::{Commit, ConversationId, Link, MessageId, Salt, Sender, ServerKey};

use crate::appended::{Appended, Receipt};
use crate::error::StoreError;
use crate::file_body;
use crate::files::FileRef;
use crate::log::{NewEntry, StoredContent, StoredEntry};

/// An entry with everything that does not depend on its position.
#[derive(Debug, Clone)]
pub struct PreparedEntry {
    /// The entry as received.
    pub new: NewEntry,
    /// The sender in the encoding of protocol section 7.
    pub sender: Bytes,
    /// The random salt of the commitment.
    pub salt: Salt,
    /// The commitment to salt and body.
    pub commit: Commit,
    /// The content that a file entry refers to.
    pub file: Option<FileRef>,
}

impl PreparedEntry {
    /// Draws a salt and computes the commitment for each entry of a batch.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the system's random generator fails.
    pub fn batch(batch: Vec<NewEntry>, salts: &Salts) -> Result<Vec<Self>, StoreError> {
        let salts = salts.draw(batch.len())?;
        let mut before: Option<(Sender, Bytes)> = None;
        let one = |(new, salt): (NewEntry, Salt)| {
            let commit = chain::commit(&salt, &new.body);
            let sender = match &before {
                Some((sender, bytes)) if *sender == new.sender => bytes.clone(),
                _ => {
                    let bytes = Bytes::from(new.sender.to_string());
                    before = Some((new.sender.clone(), bytes.clone()));
                    bytes
                }
            };
            let file = file_body::reference(new.kind, &new.body);
            Self { new, sender, salt, commit, file }
        };
        Ok(batch.into_iter().zip(salts).map(one).collect())
    }

    /// The receipt of this entry. `head` is the head that it became.
    #[must_use]
    pub fn receipt(&self, head: &ConversationHead) -> Receipt {
        let ConversationHead { n, time_ms, link } = *head;
        let conversation = self.new.conversation;
        Receipt { conversation, n, time_ms, salt: Some(self.salt), link }
    }

    /// The recorded form of this entry. `head` is the head that it became.
    #[must_use]
    pub fn into_entry(self, head: &ConversationHead) -> StoredEntry {
        let ConversationHead { n, time_ms, link } = *head;
        let NewEntry { message_id, kind, body, .. } = self.new;
        let content = StoredContent::Body(self.salt, body);
        StoredEntry { n, time_ms, message_id, kind, sender: self.sender, content, link }
    }
}

/// What the next entry of a conversation depends on: number, time and link of the newest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationHead {
    /// The newest entry's number; 0 if the conversation is empty.
    pub n: u64,
    /// The newest entry's time, ms since 1970 UTC.
    pub time_ms: u64,
    /// The newest entry's link; `link_0` if the conversation is empty.
    pub link: Link,
}

impl ConversationHead {
    /// The head of an empty conversation.
    #[must_use]
    pub fn empty(server_key: &ServerKey, conversation: ConversationId) -> Self {
        Self { n: 0, time_ms: 0, link: chain::link_0(server_key, conversation) }
    }
}

/// Assigns number, time and link to an entry. Returns the head after it.
///
/// `head` is the head of the entry's conversation. `now_ms` is the store's clock; an entry's time is
/// never less than that of the entry before.
///
/// The store has checked that the sender may append. A store whose unique index detects duplicates
/// may find one only when it writes the entry; it then answers with [`not_recorded`].
///
/// # Errors
/// [`StoreError::Database`] if the sender is longer than a link can cover.
pub fn next_head(
    head: &ConversationHead,
    entry: &PreparedEntry,
    now_ms: u64,
) -> Result<ConversationHead, StoreError> {
    let n = head.n + 1;
    let time_ms = now_ms.max(head.time_ms);
    let linked = Linked {
        conversation: entry.new.conversation,
        n,
        time_ms,
        message_id: &entry.new.message_id,
        kind: entry.new.kind,
        sender: &entry.sender,
        commit: &entry.commit,
    };
    let link = linked.link(&head.link).ok_or_else(|| {
        // Does not happen: a `Sender` has at most 65 bytes.
        StoreError::Database("a sender is too long".into())
    })?;
    Ok(ConversationHead { n, time_ms, link })
}

/// The answer to an entry that must not be recorded, because of `refused`.
///
/// `first` is the receipt of an earlier entry with the same user and message id. It is the answer
/// even if the sender is no longer a member.
#[must_use]
pub fn not_recorded(first: Option<Receipt>, refused: Appended) -> Appended {
    first.map_or(refused, Appended::Recorded)
}

/// A notice of the server to the members of a conversation.
///
/// # Errors
/// [`StoreError::Database`] if the system's random generator fails.
pub fn system_entry(
    conversation: ConversationId,
    text: String,
    now_ms: u64,
    salts: &Salts,
) -> Result<NewEntry, StoreError> {
    let mut id = salts.draw(1)?.first().map_or([0; 16], |random| random.0);
    // The form of every other message id: 48 bits of ms, then 80 random bits.
    for (to, from) in id.iter_mut().zip(&now_ms.to_be_bytes()[2..]) {
        *to = *from;
    }
    Ok(NewEntry {
        conversation,
        sender: Sender::Server,
        message_id: MessageId(id),
        kind: EntryKind::SYSTEM,
        body: Bytes::from(text),
    })
}

/// Random salts, drawn from the system in batches. A system call for each salt would cost more than
/// the hash that uses it.
#[derive(Default)]
pub struct Salts(Mutex<Vec<[u8; 16]>>);

/// Number of salts drawn at a time: 4 KiB of randomness.
const SALTS: usize = 256;

impl Salts {
    /// Returns `count` salts. No salt is returned twice.
    fn draw(&self, count: usize) -> Result<Vec<Salt>, StoreError> {
        let mut drawn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.len() < count {
            let have = drawn.len();
            drawn.resize(count.max(SALTS), [0; 16]);
            let (_, new) = drawn.split_at_mut(have);
            if let Err(error) = getrandom::fill(new.as_flattened_mut()) {
                drawn.truncate(have);
                return Err(StoreError::Database(format!("no randomness: {error}")));
            }
        }
        let keep = drawn.len() - count;
        Ok(drawn.drain(keep..).map(Salt).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use twinlock_core::chain::Position;
    use twinlock_core::id::Name;

    use super::*;

    const CONVERSATION: ConversationId = 7;
    const SERVER_KEY: ServerKey = ServerKey([1; 32]);

    fn empty() -> ConversationHead {
        ConversationHead::empty(&SERVER_KEY, CONVERSATION)
    }

    fn prepared(count: u8) -> Vec<PreparedEntry> {
        let sender = Sender::new(&Name::new("ada").unwrap(), None);
        let new = |n: u8| NewEntry {
            conversation: CONVERSATION,
            sender: if n == 2 { Sender::Server } else { sender.clone() },
            message_id: MessageId([n; 16]),
            kind: EntryKind::TEXT,
            body: Bytes::from(vec![n]),
        };
        PreparedEntry::batch((0..count).map(new).collect(), &Salts::default()).unwrap()
    }

    fn next(head: &ConversationHead, entry: &PreparedEntry, now_ms: u64) -> ConversationHead {
        next_head(head, entry, now_ms).unwrap()
    }

    #[test]
    fn sequencer__numbers_and_links_verify_as_a_client_does() {
        let mut head = empty();
        let mut position = Position::new(CONVERSATION, 0, head.link);
        for entry in prepared(5) {
            head = next(&head, &entry, 10);
            let recorded = entry.clone().into_entry(&head);
            let linked = Linked {
                conversation: CONVERSATION,
                n: recorded.n,
                time_ms: recorded.time_ms,
                message_id: &recorded.message_id,
                kind: recorded.kind,
                sender: &recorded.sender,
                commit: &entry.commit,
            };
            assert_eq!(position.advance(&linked, None).unwrap(), recorded.link);
            let receipt = entry.receipt(&head);
            assert_eq!((receipt.n, receipt.time_ms, receipt.link), (head.n, 10, head.link));
            assert_eq!(
                recorded.content,
                StoredContent::Body(receipt.salt.unwrap(), entry.new.body)
            );
        }
        assert_eq!(head.n, 5);
    }

    #[test]
    fn sequencer__time_never_decreases() {
        let entries = prepared(3);
        let mut head = empty();
        let times = [(5, 5), (3, 5), (6, 6)];
        for (entry, (now_ms, time_ms)) in entries.iter().zip(times) {
            head = next(&head, entry, now_ms);
            assert_eq!(head.time_ms, time_ms);
        }
    }

    #[test]
    fn sequencer__duplicate_gets_its_first_receipt_also_after_leaving() {
        let entries = prepared(1);
        let first = entries[0].receipt(&next(&empty(), &entries[0], 1));
        let refused = Appended::NotAMember;
        let answer = not_recorded(Some(first.clone()), refused.clone());
        assert_eq!(answer, Appended::Recorded(first));
        assert_eq!(not_recorded(None, refused.clone()), refused);
    }

    #[test]
    fn sequencer__system_entries_have_ids_of_their_time() {
        let salts = Salts::default();
        let now_ms = 0x0102_0304_0506_0708;
        let entry = || system_entry(CONVERSATION, "ada left".into(), now_ms, &salts).unwrap();
        let [one, two] = [entry(), entry()];
        assert_eq!(one.message_id.0[..6], [3, 4, 5, 6, 7, 8]);
        assert_ne!(one.message_id, two.message_id);
        assert_eq!(
            (one.sender, one.kind, &*one.body),
            (Sender::Server, EntryKind::SYSTEM, &b"ada left"[..])
        );
    }

    #[test]
    fn sequencer__salts_are_distinct() {
        let salts = Salts::default();
        let counts = [1, 300, 2, 256];
        let all: Vec<_> = counts.into_iter().flat_map(|count| salts.draw(count).unwrap()).collect();
        assert_eq!(all.len(), 559);
        assert_eq!(all.iter().map(|salt| salt.0).collect::<HashSet<_>>().len(), 559);
    }
}
