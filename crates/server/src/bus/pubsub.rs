//! Topics: the head and a short tail of recent entries of each followed conversation, in memory.
//!
//! Each follower holds a position. One whose position is before the tail reads from the store.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message as _;
use twinlock_core::id::ConversationId;
use twinlock_store::Published;

use super::handles::{Tail, TopicSubscription};
use super::signals::{SessionHandle, lock};
use crate::convert;

/// Entries kept in memory for each followed conversation.
const TAIL_ENTRIES: usize = 512;
/// Bytes of them. A larger value spares slow followers the store, and costs as much memory for each
/// busy conversation.
const TAIL_BYTES: usize = 512 * 1024;
/// Bytes of all tails together. Beyond it all tails are dropped, and followers read from the store
/// until the tails have grown again.
const ALL_TAILS: usize = 64 * 1024 * 1024;
/// Memory of an entry besides its bytes.
const OVERHEAD: usize = 64;

/// All followed conversations.
#[derive(Default)]
pub(super) struct PubSub(Mutex<Topics>);

#[derive(Default)]
struct Topics {
    by_id: HashMap<ConversationId, ConversationTopic>,
    tail_bytes: usize,
}

#[derive(Default)]
struct ConversationTopic {
    /// 0: unknown, read from the store.
    head: u64,
    /// Encoded entries up to the head, without gaps.
    tail: VecDeque<Bytes>,
    tail_bytes: usize,
    followers: Vec<Arc<Follower>>,
}

struct Follower {
    session: Arc<SessionHandle>,
    /// The session has been signalled and has not read yet.
    signalled: AtomicBool,
}

/// A subscription that reads from the tails of this process.
pub(super) struct LocalSubscription {
    pubsub: Arc<PubSub>,
    conversation: ConversationId,
    follower: Arc<Follower>,
}

impl PubSub {
    /// Subscribes `session` to a conversation, and signals it so that it looks for entries at once.
    pub(super) fn follow(
        self: &Arc<Self>,
        session: &Arc<SessionHandle>,
        conversation: ConversationId,
    ) -> LocalSubscription {
        let follower =
            Arc::new(Follower { session: session.clone(), signalled: AtomicBool::new(true) });
        let mut all = lock(&self.0);
        all.by_id.entry(conversation).or_default().followers.push(follower.clone());
        session.signal(|signals| _ = signals.new_entries.insert(conversation));
        LocalSubscription { pubsub: self.clone(), conversation, follower }
    }

    /// Adds committed entries to the tails and signals the followers.
    pub(super) fn publish(&self, published: &[Published]) {
        let all = &mut *lock(&self.0);
        for commit in published {
            let Some(topic) = all.by_id.get_mut(&commit.conversation) else { continue };
            all.tail_bytes -= topic.tail_bytes;
            topic.take_in(commit);
            topic.signal(commit.conversation);
            all.tail_bytes += topic.tail_bytes;
            if all.tail_bytes > ALL_TAILS {
                all.by_id.values_mut().for_each(ConversationTopic::drop_tail);
                all.tail_bytes = 0;
            }
        }
    }

    /// Forgets heads and tails after missed commits, and signals every follower.
    pub(super) fn missed(&self) {
        let mut all = lock(&self.0);
        all.tail_bytes = 0;
        for (conversation, topic) in &mut all.by_id {
            topic.head = 0;
            topic.drop_tail();
            topic.signal(*conversation);
        }
    }
}

impl TopicSubscription for LocalSubscription {
    fn begin_read(&self) {
        self.follower.signalled.store(false, Ordering::Release);
    }

    fn after(&self, position: u64, max: usize, bytes: usize) -> Tail {
        let all = lock(&self.pubsub.0);
        let Some(topic) = all.by_id.get(&self.conversation).filter(|t| t.head != 0) else {
            return Tail::Behind;
        };
        if position >= topic.head {
            return Tail::UpToDate;
        }
        let first = topic.head + 1 - topic.tail.len() as u64;
        match (position + 1).checked_sub(first) {
            Some(skip) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                let mut taken = 0;
                let fits = |entry: &&Bytes| {
                    let fits = taken < bytes;
                    taken += entry.len();
                    fits
                };
                let entries = topic.tail.iter().skip(skip).take(max).take_while(fits);
                Tail::Entries(entries.cloned().collect())
            }
            None => Tail::Behind,
        }
    }
}

impl Drop for LocalSubscription {
    fn drop(&mut self) {
        let all = &mut *lock(&self.pubsub.0);
        if let Some(topic) = all.by_id.get_mut(&self.conversation) {
            topic.followers.retain(|follower| !Arc::ptr_eq(follower, &self.follower));
            if topic.followers.is_empty() {
                all.tail_bytes -= topic.tail_bytes;
                all.by_id.remove(&self.conversation);
            }
        }
    }
}

impl ConversationTopic {
    fn take_in(&mut self, commit: &Published) {
        if commit.head <= self.head {
            return;
        }
        if commit.entries.first().is_none_or(|entry| entry.n != self.head + 1) {
            self.drop_tail();
        }
        self.head = commit.head;
        // Encoding more than the tail holds is wasted work.
        let skip = commit.entries.len().saturating_sub(TAIL_ENTRIES);
        for entry in commit.entries.iter().skip(skip) {
            let entry = Bytes::from(convert::entry(entry).encode_to_vec());
            self.tail_bytes += entry.len() + OVERHEAD;
            self.tail.push_back(entry);
        }
        while self.tail.len() > TAIL_ENTRIES || self.tail_bytes > TAIL_BYTES {
            let Some(old) = self.tail.pop_front() else { break };
            self.tail_bytes -= old.len() + OVERHEAD;
        }
    }

    fn drop_tail(&mut self) {
        self.tail = VecDeque::new();
        self.tail_bytes = 0;
    }

    fn signal(&self, conversation: ConversationId) {
        for follower in &self.followers {
            if !follower.signalled.swap(true, Ordering::AcqRel) {
                follower.session.signal(|signals| _ = signals.new_entries.insert(conversation));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use twinlock_core::chain::EntryKind;
    use twinlock_core::id::{DeviceId, Link, MessageId, Name, Salt};
    use twinlock_core::proto;
    use twinlock_store::{StoredContent, StoredEntry};

    use super::super::handles::{RegisteredSession, SessionLimits};
    use super::super::registry::Registry;
    use super::super::signals::Owner;
    use super::*;

    const BIG: usize = usize::MAX;

    fn commits(numbers: std::ops::RangeInclusive<u64>, body: usize) -> [Published; 1] {
        let head = *numbers.end();
        let entry = |n| StoredEntry {
            n,
            time_ms: 0,
            message_id: MessageId([0; 16]),
            kind: EntryKind::TEXT,
            sender: Bytes::new(),
            content: StoredContent::Body(Salt([0; 16]), vec![b'a'; body].into()),
            link: Link([0; 32]),
        };
        [Published { conversation: 1, head, entries: numbers.map(entry).collect() }]
    }

    fn session() -> RegisteredSession {
        let ada = Owner::User(Name::new("ada").unwrap());
        Arc::new(Registry::default())
            .enter(ada, Some(DeviceId([1; 16])), SessionLimits { device: 16, password: 16 })
            .unwrap()
    }

    fn numbers(tail: Tail) -> Vec<u64> {
        let Tail::Entries(entries) = tail else { panic!("{tail:?}") };
        entries.into_iter().map(|e| proto::Entry::decode(e).unwrap().n).collect()
    }

    #[test]
    fn topic__cursor_reads_tail_or_is_sent_to_store() {
        let pubsub = Arc::new(PubSub::default());
        let session = session();
        let following = pubsub.follow(&session, 1);
        assert_eq!(following.after(0, 9, BIG), Tail::Behind);
        pubsub.publish(&commits(5..=7, 10));
        assert_eq!(following.after(3, 9, BIG), Tail::Behind);
        assert_eq!(numbers(following.after(4, 9, BIG)), [5, 6, 7]);
        assert_eq!(numbers(following.after(5, 1, BIG)), [6]);
        assert_eq!(numbers(following.after(4, 9, 1)), [5]);
        assert_eq!(following.after(7, 9, BIG), Tail::UpToDate);
        pubsub.publish(&commits(8..=8, 10));
        assert_eq!(numbers(following.after(5, 9, BIG)), [6, 7, 8]);
        // A gap: entry 9 was not published.
        pubsub.publish(&commits(10..=10, 10));
        assert_eq!(following.after(7, 9, BIG), Tail::Behind);
        assert_eq!(numbers(following.after(9, 9, BIG)), [10]);
        pubsub.missed();
        assert_eq!(following.after(9, 9, BIG), Tail::Behind);
    }

    #[test]
    fn topic__repeated_publish_is_idempotent() {
        let pubsub = Arc::new(PubSub::default());
        let session = session();
        let following = pubsub.follow(&session, 1);
        pubsub.publish(&commits(5..=7, 10));
        pubsub.publish(&commits(6..=7, 10));
        assert_eq!(numbers(following.after(4, 9, BIG)), [5, 6, 7]);
    }

    #[test]
    fn topic__follower_is_notified_once_until_it_reads() {
        let pubsub = Arc::new(PubSub::default());
        let session = session();
        let following = pubsub.follow(&session, 1);
        assert_eq!(session.take_signals().new_entries.len(), 1);
        pubsub.publish(&commits(1..=1, 10));
        assert!(session.take_signals().new_entries.is_empty());
        following.begin_read();
        pubsub.publish(&commits(2..=2, 10));
        pubsub.publish(&commits(3..=3, 10));
        assert_eq!(session.take_signals().new_entries.len(), 1);
    }

    #[test]
    fn topic__tail_is_bounded_and_freed_with_last_follower() {
        let pubsub = Arc::new(PubSub::default());
        let session = session();
        let following = pubsub.follow(&session, 1);
        pubsub.publish(&commits(1..=2000, 10));
        assert_eq!(following.after(2000 - 513, 9999, BIG), Tail::Behind);
        assert_eq!(numbers(following.after(2000 - 512, 9999, BIG)).len(), 512);
        pubsub.publish(&commits(2001..=2100, 32 * 1024));
        let bytes = lock(&pubsub.0).tail_bytes;
        assert!((TAIL_BYTES / 2..=TAIL_BYTES).contains(&bytes), "{bytes}");
        // A new subscription survives the end of the old one.
        let again = pubsub.follow(&session, 1);
        drop(following);
        assert_eq!(numbers(again.after(2099, 9, BIG)), [2100]);
        drop(again);
        let all = lock(&pubsub.0);
        assert!(all.by_id.is_empty() && all.tail_bytes == 0);
    }
}
