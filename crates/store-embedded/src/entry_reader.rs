//! Reads entries: the tail and the index say where they are, the log has them.

use std::collections::HashSet;

use rusqlite::Connection;
use twinlock_core::chain::{self, Position};
use twinlock_core::id::{ConversationId, Link, MessageId, Name, Sender, ServerKey};
use twinlock_store::sequencer::ConversationHead;
use twinlock_store::{EntryPage, Newest, ReadLimit, Receipt, StoreError, StoredContent};

use crate::error::DbError;
use crate::index::IndexReader;
use crate::log::{Run, RunEntry, RunPlace, Segments};
use crate::tail::Tail;

/// Runs that one query of the index returns.
const RUNS: usize = 64;

impl RunPlace {
    /// The number of the run's newest entry.
    pub(crate) fn last(&self) -> u64 {
        self.first + u64::from(self.count).saturating_sub(1)
    }

    /// The sequence of entry `n`, which is in the run.
    pub(crate) fn seq_of(&self, n: u64) -> u64 {
        self.seq + n.saturating_sub(self.first)
    }
}

/// Access to the recorded entries.
#[derive(Clone, Copy)]
pub(crate) struct EntryReader<'a> {
    /// A connection to the index, outside a transaction: the tail may move into the index between
    /// two queries.
    pub(crate) index: &'a Connection,
    pub(crate) tail: &'a Tail,
    pub(crate) segments: &'a Segments,
}

impl EntryReader<'_> {
    fn index(&self) -> IndexReader<'_> {
        IndexReader(self.index)
    }

    /// The newest entry of a conversation.
    pub(crate) fn head(
        &self,
        conversation: ConversationId,
    ) -> Result<Option<ConversationHead>, DbError> {
        match self.tail.head(conversation) {
            Some(head) => Ok(Some(head)),
            None => self.index().head(conversation),
        }
    }

    /// [`Self::head`] as the log has it, for an entry that is linked to it: SQLite's pages have no
    /// checksum, and a wrong link would be in the record for ever.
    pub(crate) fn verified_head(
        &self,
        conversation: ConversationId,
    ) -> Result<Option<ConversationHead>, DbError> {
        if let Some(head) = self.tail.head(conversation) {
            return Ok(Some(head));
        }
        let head = self.index().head(conversation)?;
        let newest = self.index().runs_back_from(conversation, u64::MAX, 1)?;
        let logged = match newest.first() {
            Some(place) => self.run(place)?.entries().last().transpose(),
            None => Ok(None),
        };
        let logged = logged.map_err(StoreError::from)?;
        let logged =
            logged.map(|at| ConversationHead { n: at.n, time_ms: at.time_ms, link: at.link });
        if logged == head {
            return Ok(head);
        }
        Err(StoreError::Damaged(format!(
            "index.db has another newest entry of conversation {conversation} than the log: stop the \
             server, remove the file, and start it again"
        ))
        .into())
    }

    /// The newest number of a conversation and its link; 0 and `link_0` while it is empty.
    pub(crate) fn head_or_start(
        &self,
        conversation: ConversationId,
        server_key: &ServerKey,
    ) -> Result<(u64, Link), DbError> {
        let head = self.head(conversation)?;
        Ok(head.map_or_else(|| (0, chain::link_0(server_key, conversation)), |h| (h.n, h.link)))
    }

    /// Up to about `max` runs of a conversation, from the one that contains entry `n` on.
    fn runs_from(
        &self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Result<Vec<RunPlace>, DbError> {
        let tail = self.tail.runs_from(conversation, n, max);
        if tail.first().is_some_and(|run| run.first <= n) {
            return Ok(tail);
        }
        let mut runs = self.index().runs_from(conversation, n, max)?;
        if runs.len() < max {
            let after = runs.last().map_or(0, RunPlace::last);
            runs.extend(tail.into_iter().filter(|run| run.first > after));
        }
        Ok(runs)
    }

    /// Up to about `max` runs of a conversation, from the one that contains entry `n` backwards.
    pub(crate) fn runs_back_from(
        &self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Result<Vec<RunPlace>, DbError> {
        let mut runs = self.tail.runs_back_from(conversation, n, max);
        if runs.len() < max {
            let before = runs.last().map_or(n, |run| run.first.saturating_sub(1));
            runs.extend(self.index().runs_back_from(conversation, before, max)?);
        }
        Ok(runs)
    }

    /// The run that contains this sequence.
    pub(crate) fn run_of(&self, seq: u64) -> Result<Option<RunPlace>, DbError> {
        match self.tail.run_of(seq) {
            Some(run) => Ok(Some(run)),
            None => self.index().run_of(seq),
        }
    }

    /// Up to about `max` runs of the whole record, from the one that contains `seq` on.
    pub(crate) fn runs_by_seq(&self, seq: u64, max: usize) -> Result<Vec<RunPlace>, DbError> {
        let tail = self.tail.runs_by_seq(seq, max);
        if tail.first().is_some_and(|run| run.seq <= seq) {
            return Ok(tail);
        }
        let mut runs = self.index().runs_by_seq(seq, max)?;
        if runs.len() < max {
            let after = runs.last().map_or(0, |run| run.seq);
            runs.extend(tail.into_iter().filter(|run| run.seq > after));
        }
        Ok(runs)
    }

    /// Approximate size of the indexed entries from `seq` on, bytes.
    pub(crate) fn bytes_from(&self, seq: u64) -> Result<u64, DbError> {
        self.index().bytes_from(seq)
    }

    /// Reads a run from the log.
    pub(crate) fn run(&self, place: &RunPlace) -> Result<Run, DbError> {
        let bytes = self.segments.read(place.position, place.length).map_err(StoreError::from)?;
        let run = Run::decode(bytes).map_err(StoreError::from)?;
        if (run.conversation(), run.first(), run.count())
            != (place.conversation, place.first, place.count)
        {
            return Err(StoreError::Damaged(format!(
                "segment {} has at {} another run than entries {} to {} of conversation {}",
                place.position.segment,
                place.position.offset,
                place.first,
                place.last(),
                place.conversation
            ))
            .into());
        }
        Ok(run)
    }

    /// One entry, and the run that it is in.
    pub(crate) fn entry(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<(RunPlace, RunEntry)>, DbError> {
        let runs = self.runs_from(conversation, n, 1)?;
        let Some(place) = runs.into_iter().find(|run| (run.first..=run.last()).contains(&n)) else {
            return Ok(None);
        };
        for entry in self.run(&place)?.entries() {
            let entry = entry.map_err(StoreError::from)?;
            if entry.n == n {
                return Ok(Some((place, entry)));
            }
        }
        Ok(None)
    }

    /// The receipt of an entry.
    pub(crate) fn receipt(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<Receipt>, DbError> {
        let found = self.entry(conversation, n)?;
        Ok(found.map(|(_, entry)| Receipt {
            conversation,
            n,
            time_ms: entry.time_ms,
            // A half overwritten one is not a salt any more.
            salt: entry.body_matches().then_some(entry.salt),
            link: entry.link,
        }))
    }

    /// The receipt of this user's message, if it was recorded.
    pub(crate) fn receipt_of(
        &self,
        user: u64,
        message_id: &MessageId,
    ) -> Result<Option<Receipt>, DbError> {
        let place = match self.tail.recorded(user, message_id) {
            Some(place) => Some(place),
            None => self.index().id(user, message_id)?,
        };
        place.map_or(Ok(None), |(conversation, n)| self.receipt(conversation, n))
    }

    /// Reads a range of a conversation, and verifies every entry that it returns. `key` is the key
    /// that the conversation's `link_0` covers.
    pub(crate) fn page(
        &self,
        conversation: ConversationId,
        after: u64,
        max: ReadLimit,
        key: &ServerKey,
    ) -> Result<EntryPage, DbError> {
        let head = self.head(conversation)?;
        let head = head.unwrap_or_else(|| ConversationHead::empty(key, conversation));
        if after >= head.n {
            return Ok(EntryPage { link_after: head.link, head: head.n, entries: Vec::new() });
        }
        let mut page = PageBuilder {
            conversation,
            after,
            max,
            position: None,
            link_after: Link([0; 32]),
            entries: Vec::new(),
            bytes: 0,
        };
        if after == 0 {
            page.start(chain::link_0(key, conversation));
        }
        let mut next = after.max(1);
        'runs: while next <= head.n {
            let runs = self.runs_from(conversation, next, RUNS)?;
            if runs.is_empty() {
                break;
            }
            for place in runs {
                // The page ends before a gap, and before what cannot be read.
                let run = match self.run(&place) {
                    _ if place.first > next => break 'runs,
                    Ok(run) => run,
                    Err(error) if page.entries.is_empty() => return Err(error),
                    Err(_) => break 'runs,
                };
                for entry in run.entries() {
                    if !page.take(entry)? {
                        break 'runs;
                    }
                }
                next = place.last() + 1;
            }
        }
        if page.entries.is_empty() {
            let missing = if page.position.is_some() { after + 1 } else { after };
            return Err(gap(conversation, missing));
        }
        Ok(EntryPage { link_after: page.link_after, head: head.n, entries: page.entries })
    }

    /// Number of entries after number `after`, up to `last`, that this user sent.
    pub(crate) fn own_after(
        &self,
        conversation: ConversationId,
        user: &Name,
        after: u64,
        last: u64,
    ) -> Result<u64, DbError> {
        let (mut own, mut next) = (0, after + 1);
        while next <= last {
            let runs = self.runs_from(conversation, next, RUNS)?;
            let Some(end) = runs.last().map(RunPlace::last).filter(|end| *end >= next) else {
                break;
            };
            for place in runs {
                for entry in self.run(&place)?.entries() {
                    let entry = entry.map_err(StoreError::from)?;
                    let sender = Sender::parse(&entry.sender);
                    let is_own = sender.is_ok_and(|sender| sender.user() == Some(user));
                    own += u64::from((next..=last).contains(&entry.n) && is_own);
                }
            }
            next = end + 1;
        }
        Ok(own)
    }

    /// The newest entry of each conversation among the last `entries` of the record, newest first.
    pub(crate) fn newest(&self, entries: usize) -> Result<Vec<Newest>, DbError> {
        let mut runs = self.tail.newest_runs(entries);
        let below = runs.last().map_or(u64::MAX, |run| run.seq);
        let indexed = self.index().newest_runs(entries)?;
        runs.extend(indexed.into_iter().filter(|run| run.seq < below));
        let (mut seen, mut newest, mut left) = (HashSet::new(), Vec::new(), entries);
        for place in runs {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(place.count as usize);
            if !seen.insert(place.conversation) {
                continue;
            }
            let entry = match self.entry(place.conversation, place.last()) {
                Ok(Some((_, entry))) => entry,
                Ok(None) => return Err(gap(place.conversation, place.last())),
                // A read of the conversation reports it; the others are served.
                Err(DbError(StoreError::Damaged(problem))) => {
                    tracing::error!(problem, "the newest entry of a conversation is damaged");
                    continue;
                }
                Err(error) => return Err(error),
            };
            newest.push(Newest {
                seq: place.seq + u64::from(place.count) - 1,
                conversation: place.conversation,
                n: entry.n,
                time_ms: entry.time_ms,
                link: entry.link,
            });
        }
        Ok(newest)
    }
}

fn gap(conversation: ConversationId, n: u64) -> DbError {
    StoreError::Damaged(format!("entry {n} of conversation {conversation} is missing")).into()
}

/// A page while it is read.
struct PageBuilder {
    conversation: ConversationId,
    after: u64,
    max: ReadLimit,
    /// The newest verified entry; `None` until entry `after` is found.
    position: Option<Position>,
    link_after: Link,
    entries: Vec<twinlock_store::StoredEntry>,
    bytes: usize,
}

impl PageBuilder {
    fn start(&mut self, link: Link) {
        self.link_after = link;
        self.position = Some(Position::new(self.conversation, self.after, link));
    }

    /// Takes the next entry of the conversation. `false`: the page ends before it.
    fn take(&mut self, entry: Result<RunEntry, crate::log::LogError>) -> Result<bool, DbError> {
        if self.entries.len() >= self.max.entries.max(1) {
            return Ok(false);
        }
        let entry = match entry {
            Ok(entry) => entry,
            Err(_) if !self.entries.is_empty() => return Ok(false),
            Err(error) => return Err(StoreError::from(error).into()),
        };
        if entry.n == self.after && self.position.is_none() {
            self.start(entry.link);
            return Ok(true);
        }
        if entry.n <= self.after {
            return Ok(true);
        }
        let Some(position) = &mut self.position else {
            return Err(gap(self.conversation, self.after));
        };
        let linked = entry.linked(self.conversation);
        let sound = entry.erased || entry.body_matches();
        if !sound || position.advance(&linked, Some(&entry.link)).is_err() {
            return match self.entries.is_empty() {
                false => Ok(false),
                true => Err(StoreError::Damaged(format!(
                    "entry {} of conversation {} was changed",
                    entry.n, self.conversation
                ))
                .into()),
            };
        }
        let entry = entry.into_stored();
        if let StoredContent::Body(_, body) = &entry.content {
            self.bytes = self.bytes.saturating_add(body.len());
        }
        if self.bytes > self.max.bytes && !self.entries.is_empty() {
            return Ok(false);
        }
        self.entries.push(entry);
        Ok(true)
    }
}
