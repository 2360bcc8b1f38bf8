//! Pending signals, changed conversations and presence of a session, and its last items.
//!
//! Their reads of the store are futures apart from the request in progress: one page of entries and
//! one changed conversation at a time. A read waits for its user's turn, and the session must not.

use std::future::poll_fn;
use std::task::{Poll, ready};

use futures_util::future::BoxFuture;
use twinlock_core::frame::CloseCode;
use twinlock_core::id::ConversationId;
use twinlock_core::proto::{self, item::What};
use twinlock_store::{StoreError, StoredConversation};
use twinlock_transport::transport::Transport;

use super::super::follow::{Cursors, ROOM, ReadPage};
use super::end::SessionEnd;
use super::files::next_done;
use super::in_progress::next_finished;
use super::{PresenceProgress, Rights, SessionLoop};
use crate::bus::PendingSignals;
use crate::convert;

/// Presence changes sent at a time.
const PRESENCE: usize = 500;

/// A changed conversation that is being looked up.
pub(super) struct ConversationLookup {
    conversation: ConversationId,
    found: BoxFuture<'static, Result<Option<StoredConversation>, StoreError>>,
}

/// The output of a read for a session.
pub(super) enum CompletedRead {
    Page(ReadPage),
    /// `None`: the user is no longer a member.
    Changed(ConversationId, Result<Option<StoredConversation>, StoreError>),
}

/// The next completed read; pending while none is in progress. Cancel-safe.
pub(super) async fn next_read(
    cursors: &mut Cursors,
    lookup: &mut Option<ConversationLookup>,
) -> CompletedRead {
    // Written by hand, because a session keeps the memory of this future for its lifetime.
    poll_fn(|cx| {
        if let Poll::Ready(read) = cursors.poll_page(cx) {
            return Poll::Ready(CompletedRead::Page(read));
        }
        let Some(ConversationLookup { conversation, found }) = lookup else { return Poll::Pending };
        let conversation = *conversation;
        let found = ready!(found.as_mut().poll(cx));
        *lookup = None;
        Poll::Ready(CompletedRead::Changed(conversation, found))
    })
    .await
}

impl<S: Transport> SessionLoop<S> {
    pub(super) async fn take_signals(&mut self) -> Result<(), SessionEnd> {
        let PendingSignals { new_entries, mut changed, presence, close } =
            self.handle.take_signals();
        if let Some(code) = close {
            return Err(self.send_last_items(code).await);
        }
        // Before the client's READY, only READY and CLOSE may be sent. The client cannot follow or
        // watch before it, and sees changes when it asks.
        if !self.connection.session().is_open() {
            return Ok(());
        }
        self.cursors.add_new_entries(new_entries);
        self.changed.append(&mut changed);
        if presence && let PresenceProgress::Sent(seen) = self.presence {
            self.presence = PresenceProgress::Behind(seen);
        }
        Ok(())
    }

    /// Whether something is to be sent: it waits for room or is being read.
    pub(super) fn has_updates(&self) -> bool {
        self.cursors.have_entries()
            || self.lookup.is_some()
            || self.may_send_changes() && self.has_changes()
    }

    fn has_changes(&self) -> bool {
        !self.changed.is_empty() || matches!(self.presence, PresenceProgress::Behind(_))
    }

    /// Backlog, in bytes, at or below which waiting items can be sent; `None` if none wait.
    pub(super) fn room_for_updates(&self) -> Option<usize> {
        if self.may_send_changes() && self.lookup.is_none() && self.has_changes() {
            Some(ROOM - 1)
        } else if self.cursors.want_room() {
            Some(self.cursors.room() - 1)
        } else {
            None
        }
    }

    /// Whether changes may be sent. An answer must not follow a change that is newer than it, so
    /// changes wait for the request in progress. Entries do not: their numbers order them.
    fn may_send_changes(&self) -> bool {
        self.in_progress.as_ref().is_none()
    }

    /// Sends changes and entries while there is room, and starts the reads for them.
    pub(super) fn send_updates(&mut self) -> Result<(), SessionEnd> {
        if self.may_send_changes() {
            self.send_changes()?;
        }
        let Some(user) = self.handle.user() else { return Ok(()) };
        // A user who left a conversation must get none of its entries: while no request is in
        // progress, a change is sent before them.
        let changes = self.may_send_changes();
        let lookup = self.lookup.as_ref().map(|lookup| lookup.conversation);
        let waits = |conversation| {
            lookup == Some(conversation) || changes && self.changed.contains(&conversation)
        };
        self.cursors.send_entries(
            &self.services.record,
            user,
            self.connection.session_mut(),
            &mut self.writer,
            waits,
        );
        Ok(())
    }

    /// Looks up one changed conversation at a time, each before the next request starts.
    fn send_changes(&mut self) -> Result<(), SessionEnd> {
        let Rights::Device(person, _) = &self.rights else {
            self.changed.clear();
            return Ok(());
        };
        let room = self.connection.backlog() + self.writer.bytes() < ROOM;
        if room
            && self.lookup.is_none()
            && let Some(conversation) = self.changed.pop_first()
        {
            let (record, user) = (self.services.record.clone(), person.user.clone());
            let found = Box::pin(async move {
                let asker = user.clone();
                let read = record.read(&user, |store| async move {
                    store.conversation(&asker, conversation).await
                });
                read.await
            });
            self.lookup = Some(ConversationLookup { conversation, found });
        }
        while self.connection.backlog() + self.writer.bytes() < ROOM
            && let PresenceProgress::Behind(seen) = self.presence
        {
            self.send_presence(seen)?;
        }
        Ok(())
    }

    /// Sends the output of a read.
    pub(super) fn send_read(&mut self, read: CompletedRead) -> Result<(), SessionEnd> {
        let (id, found) = match read {
            CompletedRead::Page(read) => {
                let session = self.connection.session_mut();
                return Ok(self.cursors.take_page(read, session, &mut self.writer)?);
            }
            CompletedRead::Changed(id, found) => (id, found?),
        };
        let item = match found {
            Some(conversation) => convert::conversation(&conversation),
            None => {
                self.unfollow(id);
                proto::Conversation { id, ..proto::Conversation::default() }
            }
        };
        Ok(self.writer.push(self.connection.session_mut(), What::Conversation(item))?)
    }

    fn send_presence(&mut self, seen: u64) -> Result<(), SessionEnd> {
        let (changes, seen) = self.services.bus.presence_since(seen, PRESENCE);
        let all = changes.len() < PRESENCE;
        self.presence =
            if all { PresenceProgress::Sent(seen) } else { PresenceProgress::Behind(seen) };
        for (user, online) in changes {
            let presence = proto::Presence { user: user.to_string(), online };
            self.writer.push(self.connection.session_mut(), What::Presence(presence))?;
        }
        Ok(())
    }

    /// Sends the last items before the server closes the session, and drops queued requests.
    ///
    /// The items are acks of everything that the recorder has, the answer to a change in progress
    /// and, at a shutdown, the time to reconnect.
    pub(super) async fn send_last_items(&mut self, code: CloseCode) -> SessionEnd {
        self.drop_requests();
        // Not polled from here on.
        self.lookup = None;
        self.cursors.stop_reading();
        let last_items = async {
            if let Some(finished) = next_finished(&mut self.in_progress).await {
                self.finish(finished)?;
            }
            while !self.appends.is_empty()
                && let Some(recorded) = self.appends.next().await
            {
                self.acknowledge(recorded)?;
            }
            while self.files.as_ref().is_some_and(|files| files.are_ending())
                && let Some(done) = next_done(&mut self.files).await
            {
                self.complete_job(done)?;
            }
            let session = self.connection.session_mut();
            if session.is_open() {
                if code == CloseCode::Shutdown {
                    let seconds = self.services.env.config.come_back.as_secs();
                    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
                    let away = What::GoingAway(proto::GoingAway { seconds });
                    self.writer.push(session, away)?;
                }
                self.writer.flush(session)?;
            }
            Ok(SessionEnd::Close(code))
        };
        last_items.await.unwrap_or_else(|end: SessionEnd| end)
    }
}
