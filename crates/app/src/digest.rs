//! Counts new entries of conversations that are not on the screen, and announces them together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use twinlock_core::id::ConversationId;

/// How long new entries are collected before they are announced.
const COLLECT: Duration = Duration::from_secs(1);
/// Minimum interval between two announcements: a busy room must not fill the screen.
const INTERVAL: Duration = Duration::from_secs(10);

/// The new entries that were not announced yet, by conversation.
#[derive(Debug)]
pub struct ActivityDigest {
    counts: BTreeMap<ConversationId, u64>,
    /// When the counts are announced, if there are any.
    due: Instant,
}

impl ActivityDigest {
    /// An empty digest.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { counts: BTreeMap::new(), due: now }
    }

    /// Adds new entries of a conversation.
    pub fn add(&mut self, conversation: ConversationId, entries: u64, now: Instant) {
        if entries == 0 {
            return;
        }
        if self.counts.is_empty() {
            self.due = self.due.max(now + COLLECT);
        }
        *self.counts.entry(conversation).or_default() += entries;
    }

    /// Removes a conversation, because the user opened it.
    pub fn remove(&mut self, conversation: ConversationId) {
        self.counts.remove(&conversation);
    }

    /// The time at which [`Self::take`] is to be called; `None` while there is nothing to announce.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.counts.is_empty()).then_some(self.due)
    }

    /// The counts, if they are due, in order of the conversations' ids.
    pub fn take(&mut self, now: Instant) -> Vec<(ConversationId, u64)> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.due = now + INTERVAL;
        std::mem::take(&mut self.counts).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn activity_digest__announces_each_entry_once_at_intervals(
            steps in prop::collection::vec((0..3_u64, 0..5_u64, 0..4_000_u64, any::<bool>()), 0..80)
        ) {
            let mut now = Instant::now();
            let mut digest = ActivityDigest::new(now);
            let mut pending = BTreeMap::new();
            let mut last: Option<Instant> = None;
            for (conversation, entries, pause_ms, remove) in steps {
                now += Duration::from_millis(pause_ms);
                let due = digest.poll_timeout();
                let taken = digest.take(now);
                prop_assert_eq!(!taken.is_empty(), due.is_some_and(|due| due <= now));
                if !taken.is_empty() {
                    prop_assert!(last.is_none_or(|last| now - last >= INTERVAL));
                    last = Some(now);
                    prop_assert_eq!(taken, std::mem::take(&mut pending).into_iter().collect::<Vec<_>>());
                }
                digest.add(conversation, entries, now);
                if entries > 0 {
                    *pending.entry(conversation).or_default() += entries;
                }
                if remove {
                    digest.remove(conversation);
                    pending.remove(&conversation);
                }
            }
        }
    }

    #[test]
    fn activity_digest__collects_before_it_announces() {
        let now = Instant::now();
        let mut digest = ActivityDigest::new(now);
        assert_eq!(digest.poll_timeout(), None);
        digest.add(2, 1, now);
        digest.add(1, 3, now);
        digest.add(2, 1, now + COLLECT / 2);
        assert_eq!(digest.poll_timeout(), Some(now + COLLECT));
        assert_eq!(digest.take(now), []);
        assert_eq!(digest.take(now + COLLECT), [(1, 3), (2, 2)]);
        digest.add(1, 1, now + COLLECT);
        assert_eq!(digest.poll_timeout(), Some(now + COLLECT + INTERVAL));
        digest.remove(1);
        assert_eq!(digest.poll_timeout(), None);
    }
}
