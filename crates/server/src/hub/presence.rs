//! Who has come or gone, in the order of their last change: one place a user, however often it
//! changed, so that a watcher that looks rarely holds a number and nobody holds a queue.

use std::collections::{BTreeMap, HashMap};

use twinlock_core::id::Name;

/// Bounded by the users that there are; about 100 bytes each.
#[derive(Default)]
pub(super) struct Presence {
    now: u64,
    by_change: BTreeMap<u64, Name>,
    last_change: HashMap<Name, u64>,
}

impl Presence {
    /// The number of the newest change.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// `user` has come or gone.
    pub(super) fn note(&mut self, user: &Name) {
        self.now += 1;
        if let Some(before) = self.last_change.insert(user.clone(), self.now) {
            self.by_change.remove(&before);
        }
        self.by_change.insert(self.now, user.clone());
    }

    /// The first `most` users whose last change is after `since`, and the number up to which they
    /// go.
    pub(super) fn since(&self, since: u64, most: usize) -> (impl Iterator<Item = &Name>, u64) {
        let changes = || self.by_change.range(since.saturating_add(1)..).take(most);
        let now = changes().last().map_or(since, |(change, _)| *change);
        (changes().map(|(_, user)| user), now)
    }
}
