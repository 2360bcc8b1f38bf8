//! The queue of followed conversations between the router and an [`crate::Inbox`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use twinlock_core::id::ConversationId;

use crate::directory::ConversationInfo;
use crate::error::ClientError;
use crate::model::Entry;

/// Number of queued entries above which a conversation is not followed for a while.
const MAX_QUEUED: usize = 4096;

/// The entries of followed conversations, and the changes of all conversations.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    queue: Mutex<Queue>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<SubscriptionItem>,
    /// Number of entries in `items`.
    entries: usize,
    positions: HashMap<ConversationId, QueuePosition>,
    reconnected: bool,
    ended: Option<ClientError>,
}

#[derive(Debug)]
struct QueuePosition {
    /// Number of the last queued entry.
    last: u64,
    /// Later entries were dropped, because the queue was full.
    overflowed: bool,
    /// Entries that were queued since the last [`SubscriptionItem::CaughtUp`], if the queue was
    /// full since then.
    split: Option<u64>,
}

/// The next thing that a subscription has.
#[derive(Debug)]
pub(crate) enum SubscriptionItem {
    Entries {
        conversation: ConversationId,
        entries: Vec<Entry>,
    },
    /// The entries that existed when following began have arrived.
    CaughtUp {
        conversation: ConversationId,
        entries: u64,
    },
    /// A conversation is new, has changed, or was left.
    Changed(Box<ConversationInfo>),
    /// Another subscription has taken the conversation over.
    Superseded(ConversationId),
    /// A connection is up again.
    Reconnected,
    /// Follow again after this entry.
    FollowAgain {
        conversation: ConversationId,
        after: u64,
    },
}

impl Subscription {
    /// Waits for the next item. Cancel-safe.
    pub(crate) async fn next(&self) -> Result<SubscriptionItem, ClientError> {
        loop {
            if let Some(next) = self.queue().take() {
                return next;
            }
            self.notify.notified().await;
        }
    }

    /// Takes the entries of a conversation after this one from now on.
    pub(crate) fn begin(&self, conversation: ConversationId, after: u64) {
        let position = QueuePosition { last: after, overflowed: false, split: None };
        self.queue().positions.insert(conversation, position);
    }

    /// Call this after following again: until then [`Self::next`] asks for it, also if a caller was
    /// cancelled in between.
    pub(crate) fn followed_again(&self, conversation: ConversationId) {
        if let Some(position) = self.queue().positions.get_mut(&conversation) {
            position.overflowed = false;
        }
    }

    /// Queues the entries that follow the last one. Others arrived before the subscription began,
    /// or after entries that were dropped. Returns false if the conversation is not to be followed
    /// now.
    pub(crate) fn add(&self, conversation: ConversationId, mut entries: Vec<Entry>) -> bool {
        let mut queue = self.queue();
        let is_full = queue.entries >= MAX_QUEUED;
        let Some(position) = queue.positions.get_mut(&conversation) else { return false };
        if position.overflowed {
            return false;
        }
        let last = position.last;
        entries.retain(|entry| entry.n > last);
        if entries.first().is_none_or(|first| first.n != last.saturating_add(1)) {
            return true;
        }
        if is_full {
            position.overflowed = true;
            position.split.get_or_insert(0);
            self.notify.notify_one();
            return false;
        }
        let added = entries.len();
        position.last = entries.last().map_or(last, |entry| entry.n);
        if let Some(split) = &mut position.split {
            *split += added as u64;
        }
        queue.entries += added;
        queue.items.push_back(SubscriptionItem::Entries { conversation, entries });
        self.notify.notify_one();
        true
    }

    pub(crate) fn caught_up(&self, conversation: ConversationId, entries: u64) {
        let mut queue = self.queue();
        let Some(position) = queue.positions.get_mut(&conversation) else { return };
        if position.overflowed {
            return;
        }
        // After a full queue, the client has counted from where it followed again.
        let entries = entries.max(position.split.take().unwrap_or(0));
        queue.items.push_back(SubscriptionItem::CaughtUp { conversation, entries });
        self.notify.notify_one();
    }

    pub(crate) fn changed(&self, changed: &ConversationInfo) {
        let mut queue = self.queue();
        if !changed.joined {
            queue.positions.remove(&changed.id);
        }
        let is_stale = |item: &SubscriptionItem| matches!(item, SubscriptionItem::Changed(old) if old.id == changed.id);
        queue.items.retain(|item| !is_stale(item));
        queue.items.push_back(SubscriptionItem::Changed(Box::new(changed.clone())));
        self.notify.notify_one();
    }

    pub(crate) fn superseded(&self, conversation: ConversationId) {
        let mut queue = self.queue();
        queue.positions.remove(&conversation);
        queue.items.push_back(SubscriptionItem::Superseded(conversation));
        self.notify.notify_one();
    }

    pub(crate) fn reconnected(&self) {
        self.queue().reconnected = true;
        self.notify.notify_one();
    }

    /// Ends the subscription after what is queued.
    pub(crate) fn end(&self, error: ClientError) {
        self.queue().ended = Some(error);
        self.notify.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self) -> Option<Result<SubscriptionItem, ClientError>> {
        if let Some(item) = self.items.pop_front() {
            if let SubscriptionItem::Entries { entries, .. } = &item {
                self.entries = self.entries.saturating_sub(entries.len());
            }
            return Some(Ok(item));
        }
        if let Some(error) = &self.ended {
            return Some(Err(error.clone()));
        }
        if std::mem::take(&mut self.reconnected) {
            return Some(Ok(SubscriptionItem::Reconnected));
        }
        let dropped = self.positions.iter().find(|(_, position)| position.overflowed);
        dropped.map(|(&conversation, position)| {
            Ok(SubscriptionItem::FollowAgain { conversation, after: position.last })
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use twinlock_core::chain::EntryKind;
    use twinlock_core::id::MessageId;

    use super::*;
    use std::time::Duration;

    const OPS: ConversationId = 7;

    fn entries(numbers: std::ops::Range<u64>) -> Vec<Entry> {
        let message_id = MessageId([0; 16]);
        let (kind, sender, text, file, link) = (EntryKind::TEXT, None, None, None, None);
        let entry = |n| Entry {
            n,
            time_ms: 0,
            message_id,
            kind,
            sender: sender.clone(),
            text: text.clone(),
            file: file.clone(),
            link,
        };
        numbers.map(entry).collect()
    }

    async fn next(subscription: &Subscription) -> Result<SubscriptionItem, ClientError> {
        timeout(Duration::from_secs(60), subscription.next()).await.unwrap()
    }

    #[tokio::test]
    async fn subscription__full_queue_follows_again_after_its_last_entry() {
        let subscription = Subscription::default();
        subscription.begin(OPS, 0);
        let full = MAX_QUEUED as u64 + 1;
        assert!(subscription.add(OPS, entries(1..full)));
        // The router stops following, and entries on their way are dropped.
        assert!(!subscription.add(OPS, entries(full..full + 10)));
        assert!(!subscription.add(OPS, entries(full + 10..full + 20)));
        subscription.caught_up(OPS, full + 20);
        let queued = next(&subscription).await.unwrap();
        assert!(
            matches!(queued, SubscriptionItem::Entries { entries, .. } if entries.len() == MAX_QUEUED)
        );
        // Asked for until it is done.
        for _ in 0..2 {
            let again = next(&subscription).await.unwrap();
            assert!(
                matches!(again, SubscriptionItem::FollowAgain { after, .. } if after == full - 1)
            );
        }
        subscription.followed_again(OPS);
        assert!(subscription.add(OPS, entries(full..full + 5)));
        assert!(matches!(next(&subscription).await.unwrap(), SubscriptionItem::Entries { .. }));
        subscription.caught_up(OPS, 2);
        let counted = next(&subscription).await.unwrap();
        assert!(matches!(counted, SubscriptionItem::CaughtUp { entries: 5, .. }), "{counted:?}");
    }

    #[tokio::test]
    async fn subscription__ends_after_what_is_queued() {
        let subscription = Subscription::default();
        subscription.begin(OPS, 3);
        // Entries of an earlier follow are not those after 3.
        assert!(subscription.add(OPS, entries(1..3)));
        assert!(subscription.add(OPS, entries(3..6)));
        assert!(!subscription.add(8, entries(1..2)));
        subscription.end(ClientError::Closed);
        let queued = next(&subscription).await.unwrap();
        let SubscriptionItem::Entries { entries, .. } = queued else { panic!("{queued:?}") };
        assert_eq!(entries.iter().map(|entry| entry.n).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(next(&subscription).await.unwrap_err(), ClientError::Closed);
    }
}
