//! Presence changes, in the order of each user's last one.
//!
//! Each user appears once, however often its presence changes. A slow watcher therefore holds only
//! a number, and no queue exists.

use std::collections::{BTreeMap, HashMap};

use twinlock_core::id::Name;

/// Numbered changes, bounded by the number of users; about 100 bytes each.
#[derive(Default)]
pub(super) struct PresenceLog {
    now: u64,
    by_change: BTreeMap<u64, Name>,
    last_change: HashMap<Name, u64>,
}

impl PresenceLog {
    /// The number of the newest change.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Records that `user` came or went.
    pub(super) fn note(&mut self, user: &Name) {
        self.now += 1;
        if let Some(before) = self.last_change.insert(user.clone(), self.now) {
            self.by_change.remove(&before);
        }
        self.by_change.insert(self.now, user.clone());
    }

    /// The first `max` users whose last change is after `since`, and the number of the last change
    /// among them.
    pub(super) fn since(&self, since: u64, max: usize) -> (impl Iterator<Item = &Name>, u64) {
        let changes = || self.by_change.range(since.saturating_add(1)..).take(max);
        let now = changes().last().map_or(since, |(change, _)| *change);
        (changes().map(|(_, user)| user), now)
    }
}
