//! Passes the events of a client to the parts of a program that wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, oneshot};
use twinlock_core::id::{ConversationId, MessageId, Name};

use crate::error::{ClientError, Refusal};
use crate::model::{Entry, Event};
use crate::outbox::Ack;

/// Maximum number of entries that wait in a subscription. After more, the subscription follows
/// again from the last of them.
const MAX_QUEUED: usize = 1024;

/// What becomes of a message.
pub(crate) type MessageResult = Result<Ack, ClientError>;

/// The waiting parts of a program. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct EventRouter {
    user: Arc<Name>,
    routes: Arc<Mutex<Routes>>,
}

#[derive(Debug, Default)]
struct Routes {
    messages: HashMap<MessageId, oneshot::Sender<MessageResult>>,
    conversations: HashMap<ConversationId, Arc<Subscription>>,
    /// The client has ended, perhaps by this error.
    ended: Option<ClientError>,
}

/// The entries of one followed conversation.
#[derive(Debug)]
pub(crate) struct Subscription {
    queue: Mutex<EntryQueue>,
    changed: Notify,
}

#[derive(Debug)]
struct EntryQueue {
    entries: VecDeque<Entry>,
    /// Number of the last queued entry.
    last: u64,
    /// Later entries were dropped, because the queue was full.
    overflowed: bool,
    ended: Option<ClientError>,
}

/// The next thing that a subscription has.
pub(crate) enum SubscriptionItem {
    Entry(Box<Entry>),
    /// Follow again after this entry.
    FollowAgain(u64),
}

impl EventRouter {
    pub(crate) fn new(user: Name) -> Self {
        Self { user: Arc::new(user), routes: Arc::default() }
    }

    /// The user of the client.
    pub(crate) fn user(&self) -> Arc<Name> {
        self.user.clone()
    }

    /// Routes events until the client ends.
    pub(crate) async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut end = None;
        while let Some(event) = events.recv().await {
            match event {
                Event::Recorded { message_id, ack } => self.settle(message_id, Ok(ack)),
                Event::Refused { message_id, why } => {
                    self.settle(message_id, Err(ClientError::Refused(Refusal::from(why))));
                }
                Event::Entries { conversation, entries } => {
                    let subscription = self.routes().conversations.get(&conversation).cloned();
                    if let Some(subscription) = subscription {
                        subscription.add(entries);
                    }
                }
                Event::Conversation(changed) if !changed.joined => {
                    let left = self.routes().conversations.remove(&changed.id);
                    if let Some(subscription) = left {
                        subscription.end(ClientError::Left);
                    }
                }
                Event::Ended(error) => end = error,
                _ => {}
            }
        }
        let end = end.unwrap_or(ClientError::Closed);
        let mut routes = self.routes();
        routes.ended = Some(end.clone());
        for (_, waiter) in routes.messages.drain() {
            let _gone = waiter.send(Err(end.clone()));
        }
        for (_, subscription) in routes.conversations.drain() {
            subscription.end(end.clone());
        }
    }

    /// Waits for what becomes of a message. Check the outbox after this and before waiting: an
    /// event from before is lost.
    pub(crate) fn watch(&self, message_id: MessageId) -> oneshot::Receiver<MessageResult> {
        let (sender, receiver) = oneshot::channel();
        let mut routes = self.routes();
        match &routes.ended {
            Some(error) => drop(sender.send(Err(error.clone()))),
            None => drop(routes.messages.insert(message_id, sender)),
        }
        receiver
    }

    /// Ends the wait for a message.
    pub(crate) fn forget(&self, message_id: &MessageId) {
        self.routes().messages.remove(message_id);
    }

    /// Subscribes to a conversation after an entry. An earlier subscription gets no more entries.
    pub(crate) fn subscribe(&self, conversation: ConversationId, after: u64) -> Arc<Subscription> {
        let mut routes = self.routes();
        let ended = routes.ended.clone();
        let queue = EntryQueue { entries: VecDeque::new(), last: after, overflowed: false, ended };
        let subscription =
            Arc::new(Subscription { queue: Mutex::new(queue), changed: Notify::new() });
        if let Some(earlier) = routes.conversations.insert(conversation, subscription.clone()) {
            earlier.end(ClientError::Closed);
        }
        subscription
    }

    /// Ends a subscription, unless a later one has its place.
    pub(crate) fn unsubscribe(&self, conversation: ConversationId, of: &Arc<Subscription>) {
        let mut routes = self.routes();
        if routes.conversations.get(&conversation).is_some_and(|now| Arc::ptr_eq(now, of)) {
            routes.conversations.remove(&conversation);
        }
    }

    fn settle(&self, message_id: MessageId, result: MessageResult) {
        let waiter = self.routes().messages.remove(&message_id);
        if let Some(waiter) = waiter {
            let _gone = waiter.send(result);
        }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits for the next entry. Cancel-safe.
    pub(crate) async fn next(&self) -> Result<SubscriptionItem, ClientError> {
        loop {
            {
                let mut queue = self.queue();
                if let Some(entry) = queue.entries.pop_front() {
                    return Ok(SubscriptionItem::Entry(Box::new(entry)));
                }
                if let Some(error) = &queue.ended {
                    return Err(error.clone());
                }
                if queue.overflowed {
                    return Ok(SubscriptionItem::FollowAgain(queue.last));
                }
            }
            self.changed.notified().await;
        }
    }

    /// Call this after following again: until then [`Self::next`] asks for it, also if a caller was
    /// cancelled in between.
    pub(crate) fn followed_again(&self) {
        self.queue().overflowed = false;
    }

    /// Queues the entries that follow the last one. Others arrived before the subscription began,
    /// or after entries that were dropped.
    fn add(&self, entries: Vec<Entry>) {
        let mut queue = self.queue();
        for entry in entries {
            if entry.n != queue.last.saturating_add(1) {
                continue;
            }
            if queue.entries.len() >= MAX_QUEUED {
                queue.overflowed = true;
                break;
            }
            queue.last = entry.n;
            queue.entries.push_back(entry);
        }
        self.changed.notify_one();
    }

    fn end(&self, error: ClientError) {
        self.queue().ended = Some(error);
        self.changed.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, EntryQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
