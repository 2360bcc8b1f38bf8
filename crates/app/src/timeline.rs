//! The entries of one conversation that are on the screen or near it.
//!
//! The timeline is a window of the record: ascending numbers, each entry once. It is bounded; a
//! renderer reads older entries again when the user scrolls back.

use std::collections::VecDeque;

use twinlock_client::model::Entry;
use twinlock_core::id::Name;

use crate::mentions::mentions;

/// An entry as a timeline shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineItem {
    /// The entry.
    pub entry: Entry,
    /// This program sent it, so that its text may be on the screen already.
    pub is_own: bool,
    /// It mentions the user.
    pub is_mention: bool,
}

impl TimelineItem {
    /// The item of an entry. `is_own`: this program sent it.
    #[must_use]
    pub fn new(entry: Entry, user: &Name, is_own: bool) -> Self {
        let is_mention = entry.text.as_ref().is_some_and(|text| mentions(text.expose_raw(), user));
        Self { entry, is_own, is_mention }
    }
}

/// A window of a conversation's entries.
#[derive(Debug)]
pub struct Timeline {
    items: VecDeque<TimelineItem>,
    capacity: usize,
    /// The number of the newest entry that arrived, also if it was removed since.
    newest: u64,
}

impl Timeline {
    /// An empty timeline of at most `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { items: VecDeque::new(), capacity, newest: 0 }
    }

    /// Adds entries that arrived, and removes the oldest ones beyond the capacity. Returns those that
    /// had not arrived before, in the order of the record.
    pub fn append(&mut self, mut items: Vec<TimelineItem>) -> Vec<TimelineItem> {
        let mut newest = self.newest;
        items.retain(|item| {
            let is_new = item.entry.n > newest;
            newest = newest.max(item.entry.n);
            is_new
        });
        self.newest = newest;
        for item in items.iter().skip(items.len().saturating_sub(self.capacity)) {
            self.insert(item.clone());
        }
        self.trim();
        items
    }

    /// Adds entries that were read from the server, as far as the capacity allows: the newest of
    /// them first.
    pub fn add_history(&mut self, items: Vec<TimelineItem>) {
        for item in items.into_iter().rev() {
            let is_full = self.items.len() >= self.capacity;
            if is_full && self.items.front().is_none_or(|first| item.entry.n < first.entry.n) {
                return;
            }
            self.insert(item);
            self.trim();
        }
    }

    fn trim(&mut self) {
        let over = self.items.len().saturating_sub(self.capacity);
        self.items.drain(..over);
    }

    /// Inserts an entry at its place, or replaces it.
    fn insert(&mut self, item: TimelineItem) {
        match self.items.binary_search_by_key(&item.entry.n, |item| item.entry.n) {
            Ok(at) => {
                if let Some(known) = self.items.get_mut(at) {
                    *known = item;
                }
            }
            Err(at) => self.items.insert(at, item),
        }
    }

    /// The entries, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &TimelineItem> {
        self.items.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{BOB, entry, name};

    fn item(n: u64) -> TimelineItem {
        TimelineItem::new(entry(n, BOB, "hi @bob"), &name(BOB), false)
    }

    proptest! {
        #[test]
        fn timeline__is_in_order_of_the_record_without_duplicates(
            capacity in 0..20_usize,
            steps in prop::collection::vec((any::<bool>(), 1..60_u64, 1..10_u64), 0..30)
        ) {
            let mut timeline = Timeline::new(capacity);
            let mut shown = 0;
            for (is_append, from, count) in steps {
                let run: Vec<_> = (from..from + count).map(item).collect();
                if is_append {
                    for new in timeline.append(run) {
                        prop_assert!(new.entry.n > shown, "shown twice or out of order");
                        shown = new.entry.n;
                    }
                } else {
                    timeline.add_history(run);
                }
                let numbers: Vec<_> = timeline.iter().map(|item| item.entry.n).collect();
                prop_assert!(numbers.is_sorted_by(|a, b| a < b), "{:?}", numbers);
                prop_assert!(numbers.len() <= capacity);
            }
        }
    }

    #[test]
    fn timeline__keeps_the_newest_entries() {
        let mut timeline = Timeline::new(3);
        assert!(item(1).is_mention);
        assert_eq!(timeline.append((5..10).map(item).collect()).len(), 5);
        let numbers = |t: &Timeline| t.iter().map(|item| item.entry.n).collect::<Vec<_>>();
        assert_eq!(numbers(&timeline), [7, 8, 9]);
        timeline.add_history((1..7).map(item).collect());
        assert_eq!(numbers(&timeline), [7, 8, 9]);
        let mut timeline = Timeline::new(5);
        timeline.add_history(vec![item(9)]);
        timeline.append((8..10).map(item).collect());
        timeline.add_history((1..8).map(item).collect());
        assert_eq!(numbers(&timeline), [5, 6, 7, 8, 9]);
        // Pages of history ascend.
        timeline.add_history((10..13).map(item).collect());
        assert_eq!(numbers(&timeline), [8, 9, 10, 11, 12]);
    }
}
