//! Passes the events of a client to the parts of a program that wait for them.
//!
//! The router takes every event at once, so no waiting part delays another. What waits in a
//! [`Subscription`] is bounded: above the limit the router stops following the conversation, and
//! the subscription follows it again once its reader has caught up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{broadcast, mpsc};
use twinlock_core::id::{ConversationId, MessageId};

use crate::connection_events::{ConnectionEvent, ConnectionEvents};
use crate::delivery_queue::DeliveryQueue;
use crate::driver::DriverCommand;
use crate::error::ClientError;
use crate::model::{Event, FollowToken};
use crate::subscription::Subscription;

/// Capacity of the channel of connection events. A reader that is further behind misses the oldest.
const CONNECTION_EVENTS: usize = 64;

/// The waiting parts of a program. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct EventRouter {
    routes: Arc<Mutex<Routes>>,
}

#[derive(Debug)]
struct Routes {
    /// The queue for the result of each watched message.
    messages: HashMap<MessageId, Arc<DeliveryQueue>>,
    deliveries: Vec<Weak<DeliveryQueue>>,
    /// The subscription for the entries of each conversation.
    conversations: HashMap<ConversationId, Arc<Subscription>>,
    subscriptions: Vec<Weak<Subscription>>,
    connection: broadcast::Sender<ConnectionEvent>,
    /// The last event of the connection, for readers that begin later.
    last: Option<ConnectionEvent>,
    /// Set when the connection is lost, cleared by the next one.
    was_down: bool,
    /// Number of follows so far.
    follows: FollowToken,
    /// The client has ended, perhaps by this error.
    ended: Option<ClientError>,
}

impl EventRouter {
    pub(crate) fn new() -> Self {
        let routes = Routes {
            messages: HashMap::new(),
            deliveries: Vec::new(),
            conversations: HashMap::new(),
            subscriptions: Vec::new(),
            connection: broadcast::Sender::new(CONNECTION_EVENTS),
            last: None,
            was_down: false,
            follows: 0,
            ended: None,
        };
        Self { routes: Arc::new(Mutex::new(routes)) }
    }

    /// Routes events until the client ends. `commands` is weak, because the client ends with the
    /// last handle of its user.
    pub(crate) async fn run(
        self,
        mut events: mpsc::Receiver<Event>,
        commands: mpsc::WeakSender<DriverCommand>,
    ) {
        let mut end = None;
        while let Some(event) = events.recv().await {
            let unwanted = match event {
                Event::Ended(error) => {
                    end = error;
                    None
                }
                event => self.routes().take(event),
            };
            if let (Some((conversation, token)), Some(commands)) = (unwanted, commands.upgrade()) {
                // The driver ignores it if a later follow has begun since.
                let _ended = commands.send(DriverCommand::Unfollow { conversation, token }).await;
            }
        }
        self.routes().end(end);
    }

    /// The changes of the connection, from the current state on.
    pub(crate) fn connection_events(&self) -> ConnectionEvents {
        let routes = self.routes();
        ConnectionEvents::new(routes.last.clone(), routes.connection.subscribe())
    }

    /// Adds a queue for the results of messages.
    pub(crate) fn deliver_to(&self) -> Arc<DeliveryQueue> {
        let queue = Arc::new(DeliveryQueue::default());
        let mut routes = self.routes();
        match &routes.ended {
            Some(error) => queue.end(error),
            None => {
                routes.deliveries.retain(|queue| queue.strong_count() > 0);
                routes.deliveries.push(Arc::downgrade(&queue));
            }
        }
        queue
    }

    /// Passes the results of messages to a queue. A result from before this is lost: look it up in
    /// the outbox after this.
    pub(crate) fn watch(&self, message_ids: &[MessageId], queue: &Arc<DeliveryQueue>) {
        let mut routes = self.routes();
        if routes.ended.is_none() {
            routes.messages.extend(message_ids.iter().map(|id| (*id, queue.clone())));
        }
    }

    /// Passes no more results of these messages.
    pub(crate) fn forget<'a>(&self, message_ids: impl IntoIterator<Item = &'a MessageId>) {
        let mut routes = self.routes();
        for id in message_ids {
            routes.messages.remove(id);
        }
    }

    /// Adds a subscription, which gets the changes of all conversations and no entries yet.
    pub(crate) fn subscribe(&self) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription::default());
        let mut routes = self.routes();
        match &routes.ended {
            Some(error) => subscription.end(error.clone()),
            None => {
                routes.subscriptions.retain(|subscription| subscription.strong_count() > 0);
                routes.subscriptions.push(Arc::downgrade(&subscription));
            }
        }
        subscription
    }

    /// Passes the entries of a conversation after one to a subscription, and no longer to another.
    /// Returns the follow to begin, and the entry to begin after.
    pub(crate) fn add_conversation(
        &self,
        subscription: &Arc<Subscription>,
        conversation: ConversationId,
        after: u64,
    ) -> (FollowToken, u64) {
        let mut routes = self.routes();
        routes.follows += 1;
        let token = routes.follows;
        let after = subscription.begin(conversation, after, token);
        if routes.ended.is_some() {
            return (token, after);
        }
        let earlier = routes.conversations.insert(conversation, subscription.clone());
        if let Some(earlier) = earlier.filter(|earlier| !Arc::ptr_eq(earlier, subscription)) {
            earlier.superseded(conversation);
        }
        (token, after)
    }

    /// The follow to begin after a full queue, and the entry to begin after; `None` if the
    /// subscription no longer has the conversation.
    pub(crate) fn follow_again(
        &self,
        subscription: &Subscription,
        conversation: ConversationId,
    ) -> Option<(FollowToken, u64)> {
        let mut routes = self.routes();
        routes.follows += 1;
        let token = routes.follows;
        subscription.renew(conversation, token).map(|after| (token, after))
    }

    /// Passes no more entries to a subscription.
    pub(crate) fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        self.routes().conversations.retain(|_, other| !Arc::ptr_eq(other, subscription));
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes {
    /// Passes an event on. Returns a follow whose entries are not taken now.
    fn take(&mut self, event: Event) -> Option<(ConversationId, FollowToken)> {
        match event {
            Event::Up(up) => {
                self.tell(ConnectionEvent::Up(up));
                if std::mem::take(&mut self.was_down) {
                    self.each_subscription(Subscription::reconnected);
                }
            }
            Event::Down { error, retry } => {
                self.was_down = true;
                self.tell(ConnectionEvent::Down { error, retry });
            }
            Event::Held { error, retry } => {
                // A reader that begins later learns of it from the next one.
                let _nobody = self.connection.send(ConnectionEvent::Held { error, retry });
            }
            Event::Recorded { message_id, ack } => self.settle(message_id, Ok(ack)),
            Event::Refused { message_id, why } => self.settle(message_id, Err(why)),
            Event::Entries { conversation, follow, entries } => {
                let subscription = self.conversations.get(&conversation);
                let takes = subscription.is_some_and(|to| to.add(conversation, follow, entries));
                return (!takes).then_some((conversation, follow));
            }
            Event::CaughtUp { conversation, follow, entries } => {
                if let Some(subscription) = self.conversations.get(&conversation) {
                    subscription.caught_up(conversation, follow, entries);
                }
            }
            Event::Conversation(changed) => {
                if !changed.joined {
                    self.conversations.remove(&changed.id);
                }
                self.each_subscription(|subscription| subscription.changed(&changed));
            }
            _ => {}
        }
        None
    }

    fn tell(&mut self, event: ConnectionEvent) {
        self.last = Some(event.clone());
        let _nobody = self.connection.send(event);
    }

    fn settle(
        &mut self,
        message_id: MessageId,
        result: Result<crate::outbox::Ack, crate::error::RefusalReason>,
    ) {
        let owner = self.messages.remove(&message_id);
        for queue in self.deliveries.iter().filter_map(Weak::upgrade) {
            if !owner.as_ref().is_some_and(|owner| Arc::ptr_eq(owner, &queue)) {
                queue.progressed();
            }
        }
        if let Some(owner) = owner {
            owner.settle(message_id, result);
        }
    }

    fn each_subscription(&self, act: impl Fn(&Subscription)) {
        self.subscriptions.iter().filter_map(Weak::upgrade).for_each(|to| act(&to));
    }

    fn end(&mut self, error: Option<ClientError>) {
        self.tell(ConnectionEvent::Ended(error.clone()));
        let error = error.unwrap_or(ClientError::Closed);
        for queue in self.deliveries.drain(..).filter_map(|queue| queue.upgrade()) {
            queue.end(&error);
        }
        self.each_subscription(|subscription| subscription.end(error.clone()));
        self.subscriptions.clear();
        self.conversations.clear();
        self.messages.clear();
        self.ended = Some(error);
    }
}
