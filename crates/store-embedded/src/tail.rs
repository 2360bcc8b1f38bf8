//! The entries that are recorded and not indexed yet, in memory.
//!
//! A reader looks here first and in the index second; the indexer commits first and removes from
//! here second. So each entry is found in at least one of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use twinlock_core::id::{ConversationId, MessageId};
use twinlock_store::StoreError;
use twinlock_store::sequencer::ConversationHead;

use crate::log::{LogPosition, RunPlace};

/// Number of entries beyond which the recorder waits for the indexer.
const MAX_ENTRIES: usize = 256 * 1024;
/// Number of entries that are indexed together, about. Their ids are sorted, so more of them change
/// fewer pages an entry.
pub(crate) const GROUP: usize = 64 * 1024;
/// Number of users whose greatest indexed id is kept, 24 bytes each.
const MAX_USERS: usize = 65_536;

/// Where the message with this id of this user was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordedId {
    pub(crate) user: u64,
    pub(crate) message_id: MessageId,
    pub(crate) conversation: ConversationId,
    pub(crate) n: u64,
}

/// A synced batch, as the index takes it.
#[derive(Debug)]
pub(crate) struct CommittedBatch {
    /// The sequence after this batch, and where the next one begins.
    pub(crate) next_seq: u64,
    pub(crate) end: LogPosition,
    pub(crate) runs: Vec<RunPlace>,
    pub(crate) ids: Vec<RecordedId>,
    /// The heads of the batch's conversations after it.
    pub(crate) heads: Vec<(ConversationId, ConversationHead)>,
}

impl CommittedBatch {
    pub(crate) fn entries(&self) -> usize {
        self.ids.len()
    }
}

/// The batches that the index lacks, and how to find entries in them.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    state: Mutex<TailState>,
    /// There is work for the indexer, or room for the recorder.
    changed: Condvar,
    /// The store closes. Apart, so that an indexer that collects entries is not woken by each commit.
    closing: Condvar,
}

#[derive(Debug, Default)]
struct TailState {
    batches: VecDeque<Arc<CommittedBatch>>,
    entries: usize,
    conversations: HashMap<ConversationId, TailConversation>,
    /// All runs, by the sequence of their first entry.
    runs: BTreeMap<u64, RunPlace>,
    /// The ids of all batches, oldest first.
    ids: VecDeque<IdGroup>,
    /// For active users: an id that no id in the index exceeds.
    greatest: HashMap<u64, MessageId>,
    /// Why the indexer makes no progress.
    failed: Option<StoreError>,
    people_changed: bool,
    closing: bool,
}

/// The ids of batches that are indexed together, so that none is removed alone.
#[derive(Debug, Default)]
struct IdGroup {
    ids: HashMap<(u64, MessageId), (ConversationId, u64)>,
    batches: usize,
    /// The indexer has taken it, so later batches do not belong to it.
    taken: bool,
}

#[derive(Debug)]
struct TailConversation {
    runs: VecDeque<RunPlace>,
    head: ConversationHead,
}

impl TailState {
    /// Removes the oldest batch, but for its ids.
    fn remove_oldest(&mut self) {
        let Some(batch) = self.batches.pop_front() else { return };
        self.entries -= batch.entries();
        for run in &batch.runs {
            self.runs.remove(&run.seq);
            if let Some(known) = self.conversations.get_mut(&run.conversation) {
                known.runs.pop_front();
                if known.runs.is_empty() {
                    self.conversations.remove(&run.conversation);
                }
            }
        }
    }

    fn recorded(&self, user: u64, message_id: &MessageId) -> Option<(ConversationId, u64)> {
        let mut groups = self.ids.iter().rev();
        groups.find_map(|group| group.ids.get(&(user, *message_id)).copied())
    }
}

/// What the indexer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexerWork {
    /// Index the oldest batches.
    Index,
    /// Make `people.db` durable.
    Checkpoint,
    /// Nothing is left, and the store closes.
    End,
}

/// Whether a message id was recorded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownId {
    /// It is in the tail.
    At(ConversationId, u64),
    /// It is new.
    No,
    /// Only the index knows.
    AskIndex,
}

impl Tail {
    fn state(&self) -> MutexGuard<'_, TailState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a batch that is on disk.
    pub(crate) fn push(&self, batch: CommittedBatch) {
        let mut state = self.state();
        state.entries += batch.entries();
        if state.ids.back().is_none_or(|group| group.taken || group.ids.len() >= GROUP) {
            state.ids.push_back(IdGroup::default());
        }
        if let Some(group) = state.ids.back_mut() {
            group.batches += 1;
            let ids = batch.ids.iter();
            group.ids.extend(ids.map(|id| ((id.user, id.message_id), (id.conversation, id.n))));
        }
        for (conversation, head) in &batch.heads {
            let new = || TailConversation { runs: VecDeque::new(), head: *head };
            state.conversations.entry(*conversation).or_insert_with(new).head = *head;
        }
        for run in &batch.runs {
            state.runs.insert(run.seq, *run);
            if let Some(known) = state.conversations.get_mut(&run.conversation) {
                known.runs.push_back(*run);
            }
        }
        let is_first = state.batches.is_empty();
        state.batches.push_back(Arc::new(batch));
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Whether the recorder has to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.state().entries >= MAX_ENTRIES
    }

    /// Waits until the recorder may add entries.
    ///
    /// # Errors
    /// The error of the indexer, if it cannot make room.
    pub(crate) fn wait_for_room(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        while state.entries >= MAX_ENTRIES {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Waits for work of the indexer. `since`: when `people.db` was last made durable.
    pub(crate) fn next_work(&self, since: Instant, interval: Duration) -> IndexerWork {
        let mut state = self.state();
        loop {
            let left = interval.saturating_sub(since.elapsed());
            if state.people_changed && left.is_zero() {
                state.people_changed = false;
                return IndexerWork::Checkpoint;
            }
            if !state.batches.is_empty() {
                return IndexerWork::Index;
            }
            if state.closing {
                return IndexerWork::End;
            }
            state = match state.people_changed {
                true => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                false => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Number of entries in the tail.
    pub(crate) fn entries(&self) -> usize {
        self.state().entries
    }

    /// Notes that `people.db` has changes that are not durable.
    pub(crate) fn people_changed(&self) {
        let mut state = self.state();
        if !state.people_changed {
            state.people_changed = true;
            self.changed.notify_all();
        }
    }

    /// The oldest batches, with about [`GROUP`] entries at most.
    pub(crate) fn oldest(&self) -> Vec<Arc<CommittedBatch>> {
        let mut state = self.state();
        let Some(group) = state.ids.front_mut() else { return Vec::new() };
        group.taken = true;
        let count = group.batches;
        state.batches.iter().take(count).cloned().collect()
    }

    /// Removes the batches of [`Self::oldest`], which are in the index now. `greatest` has the
    /// greatest id of each of their users. The recorder waits for one batch at most.
    pub(crate) fn indexed(&self, count: usize, greatest: &[(u64, MessageId)]) {
        for _ in 0..count {
            self.state().remove_oldest();
        }
        let mut state = self.state();
        for (user, id) in greatest {
            if let Some(known) = state.greatest.get_mut(user) {
                *known = (*known).max(*id);
            }
        }
        let ids = state.ids.pop_front();
        state.failed = None;
        if state.batches.is_empty() {
            // A burst leaves no memory behind.
            state.conversations.shrink_to(1024);
        }
        drop(state);
        self.changed.notify_all();
        drop(ids);
    }

    /// Reports that the indexer makes no progress.
    pub(crate) fn fail(&self, error: StoreError) {
        self.state().failed = Some(error);
        self.changed.notify_all();
    }

    /// Ends the indexer when the tail is empty.
    pub(crate) fn close(&self) {
        self.state().closing = true;
        self.changed.notify_all();
        self.closing.notify_all();
    }

    /// Waits for this time, or until the tail is closing; whether it is.
    pub(crate) fn wait_closing(&self, time: Duration) -> bool {
        let state = self.state();
        let waited = self.closing.wait_timeout_while(state, time, |state| !state.closing);
        waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    /// The head of a conversation with entries in the tail.
    pub(crate) fn head(&self, conversation: ConversationId) -> Option<ConversationHead> {
        self.state().conversations.get(&conversation).map(|known| known.head)
    }

    /// Up to `max` runs of a conversation that contain or follow entry `n`.
    pub(crate) fn runs_from(
        &self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Vec<RunPlace> {
        let state = self.state();
        let Some(known) = state.conversations.get(&conversation) else { return Vec::new() };
        let skip = known.runs.partition_point(|run| run.last() < n);
        known.runs.iter().skip(skip).take(max).copied().collect()
    }

    /// Up to `max` runs of a conversation that contain or precede entry `n`, newest first.
    pub(crate) fn runs_back_from(
        &self,
        conversation: ConversationId,
        n: u64,
        max: usize,
    ) -> Vec<RunPlace> {
        let state = self.state();
        let Some(known) = state.conversations.get(&conversation) else { return Vec::new() };
        let take = known.runs.partition_point(|run| run.first <= n);
        known.runs.iter().take(take).rev().take(max).copied().collect()
    }

    /// The run that contains this sequence.
    pub(crate) fn run_of(&self, seq: u64) -> Option<RunPlace> {
        let state = self.state();
        let (_, run) = state.runs.range(..=seq).next_back()?;
        (seq < run.seq + u64::from(run.count)).then_some(*run)
    }

    /// Up to `max` runs, from the one that contains or follows `seq` on.
    pub(crate) fn runs_by_seq(&self, seq: u64, max: usize) -> Vec<RunPlace> {
        let state = self.state();
        let first = state.runs.range(..=seq).next_back().map_or(seq, |(first, _)| *first);
        let runs = state.runs.range(first..).map(|(_, run)| *run);
        runs.filter(|run| run.seq + u64::from(run.count) > seq).take(max).collect()
    }

    /// The newest runs, newest first, until they have `entries` entries.
    pub(crate) fn newest_runs(&self, entries: usize) -> Vec<RunPlace> {
        let state = self.state();
        let mut taken = 0;
        let runs = state.runs.values().rev().take_while(|run| {
            let more = taken < entries;
            taken += run.count as usize;
            more
        });
        runs.copied().collect()
    }

    /// Where the message with this id was recorded, if that is in the tail.
    pub(crate) fn recorded(
        &self,
        user: u64,
        message_id: &MessageId,
    ) -> Option<(ConversationId, u64)> {
        self.state().recorded(user, message_id)
    }

    /// Looks for a message id. `load` reads the greatest id of the user from the index.
    pub(crate) fn known<E>(
        &self,
        user: u64,
        message_id: &MessageId,
        load: impl FnOnce() -> Result<Option<MessageId>, E>,
    ) -> Result<KnownId, E> {
        let mut state = self.state();
        if let Some((conversation, n)) = state.recorded(user, message_id) {
            return Ok(KnownId::At(conversation, n));
        }
        let greatest = match state.greatest.get(&user) {
            Some(greatest) => *greatest,
            None => {
                // Loaded under the lock: what the indexer commits after this, it also notes here.
                let greatest = load()?.unwrap_or(MessageId([0; 16]));
                if state.greatest.len() >= MAX_USERS {
                    state.greatest.clear();
                }
                state.greatest.insert(user, greatest);
                greatest
            }
        };
        // Equal if the index has it, and also if it has none and the id is all zeros.
        Ok(if *message_id > greatest { KnownId::No } else { KnownId::AskIndex })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlock_core::id::Link;

    fn batch(seq: u64, conversation: ConversationId, first: u64, count: u32) -> CommittedBatch {
        let place = |offset| LogPosition { segment: 1, offset };
        let offset = u32::try_from(seq).unwrap();
        let position = place(offset);
        let run = RunPlace { conversation, first, count, seq, position, length: 1 };
        let id = |n: u64| {
            let n = first + n;
            RecordedId { user: 7, message_id: id(n), conversation, n }
        };
        let ids = (0..u64::from(count)).map(id).collect();
        let n = first + u64::from(count) - 1;
        let head = ConversationHead { n, time_ms: n, link: Link([0; 32]) };
        let next_seq = seq + u64::from(count);
        let end = place(offset + 1);
        CommittedBatch { next_seq, end, runs: vec![run], ids, heads: vec![(conversation, head)] }
    }

    fn id(n: u64) -> MessageId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        MessageId(id)
    }

    fn known(tail: &Tail, n: u64) -> KnownId {
        tail.known::<()>(7, &id(n), || Ok(Some(id(3)))).unwrap()
    }

    #[test]
    fn tail__entries_are_found_until_they_are_indexed() {
        let tail = Tail::default();
        tail.push(batch(1, 5, 10, 4));
        tail.push(batch(5, 6, 1, 1));
        assert_eq!(tail.oldest().len(), 2);
        // Taken already: this one is of the next group.
        tail.push(batch(6, 5, 14, 2));
        assert_eq!(tail.oldest().len(), 2);
        assert_eq!(tail.head(5).unwrap().n, 15);
        let firsts = |runs: Vec<RunPlace>| runs.iter().map(|run| run.first).collect::<Vec<_>>();
        assert_eq!(firsts(tail.runs_from(5, 13, 9)), [10, 14]);
        assert_eq!(firsts(tail.runs_from(5, 14, 9)), [14]);
        assert_eq!(firsts(tail.runs_back_from(5, 14, 9)), [14, 10]);
        assert_eq!(firsts(tail.runs_back_from(5, 13, 9)), [10]);
        assert_eq!(firsts(tail.runs_from(5, 13, 1)), [10]);
        assert_eq!(firsts(tail.runs_back_from(5, 14, 1)), [14]);
        assert_eq!(firsts(tail.newest_runs(3)), [14, 1]);
        assert_eq!(tail.run_of(4).unwrap().first, 10);
        assert_eq!(tail.run_of(0), None);
        tail.indexed(2, &[(7, id(13))]);
        assert_eq!(firsts(tail.runs_from(5, 1, 9)), [14]);
        assert_eq!(tail.run_of(4), None);
        assert!(tail.recorded(7, &id(13)).is_none() && tail.recorded(7, &id(14)).is_some());
        assert_eq!(tail.oldest().len(), 1);
        tail.indexed(1, &[(7, id(15))]);
        assert!(tail.head(5).is_none() && tail.head(6).is_none());
        let work = || tail.next_work(Instant::now(), Duration::from_millis(1));
        tail.people_changed();
        assert_eq!(work(), IndexerWork::Checkpoint);
        tail.close();
        assert_eq!(work(), IndexerWork::End);
    }

    #[test]
    fn tail__only_ids_up_to_the_greatest_indexed_ask_the_index() {
        let tail = Tail::default();
        assert_eq!(known(&tail, 3), KnownId::AskIndex);
        assert_eq!(known(&tail, 4), KnownId::No);
        tail.push(batch(1, 5, 8, 2));
        assert_eq!(known(&tail, 8), KnownId::At(5, 8));
        // Below the tail, above the index.
        assert_eq!(known(&tail, 7), KnownId::No);
        assert_eq!(tail.oldest().len(), 1);
        tail.indexed(1, &[(7, id(9))]);
        assert_eq!(known(&tail, 8), KnownId::AskIndex);
        assert_eq!(known(&tail, 7), KnownId::AskIndex);
        assert_eq!(known(&tail, 10), KnownId::No);
    }
}
