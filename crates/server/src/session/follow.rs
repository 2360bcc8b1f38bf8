//! The cursors of one line: where it stands in each conversation it follows.
//!
//! Recent entries are sent from memory. Older ones are read from the store, a page at a time, in a
//! future that the session polls together with its connection, so no part of the session waits for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message as _;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::pack::pack;
use twinlock_core::proto::{self, item::What};
use twinlock_core::session::Session;
use twinlock_store::{Limit, Page, StoreError};

use super::out::Out;
use super::requests::{ENTRY_HEAD, FRAME_HEAD};
use crate::convert;
use crate::hub::{Following, Handle, Tail};
use crate::limits::throttle::log_fault;
use crate::server::Shared;

/// Bytes waiting to be written beyond which a line's cursors stand still. About two full frames:
/// enough to keep the line busy while the next are read.
pub(crate) const ROOM: usize = 128 * 1024;
/// Taken from the tail or the store at a time: about a full frame.
const PAGE: Limit = Limit { entries: 512, bytes: 64 * 1024 };

#[derive(Default)]
pub(crate) struct Cursors {
    at: HashMap<ConversationId, Cursor>,
    /// Conversations that may have news in memory.
    behind: BTreeSet<ConversationId>,
    /// Conversations whose next entries are only in the store. None is in `behind` as well.
    stored: BTreeSet<ConversationId>,
    /// The page that is read for one of them.
    reading: Option<Reading>,
    /// A cursor stands still because enough waits to be written.
    stuffed: bool,
    /// The one served last: they take turns, so that a busy one does not starve the others.
    served: ConversationId,
}

struct Cursor {
    position: u64,
    following: Following,
}

/// A page under way.
struct Reading {
    conversation: ConversationId,
    /// Of the cursor that it continues.
    position: u64,
    page: BoxFuture<'static, Result<Page, StoreError>>,
}

/// A page that was read.
pub(crate) struct Read {
    conversation: ConversationId,
    position: u64,
    page: Result<Page, StoreError>,
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
        self.forget_news(conversation);
        let following = shared.hub.topics.follow(line, conversation);
        self.at.insert(conversation, Cursor { position, following });
    }

    pub(crate) fn unfollow(&mut self, conversation: ConversationId) {
        self.at.remove(&conversation);
        self.forget_news(conversation);
    }

    /// Drops the page under way for this conversation: it continues a cursor that is gone.
    fn forget_news(&mut self, conversation: ConversationId) {
        self.behind.remove(&conversation);
        self.stored.remove(&conversation);
        self.reading.take_if(|reading| reading.conversation == conversation);
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
        for conversation in &conversations {
            self.stored.remove(conversation);
        }
        self.behind.append(&mut conversations);
    }

    /// Some have not been sent all there is.
    pub(crate) fn are_behind(&self) -> bool {
        !self.behind.is_empty() || !self.stored.is_empty() || self.reading.is_some()
    }

    /// Whether one could be sent more now if less waited to be written.
    pub(crate) fn want_room(&self) -> bool {
        self.stuffed
    }

    /// Bytes waiting to be written from which on the cursors stand still. The page under way has its
    /// room reserved.
    pub(crate) fn room(&self) -> usize {
        if self.reading.is_some() { ROOM - PAGE.bytes } else { ROOM }
    }

    /// The page under way, once it was read; pending while there is none. Poll it for as long as it is
    /// there: it may hold a turn at reading.
    pub(crate) fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<Read> {
        let Some(Reading { conversation, position, page }) = &mut self.reading else {
            return Poll::Pending;
        };
        let (conversation, position) = (*conversation, *position);
        let page = ready!(page.as_mut().poll(cx));
        self.reading = None;
        Poll::Ready(Read { conversation, position, page })
    }

    /// Gives up the page under way.
    pub(crate) fn stop_reading(&mut self) {
        self.reading = None;
    }

    /// Sends a page, unless its cursor has moved.
    ///
    /// # Errors
    /// [`StoreError`] other than [`StoreError::Damaged`], which ends this follow and no other.
    pub(crate) fn take_page(
        &mut self,
        read: Read,
        session: &mut Session,
        out: &mut Out,
    ) -> Result<(), StoreError> {
        let Read { conversation, position, page } = read;
        let cursor = self.at.get_mut(&conversation);
        let Some(cursor) = cursor.filter(|cursor| cursor.position == position) else {
            return Ok(());
        };
        let page = match page {
            Err(StoreError::Damaged(what)) => {
                let error = format!("conversation {conversation}: {what}");
                log_fault("a follower found the record damaged", error);
                self.unfollow(conversation);
                let _ended = out.push(session, damaged(conversation, position + 1));
                return Ok(());
            }
            page => page?,
        };
        if page.entries.is_empty() {
            return Ok(());
        }
        cursor.position += page.entries.len() as u64;
        // More of it may be in memory by now.
        self.stored.remove(&conversation);
        self.behind.insert(conversation);
        let encode = |entry| Bytes::from(convert::entry(entry).encode_to_vec());
        let _ended = out.flush(session);
        send(conversation, page.entries.iter().map(encode).collect(), session);
        Ok(())
    }

    /// Sends from memory what the cursors are behind by, and begins to read the next page of the store,
    /// until enough waits to be written. A cursor without room does not look, and so gets no second
    /// mark. `waits` names conversations that are not served now.
    pub(crate) fn pump(
        &mut self,
        shared: &Arc<Shared>,
        user: &Name,
        session: &mut Session,
        out: &mut Out,
        waits: impl Fn(ConversationId) -> bool,
    ) {
        self.stuffed = false;
        while session.is_open()
            && let Some(conversation) = self.next(&waits)
        {
            // A session that has ended takes nothing; its end is seen where it is driven.
            let _ended = out.flush(session);
            if session.outgoing().len() >= self.room() {
                self.stuffed = true;
                return;
            }
            self.served = conversation;
            let Some(cursor) = self.at.get_mut(&conversation) else {
                self.forget_news(conversation);
                continue;
            };
            // Before looking: what comes while we look is told again.
            cursor.following.look();
            match cursor.following.after(cursor.position, PAGE.entries, PAGE.bytes) {
                Tail::UpToDate => self.forget_news(conversation),
                Tail::Entries(entries) if entries.is_empty() => self.forget_news(conversation),
                Tail::Entries(entries) => {
                    cursor.position += entries.len() as u64;
                    self.forget_news(conversation);
                    self.behind.insert(conversation);
                    send(conversation, entries, session);
                }
                Tail::Behind => {
                    let position = cursor.position;
                    self.behind.remove(&conversation);
                    if self.reading.is_some() {
                        self.stored.insert(conversation);
                    } else {
                        self.stored.remove(&conversation);
                        self.read(shared, user, conversation, position);
                    }
                }
            }
        }
    }

    /// The conversation whose turn it is, after the one served last.
    fn next(&self, waits: impl Fn(ConversationId) -> bool) -> Option<ConversationId> {
        let from = |first: ConversationId| {
            let next = |set: &BTreeSet<ConversationId>| {
                set.range(first..).copied().find(|&conversation| !waits(conversation))
            };
            let stored = if self.reading.is_none() { next(&self.stored) } else { None };
            next(&self.behind).into_iter().chain(stored).min()
        };
        from(self.served.saturating_add(1)).or_else(|| from(0))
    }

    fn read(
        &mut self,
        shared: &Arc<Shared>,
        user: &Name,
        conversation: ConversationId,
        position: u64,
    ) {
        let (shared, user) = (shared.clone(), user.clone());
        let page = Box::pin(async move {
            let read = shared
                .read(&user, |store| async move { store.read(conversation, position, PAGE).await });
            read.await
        });
        self.reading = Some(Reading { conversation, position, page });
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
