//! The queue of followed conversations between the router and an [`crate::Inbox`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use twinlock_core::id::ConversationId;

use crate::directory::ConversationInfo;
use crate::error::ClientError;
use crate::model::{Entry, FollowToken};

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
    /// The follow whose entries are taken.
    token: FollowToken,
    /// Number of the last queued entry.
    last: u64,
    /// Entries were dropped because the queue was full, so the conversation is to be followed
    /// again.
    needs_follow: bool,
    /// The queue is full for this follow.
    is_full: bool,
    /// Number of entries that were queued since the last [`SubscriptionItem::CaughtUp`].
    queued: u64,
    /// The conversation was followed again since then.
    is_split: bool,
}

/// An item of a subscription's queue.
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
    /// Follow the conversation again.
    FollowAgain(ConversationId),
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

    /// Takes the entries of a conversation after this one by a follow from now on. Returns the entry
    /// to follow after: a later one if an earlier, cancelled attempt has queued some already.
    pub(crate) fn begin(
        &self,
        conversation: ConversationId,
        after: u64,
        token: FollowToken,
    ) -> u64 {
        let mut queue = self.queue();
        let new = QueuePosition {
            token,
            last: after,
            needs_follow: false,
            is_full: false,
            queued: 0,
            is_split: false,
        };
        let position = queue.positions.entry(conversation).or_insert(new);
        position.token = token;
        position.last
    }

    /// Takes the entries of another follow. Returns the entry to follow after; `None` if the
    /// conversation is not taken any more. Until [`Self::followed_again`], [`Self::next`] asks for
    /// it, also if a caller was cancelled in between.
    pub(crate) fn renew(&self, conversation: ConversationId, token: FollowToken) -> Option<u64> {
        let mut queue = self.queue();
        let position = queue.positions.get_mut(&conversation)?;
        (position.token, position.is_full, position.is_split) = (token, false, true);
        Some(position.last)
    }

    /// Notes that the follow of [`Self::renew`] has begun.
    pub(crate) fn followed_again(&self, conversation: ConversationId, token: FollowToken) {
        if let Some(position) = self.queue().positions.get_mut(&conversation)
            && position.token == token
        {
            // Full again, perhaps.
            position.needs_follow = position.is_full;
        }
    }

    /// Queues the entries that follow the last one. Others arrived before the subscription began,
    /// or after entries that were dropped. Returns false if the conversation is not to be followed
    /// now.
    pub(crate) fn add(
        &self,
        conversation: ConversationId,
        token: FollowToken,
        mut entries: Vec<Entry>,
    ) -> bool {
        let mut queue = self.queue();
        let is_full = queue.entries >= MAX_QUEUED;
        let Some(position) = queue.positions.get_mut(&conversation) else { return false };
        if position.token != token || position.is_full {
            return false;
        }
        let last = position.last;
        entries.retain(|entry| entry.n > last);
        if entries.first().is_none_or(|first| first.n != last.saturating_add(1)) {
            return true;
        }
        if is_full {
            (position.is_full, position.needs_follow) = (true, true);
            self.notify.notify_one();
            return false;
        }
        let added = entries.len();
        position.last = entries.last().map_or(last, |entry| entry.n);
        position.queued += added as u64;
        queue.entries += added;
        queue.items.push_back(SubscriptionItem::Entries { conversation, entries });
        self.notify.notify_one();
        true
    }

    pub(crate) fn caught_up(&self, conversation: ConversationId, token: FollowToken, entries: u64) {
        let mut queue = self.queue();
        let Some(position) = queue.positions.get_mut(&conversation) else { return };
        if position.token != token || position.is_full {
            return;
        }
        let queued = std::mem::take(&mut position.queued);
        // The client has counted from where it followed again.
        let mut entries = if std::mem::take(&mut position.is_split) { queued } else { entries };
        // A reader that waits over several reconnections gets one of these.
        if let Some(SubscriptionItem::CaughtUp { conversation: before, entries: counted }) =
            queue.items.back()
            && *before == conversation
        {
            entries += counted;
            queue.items.pop_back();
        }
        queue.items.push_back(SubscriptionItem::CaughtUp { conversation, entries });
        self.notify.notify_one();
    }

    pub(crate) fn changed(&self, changed: &ConversationInfo) {
        let mut queue = self.queue();
        if !changed.joined {
            queue.positions.remove(&changed.id);
        }
        // That a conversation was left is reported, also if it was joined again.
        let is_stale = |item: &SubscriptionItem| matches!(item, SubscriptionItem::Changed(old) if old.id == changed.id && (old.joined || !changed.joined));
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
        if self.ended.is_none() {
            if std::mem::take(&mut self.reconnected) {
                return Some(Ok(SubscriptionItem::Reconnected));
            }
            let is_dropped = |(_, position): &(_, &QueuePosition)| position.needs_follow;
            if self.entries <= MAX_QUEUED / 2
                && let Some((&conversation, _)) = self.positions.iter().find(is_dropped)
            {
                return Some(Ok(SubscriptionItem::FollowAgain(conversation)));
            }
        }
        if let Some(item) = self.items.pop_front() {
            if let SubscriptionItem::Entries { entries, .. } = &item {
                self.entries = self.entries.saturating_sub(entries.len());
            }
            return Some(Ok(item));
        }
        self.ended.clone().map(Err)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use twinlock_core::chain::EntryKind;
    use twinlock_core::id::MessageId;

    use std::time::Duration;

    use super::*;
    use crate::directory::ConversationKind;

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
        subscription.begin(OPS, 0, 1);
        let full = MAX_QUEUED as u64 + 1;
        assert!(subscription.add(OPS, 1, entries(1..full)));
        // The router stops following, and entries on their way are dropped.
        assert!(!subscription.add(OPS, 1, entries(full..full + 10)));
        assert!(!subscription.add(OPS, 1, entries(full + 10..full + 20)));
        subscription.caught_up(OPS, 1, full + 20);
        let queued = next(&subscription).await.unwrap();
        assert!(
            matches!(queued, SubscriptionItem::Entries { entries, .. } if entries.len() == MAX_QUEUED)
        );
        // Asked for until it is done.
        for token in 2..4 {
            let again = next(&subscription).await.unwrap();
            assert!(matches!(again, SubscriptionItem::FollowAgain(OPS)), "{again:?}");
            assert_eq!(subscription.renew(OPS, token), Some(full - 1));
        }
        // Entries may arrive before the caller notes that it has followed again.
        assert!(subscription.add(OPS, 3, entries(full..full + 2)));
        subscription.followed_again(OPS, 3);
        // What an earlier follow still delivers is not taken.
        assert!(!subscription.add(OPS, 1, entries(full + 2..full + 9)));
        subscription.caught_up(OPS, 2, 9);
        assert!(subscription.add(OPS, 3, entries(full + 2..full + 5)));
        subscription.caught_up(OPS, 3, 2);
        for expected in [2, 3] {
            let queued = next(&subscription).await.unwrap();
            let SubscriptionItem::Entries { entries, .. } = queued else { panic!("{queued:?}") };
            assert_eq!(entries.len(), expected);
        }
        let counted = next(&subscription).await.unwrap();
        let all = full + 4;
        assert!(matches!(counted, SubscriptionItem::CaughtUp { entries, .. } if entries == all));
    }

    #[tokio::test]
    async fn subscription__dropped_conversation_waits_for_half_of_the_queue() {
        let subscription = Subscription::default();
        subscription.begin(OPS, 0, 1);
        subscription.begin(8, 0, 2);
        let batch = MAX_QUEUED as u64 / 4;
        for at in 0..4 {
            assert!(subscription.add(OPS, 1, entries(at * batch + 1..(at + 1) * batch + 1)));
        }
        assert!(!subscription.add(8, 2, entries(1..2)));
        for _ in 0..2 {
            let queued = next(&subscription).await.unwrap();
            assert!(matches!(queued, SubscriptionItem::Entries { .. }), "{queued:?}");
        }
        // Before the rest of the other conversation.
        let again = next(&subscription).await.unwrap();
        assert!(matches!(again, SubscriptionItem::FollowAgain(8)), "{again:?}");
    }

    #[tokio::test]
    async fn subscription__leaving_is_reported_before_joining_again() {
        let subscription = Subscription::default();
        subscription.begin(OPS, 0, 1);
        let change = |joined| {
            let mut info = ConversationInfo::new(OPS, ConversationKind::Room, "ops".to_owned());
            info.joined = joined;
            subscription.changed(&info);
        };
        for joined in [true, true, false, true, false, true, true] {
            change(joined);
        }
        for expected in [false, true] {
            let changed = next(&subscription).await.unwrap();
            let SubscriptionItem::Changed(info) = changed else { panic!("{changed:?}") };
            assert_eq!(info.joined, expected);
        }
        assert!(!subscription.add(OPS, 1, entries(1..2)), "it was left");
    }

    #[tokio::test]
    async fn subscription__repeated_begin_keeps_what_is_queued() {
        let subscription = Subscription::default();
        assert_eq!(subscription.begin(OPS, 3, 1), 3);
        // Entries of an earlier follow are not those after 3.
        assert!(subscription.add(OPS, 1, entries(1..3)));
        assert!(subscription.add(OPS, 1, entries(3..6)));
        assert_eq!(subscription.begin(OPS, 3, 2), 5);
        assert!(!subscription.add(OPS, 1, entries(6..7)));
        assert!(!subscription.add(8, 9, entries(1..2)));
        subscription.end(ClientError::Closed);
        let queued = next(&subscription).await.unwrap();
        let SubscriptionItem::Entries { entries, .. } = queued else { panic!("{queued:?}") };
        assert_eq!(entries.iter().map(|entry| entry.n).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(next(&subscription).await.unwrap_err(), ClientError::Closed);
    }
}
