//! Cursors of a session: its position in each conversation it follows.
//!
//! Recent entries are sent from memory. Older ones are read from the store a page at a time, in a
//! future that the session polls together with its connection. No part of the session waits for it.

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
use twinlock_store::{EntryPage, ReadLimit, StoreError};

use super::frame_writer::{ENTRY_HEAD, FRAME_HEAD, FrameWriter};
use crate::bus::{Bus, SessionHandle, Tail, TopicSubscription};
use crate::convert;
use crate::limits::throttle::log_fault;
use crate::record::Record;

/// Backlog, in bytes, from which on a session's cursors pause. About two full frames: enough to
/// keep the connection busy while the next entries are read.
pub(crate) const ROOM: usize = 128 * 1024;
/// Size of one read from the tail or the store: about a full frame.
const PAGE: ReadLimit = ReadLimit { entries: 512, bytes: 64 * 1024 };

#[derive(Default)]
pub(crate) struct Cursors {
    at: HashMap<ConversationId, Cursor>,
    /// Conversations that may have new entries in memory.
    pending: BTreeSet<ConversationId>,
    /// Conversations whose next entries are only in the store. Disjoint from `pending`.
    stored: BTreeSet<ConversationId>,
    /// The page that is being read for one of them.
    reading: Option<PageInProgress>,
    /// A cursor pauses because of the backlog.
    paused: bool,
    /// The conversation served last. They take turns, so that a busy one does not starve the
    /// others.
    served: ConversationId,
}

struct Cursor {
    position: u64,
    following: Box<dyn TopicSubscription>,
}

/// A page that is being read.
struct PageInProgress {
    conversation: ConversationId,
    /// Position of the cursor that the page continues.
    position: u64,
    page: BoxFuture<'static, Result<EntryPage, StoreError>>,
}

/// A page that was read.
pub(crate) struct ReadPage {
    conversation: ConversationId,
    position: u64,
    page: Result<EntryPage, StoreError>,
}

/// `Item` with `Entries` in the protocol's encoding, built from encoded entries, which are the same
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
    /// Follows a conversation from `position` on. An existing cursor moves there.
    pub(crate) fn follow(
        &mut self,
        bus: &dyn Bus,
        session: &Arc<SessionHandle>,
        conversation: ConversationId,
        position: u64,
    ) {
        self.forget_new_entries(conversation);
        let following = bus.follow(session, conversation);
        self.at.insert(conversation, Cursor { position, following });
    }

    pub(crate) fn unfollow(&mut self, conversation: ConversationId) {
        self.at.remove(&conversation);
        self.forget_new_entries(conversation);
    }

    /// Forgets pending entries of this conversation, and the page in progress, which continues a
    /// cursor that is gone.
    fn forget_new_entries(&mut self, conversation: ConversationId) {
        self.pending.remove(&conversation);
        self.stored.remove(&conversation);
        self.reading.take_if(|reading| reading.conversation == conversation);
    }

    /// Whether following this conversation would exceed `max`.
    pub(crate) fn is_full(&self, conversation: ConversationId, max: usize) -> bool {
        self.at.len() >= max && !self.at.contains_key(&conversation)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Notes that these conversations have entries after their cursors.
    pub(crate) fn add_new_entries(&mut self, mut conversations: BTreeSet<ConversationId>) {
        for conversation in &conversations {
            self.stored.remove(conversation);
        }
        self.pending.append(&mut conversations);
    }

    /// Whether a cursor has entries to send.
    pub(crate) fn have_entries(&self) -> bool {
        !self.pending.is_empty() || !self.stored.is_empty() || self.reading.is_some()
    }

    /// Whether a cursor could send more with a smaller backlog.
    pub(crate) fn want_room(&self) -> bool {
        self.paused
    }

    /// Backlog, in bytes, from which on the cursors pause. Space is reserved for the page in
    /// progress.
    pub(crate) fn room(&self) -> usize {
        if self.reading.is_some() { ROOM - PAGE.bytes } else { ROOM }
    }

    /// The page in progress, once it is read; pending while there is none. Poll it as long as it
    /// exists, because it may hold a read turn.
    pub(crate) fn poll_page(&mut self, cx: &mut Context<'_>) -> Poll<ReadPage> {
        let Some(PageInProgress { conversation, position, page }) = &mut self.reading else {
            return Poll::Pending;
        };
        let (conversation, position) = (*conversation, *position);
        let page = ready!(page.as_mut().poll(cx));
        self.reading = None;
        Poll::Ready(ReadPage { conversation, position, page })
    }

    /// Drops the page in progress.
    pub(crate) fn stop_reading(&mut self) {
        self.reading = None;
    }

    /// Sends a page, unless its cursor has moved.
    ///
    /// # Errors
    /// [`StoreError`] other than [`StoreError::Damaged`], which ends only this follow.
    pub(crate) fn take_page(
        &mut self,
        read: ReadPage,
        session: &mut Session,
        writer: &mut FrameWriter,
    ) -> Result<(), StoreError> {
        let ReadPage { conversation, position, page } = read;
        let cursor = self.at.get_mut(&conversation);
        let Some(cursor) = cursor.filter(|cursor| cursor.position == position) else {
            return Ok(());
        };
        let page = match page {
            Err(StoreError::Damaged(what)) => {
                let error = format!("conversation {conversation}: {what}");
                log_fault("a follower found the record damaged", error);
                self.unfollow(conversation);
                let _ended = writer.push(session, damaged(conversation, position + 1));
                return Ok(());
            }
            page => page?,
        };
        if page.entries.is_empty() {
            return Ok(());
        }
        cursor.position += page.entries.len() as u64;
        // Later entries may be in memory by now.
        self.stored.remove(&conversation);
        self.pending.insert(conversation);
        let encode = |entry| Bytes::from(convert::entry(entry).encode_to_vec());
        let _ended = writer.flush(session);
        send(conversation, page.entries.iter().map(encode).collect(), session);
        Ok(())
    }

    /// Sends entries from memory and starts to read the next page of the store, until the backlog
    /// is full.
    ///
    /// A cursor that pauses does not look for entries, and so gets no second signal. `is_deferred`
    /// selects conversations that are not served now.
    pub(crate) fn send_entries(
        &mut self,
        record: &Arc<Record>,
        user: &Name,
        session: &mut Session,
        writer: &mut FrameWriter,
        is_deferred: impl Fn(ConversationId) -> bool,
    ) {
        self.paused = false;
        while session.is_open()
            && let Some(conversation) = self.next(&is_deferred)
        {
            // A session that has ended accepts nothing; its driver notices the end.
            let _ended = writer.flush(session);
            if session.outgoing().len() >= self.room() {
                self.paused = true;
                return;
            }
            self.served = conversation;
            let Some(cursor) = self.at.get_mut(&conversation) else {
                self.forget_new_entries(conversation);
                continue;
            };
            // Before the read: entries that arrive during it signal the session again.
            cursor.following.begin_read();
            match cursor.following.after(cursor.position, PAGE.entries, PAGE.bytes) {
                Tail::UpToDate => self.forget_new_entries(conversation),
                Tail::Entries(entries) if entries.is_empty() => {
                    self.forget_new_entries(conversation)
                }
                Tail::Entries(entries) => {
                    cursor.position += entries.len() as u64;
                    self.forget_new_entries(conversation);
                    self.pending.insert(conversation);
                    send(conversation, entries, session);
                }
                Tail::Behind => {
                    let position = cursor.position;
                    self.pending.remove(&conversation);
                    if self.reading.is_some() {
                        self.stored.insert(conversation);
                    } else {
                        self.stored.remove(&conversation);
                        self.read(record, user, conversation, position);
                    }
                }
            }
        }
    }

    /// The next conversation in turn, after the one served last.
    fn next(&self, is_deferred: impl Fn(ConversationId) -> bool) -> Option<ConversationId> {
        let from = |first: ConversationId| {
            let next = |set: &BTreeSet<ConversationId>| {
                set.range(first..).copied().find(|&conversation| !is_deferred(conversation))
            };
            let stored = if self.reading.is_none() { next(&self.stored) } else { None };
            next(&self.pending).into_iter().chain(stored).min()
        };
        from(self.served.saturating_add(1)).or_else(|| from(0))
    }

    fn read(
        &mut self,
        record: &Arc<Record>,
        user: &Name,
        conversation: ConversationId,
        position: u64,
    ) {
        let (record, user) = (record.clone(), user.clone());
        let page = Box::pin(async move {
            let read = record
                .read(&user, |store| async move { store.read(conversation, position, PAGE).await });
            read.await
        });
        self.reading = Some(PageInProgress { conversation, position, page });
    }
}

fn damaged(conversation: ConversationId, n: u64) -> What {
    What::Damaged(proto::Damaged { conversation, n })
}

fn send(conversation: ConversationId, entries: Vec<Bytes>, session: &mut Session) {
    for entries in pack(entries, FRAME_HEAD, |entry| entry.len() + ENTRY_HEAD) {
        let entries = Some(EncodedEntries { conversation, entries });
        let frame = EncodedFrame { items: vec![EncodedItem { entries }] };
        // A session that has ended accepts nothing; its driver notices the end.
        let _ended = session.send_app(&frame.encode_to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follow__preencoded_entries_decode_as_protocol() {
        let entry = |n| proto::Entry { n, body: "hello".into(), ..proto::Entry::default() };
        let encoded = [3, 4].map(|n| Bytes::from(entry(n).encode_to_vec()));
        let entries = Some(EncodedEntries { conversation: 9, entries: encoded.to_vec() });
        let frame = EncodedFrame { items: vec![EncodedItem { entries }] };
        let read = proto::ToClient::decode(&*frame.encode_to_vec()).unwrap();
        let expected = proto::Entries { conversation: 9, entries: vec![entry(3), entry(4)] };
        assert_eq!(read.items, [proto::Item { what: Some(What::Entries(expected)) }]);
    }
}
