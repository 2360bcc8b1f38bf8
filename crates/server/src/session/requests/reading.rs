//! Requests that read a conversation, and the read marker.

use std::slice::from_ref;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use twinlock_core::id::{ConversationId, Link};
use twinlock_core::limits::{MAX_BODY, MAX_SEARCH};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::{EntryPage, ReadLimit, SLICE, SearchFrom, StoredContent, StoredEntry};

use super::{LIST, RequestContext, RequestResult, at_most, done};
use crate::convert::{self, copy};
use crate::refusal::{RequestRefusal, refuse, storage, too_large};
use crate::session::frame_writer::{ENTRY_HEAD, FRAME_HEAD};

/// Maximum entries of one answer, and bytes of bodies requested from the store.
const PAGE: ReadLimit = ReadLimit { entries: 512, bytes: 32 * 1024 };
/// When to retry a search that took too long, seconds.
const SEARCH_RETRY_SECONDS: u32 = 5;

impl RequestContext<'_> {
    pub(crate) async fn read(&self, want: proto::Read) -> RequestResult {
        let conversation = self.own(want.conversation).await?;
        if want.after > conversation.head {
            return refuse(RefusalReason::Ahead);
        }
        let limit = ReadLimit { entries: at_most(want.limit, PAGE.entries), ..PAGE };
        let page = self.page(want.conversation, want.after, limit).await?;
        let entries = page.entries.iter().map(|entry| {
            let link = if want.links { copy(&entry.link.0) } else { Bytes::new() };
            proto::Entry { link, ..convert::entry(entry) }
        });
        Ok(Answered::Page(proto::Page {
            conversation: want.conversation,
            after: want.after,
            link_after: copy(&page.link_after.0),
            head: page.head,
            entries: fit_a_frame(entries),
        }))
    }

    /// The stored link of entry `n`, or the initial link if `n` is 0.
    async fn link(&self, conversation: ConversationId, n: u64) -> Result<Link, RequestRefusal> {
        let one = ReadLimit { entries: 1, bytes: 0 };
        Ok(self.page(conversation, n, one).await?.link_after)
    }

    async fn page(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: ReadLimit,
    ) -> Result<EntryPage, RequestRefusal> {
        self.reading(|store| async move { store.read(conversation, after, limit).await }).await
    }

    /// The answer to a follow from `want.after`, if it may begin.
    pub(crate) async fn prepare_follow(
        &self,
        want: &proto::Follow,
    ) -> Result<proto::Following, RequestRefusal> {
        let conversation = self.own(want.conversation).await?;
        if want.after > conversation.head {
            return refuse(RefusalReason::Ahead);
        }
        Ok(proto::Following {
            conversation: want.conversation,
            after: want.after,
            link_after: copy(&self.link(want.conversation, want.after).await?.0),
            head: conversation.head,
        })
    }

    pub(crate) async fn search(&self, want: proto::Search) -> RequestResult {
        let conversation = self.own(want.conversation).await?;
        if want.text.len() > MAX_SEARCH {
            return too_large(proto::Limit::SearchBytes, MAX_SEARCH);
        }
        let before = if want.before == 0 { u64::MAX } else { want.before };
        let max = at_most(want.limit, LIST);
        let time = self.services.env.config.limits.search;
        let until = Instant::now() + time;
        let found = timeout_at(until, self.search_slices(&want, before, max, until)).await;
        let Some(found) = found.unwrap_or(Ok(None))? else {
            let busy = RequestRefusal::for_now(RefusalReason::Busy, SEARCH_RETRY_SECONDS);
            return Err(busy.at(proto::Limit::SearchSeconds, time.as_secs()));
        };
        Ok(Answered::Page(proto::Page {
            conversation: want.conversation,
            head: conversation.head,
            entries: fit_a_frame(found.iter().map(convert::entry)),
            ..proto::Page::default()
        }))
    }

    /// Runs the slices of a search in order, each when it is this user's turn. `None`: not complete
    /// at `until`. If this future is dropped, the search ends with the current slice.
    async fn search_slices(
        &self,
        want: &proto::Search,
        before: u64,
        max: usize,
        until: Instant,
    ) -> Result<Option<Vec<StoredEntry>>, RequestRefusal> {
        let mut all = Vec::new();
        let mut room = MAX_BODY;
        let mut from = Some(SearchFrom::below(before));
        while let Some(at) = from
            && all.len() < max
        {
            if Instant::now() >= until {
                return Ok(None);
            }
            let limit = ReadLimit { entries: max - all.len(), bytes: room };
            let turn = self.services.record.search_turn(&self.person.user).await;
            let (conversation, text) = (want.conversation, want.text.clone());
            // Both turns last until the slice ends, even if the session has ended.
            let slice = self.reading(|store| async move {
                let found = store.search_some(conversation, &text, at, limit, SLICE).await;
                drop(turn);
                found
            });
            let found = slice.await?;
            let bytes: usize = found.entries.iter().map(size).sum();
            all.extend(found.entries);
            // The answer has no room for more.
            if bytes >= room {
                break;
            }
            room -= bytes;
            from = found.next;
        }
        Ok(Some(all))
    }

    pub(crate) async fn mark(&self, want: proto::Mark) -> RequestResult {
        self.own(want.conversation).await?;
        let marked = self
            .services
            .record
            .store
            .mark_read(&self.person.user, want.conversation, want.n)
            .await;
        marked.map_err(|e| storage(&e))?;
        self.services.bus.conversation_changed(from_ref(&self.person.user), want.conversation);
        done()
    }
}

/// Bytes of an entry's body.
fn size(entry: &StoredEntry) -> usize {
    if let StoredContent::Body(_, body) = &entry.content { body.len() } else { 0 }
}

/// As many entries as fit in a frame, at least one; the client continues after the last.
fn fit_a_frame(entries: impl Iterator<Item = proto::Entry>) -> Vec<proto::Entry> {
    let mut bytes = 0;
    let fits = |entry: &proto::Entry| {
        let first = bytes == 0;
        bytes += entry.encoded_len() + ENTRY_HEAD;
        first || bytes + FRAME_HEAD <= MAX_BODY
    };
    entries.take_while(fits).collect()
}
