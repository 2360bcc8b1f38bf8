//! The cursors of one line: where it stands in each conversation it follows.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, item::What};
use twinlock_core::session::Session;
use twinlock_store::{Limit, StoreError};

use super::out::Out;
use super::requests::{ENTRY_HEAD, FRAME_HEAD};
use crate::convert;
use crate::hub::{Following, Handle, Tail};
use crate::server::Shared;

/// Bytes waiting to be written beyond which a line's cursors stand still. About two full frames:
/// enough to keep the line busy while the next are read.
pub(crate) const ROOM: usize = 128 * 1024;
/// Pages of the store read in a turn: between two turns the connection is looked at.
const PAGES: usize = 32;
/// Taken from the tail or the store at a time: about a full frame.
const PAGE: Limit = Limit { entries: 512, bytes: 64 * 1024 };

#[derive(Default)]
pub(crate) struct Cursors {
    at: HashMap<ConversationId, Cursor>,
    /// Conversations with news that have not all been sent.
    behind: BTreeSet<ConversationId>,
    /// The one served last: they take turns, so that a busy one does not starve the others.
    served: ConversationId,
}

struct Cursor {
    position: u64,
    following: Following,
}

/// `Item` with `Entries` as the wire has it, of entries that are encoded already: they are the same
/// for every follower.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedFrame {
    #[prost(message, repeated, tag = "1")]
    items: Vec<EncodedItem>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedItem {
    #[prost(message, optional, tag = "2")]
    entries: Option<EncodedEntries>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncodedEntries {
    #[prost(uint64, tag = "1")]
    conversation: ConversationId,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    entries: Vec<Bytes>,
}

impl Cursors {
    /// From `position` on; a cursor that is there moves to it.
    pub(crate) fn follow(
        &mut self,
        shared: &Shared,
        line: &Arc<Handle>,
        conversation: ConversationId,
        position: u64,
    ) {
        let following = shared.hub.topics.follow(line, conversation);
        self.at.insert(conversation, Cursor { position, following });
    }

    pub(crate) fn unfollow(&mut self, conversation: ConversationId) {
        self.at.remove(&conversation);
        self.behind.remove(&conversation);
    }

    /// Following this conversation would be more than `most`.
    pub(crate) fn is_full(&self, conversation: ConversationId, most: usize) -> bool {
        self.at.len() >= most && !self.at.contains_key(&conversation)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// There is something after these cursors.
    pub(crate) fn add_news(&mut self, mut conversations: BTreeSet<ConversationId>) {
        self.behind.append(&mut conversations);
    }

    /// Some have not been sent all there is.
    pub(crate) fn are_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Sends on from the cursors, until none is behind, the line has enough to write or [`PAGES`] were
    /// read. A line that
    /// has enough does not even look, and so is not told again.
    pub(crate) async fn pump(
        &mut self,
        shared: &Shared,
        user: Option<&Name>,
        session: &mut Session,
        out: &mut Out,
    ) -> Result<(), StoreError> {
        let mut pages = 0;
        while session.outgoing().len() < ROOM && session.is_open() && pages < PAGES {
            let next = self.behind.range(self.served.saturating_add(1)..).next();
            let Some(conversation) = next.or(self.behind.first()).copied() else { break };
            self.served = conversation;
            let Some(cursor) = self.at.get_mut(&conversation) else {
                self.behind.remove(&conversation);
                continue;
            };
            // Before looking: what comes while we look is told again.
            cursor.following.look();
            let entries = match cursor.following.after(cursor.position, PAGE.entries, PAGE.bytes) {
                Tail::UpToDate => Vec::new(),
                Tail::Entries(entries) => entries,
                Tail::Behind => {
                    pages += 1;
                    let turn = match user {
                        Some(user) => Some(shared.reads.turn(user).await),
                        None => None,
                    };
                    let page = shared.store.read(conversation, cursor.position, PAGE).await;
                    drop(turn);
                    let page = match page {
                        // Ends this follow and no other.
                        Err(StoreError::Damaged(what)) => {
                            tracing::error!(conversation, what, "the record is damaged");
                            let n = cursor.position + 1;
                            self.unfollow(conversation);
                            let _ended = out.push(session, damaged(conversation, n));
                            continue;
                        }
                        page => page?,
                    };
                    let encode = |entry| Bytes::from(convert::entry(entry).encode_to_vec());
                    page.entries.iter().map(encode).collect()
                }
            };
            if entries.is_empty() {
                self.behind.remove(&conversation);
                continue;
            }
            cursor.position += entries.len() as u64;
            // A session that has ended takes nothing; its end is seen where it is driven.
            let _ended = out.flush(session);
            send(conversation, entries, session);
        }
        Ok(())
    }
}

fn damaged(conversation: ConversationId, n: u64) -> What {
    What::Damaged(proto::Damaged { conversation, n })
}

fn send(conversation: ConversationId, entries: Vec<Bytes>, session: &mut Session) {
    for entries in pack(entries, FRAME_HEAD, |entry| entry.len() + ENTRY_HEAD) {
        let entries = Some(EncodedEntries { conversation, entries });
        let frame = EncodedFrame { items: vec![EncodedItem { entries }] };
        // One that has ended takes nothing; its end is seen where it is driven.
        let _ended = session.send_app(&frame.encode_to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_encoded_beforehand_read_as_the_wire_says() {
        let entry = |n| proto::Entry { n, body: "hello".into(), ..proto::Entry::default() };
        let encoded = [3, 4].map(|n| Bytes::from(entry(n).encode_to_vec()));
        let entries = Some(EncodedEntries { conversation: 9, entries: encoded.to_vec() });
        let frame = EncodedFrame { items: vec![EncodedItem { entries }] };
        let read = proto::ToClient::decode(&*frame.encode_to_vec()).unwrap();
        let expected = proto::Entries { conversation: 9, entries: vec![entry(3), entry(4)] };
        assert_eq!(read.items, [proto::Item { what: Some(What::Entries(expected)) }]);
    }
}
