//! Messages on their way to the record: each one's result, whichever process of the profile sends
//! it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use twinlock_core::id::MessageId;
use twinlock_transport::OsEntropy;

use crate::blocking::blocking;
use crate::client::Client;
use crate::clock::now_ms;
use crate::delivery_queue::DeliveryQueue;
use crate::error::{ClientError, RefusalReason};
use crate::event_router::EventRouter;
use crate::outbox::{Ack, MessageOutcome};

/// How often the outbox is checked for messages that another process of the profile has sent: that
/// process gets the event.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of messages in one check of the outbox.
const CHECK_SIZE: usize = 512;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryEvent {
    /// It is on the server's disk.
    Recorded {
        /// The message.
        message_id: MessageId,
        /// Its position, time and link.
        ack: Ack,
    },
    /// The server refuses to record it. It stays in the outbox.
    Refused {
        /// The message.
        message_id: MessageId,
        /// The reason.
        why: RefusalReason,
    },
    /// It was removed from the outbox. If it had been sent before, it may still be recorded.
    Discarded {
        /// The message.
        message_id: MessageId,
    },
    /// An older message of the outbox has a result: messages are sent in order.
    Progress,
}

/// Sends messages, and reports what becomes of each; see [`Client::deliveries`].
///
/// A message is in the outbox, and so survives a crash, when [`Self::send`] returns. What has no
/// result when this is dropped is still sent, by this client or by the next one of the profile.
#[derive(Debug)]
pub struct Deliveries {
    client: Client,
    router: EventRouter,
    queue: Arc<DeliveryQueue>,
    pending: HashSet<MessageId>,
    discarded: HashSet<MessageId>,
    ready: VecDeque<DeliveryEvent>,
    checks: Interval,
    /// Wait for other processes when this device has too many sessions.
    outlasts_session: bool,
}

impl Deliveries {
    pub(crate) fn new(client: Client, router: EventRouter) -> Self {
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            client,
            queue: router.deliver_to(),
            router,
            pending: HashSet::new(),
            discarded: HashSet::new(),
            ready: VecDeque::new(),
            checks,
            outlasts_session: false,
        }
    }

    /// Continues to wait if the device has too many sessions: another process of the profile may
    /// send the messages.
    #[must_use]
    pub fn outlasting_session(mut self) -> Self {
        self.outlasts_session = true;
        self
    }

    /// Puts texts into the outbox, in order. `target` is a room's name, or `@` and a user name.
    /// Needs no connection.
    ///
    /// # Errors
    /// [`ClientError::State`] if they cannot be stored; then none of them is sent.
    pub async fn send(
        &mut self,
        target: &str,
        texts: Vec<String>,
    ) -> Result<Vec<MessageId>, ClientError> {
        let outbox = self.client.state().outbox();
        let target = target.to_owned();
        let enqueue = move || {
            let messages = texts.iter().map(|text| (target.as_str(), text.as_bytes()));
            Ok(outbox.enqueue_many(messages, now_ms(), &mut OsEntropy)?)
        };
        let ids = blocking(enqueue).await?;
        self.watch(&ids).await;
        Ok(ids)
    }

    /// Sends the refused messages of the outbox again, and watches all that are queued. Returns
    /// their number.
    ///
    /// # Errors
    /// [`ClientError::State`].
    pub async fn resend_refused(&mut self) -> Result<usize, ClientError> {
        let outbox = self.client.state().outbox();
        let queue = move || {
            outbox.retry_refused()?;
            Ok(outbox.pending(usize::MAX)?)
        };
        let queued = blocking(queue).await?;
        let ids: Vec<_> = queued.into_iter().map(|message| message.message_id).collect();
        self.watch(&ids).await;
        Ok(ids.len())
    }

    /// Number of messages without a result.
    #[must_use]
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Waits for the next result. Cancel-safe.
    ///
    /// # Errors
    /// The error that ended the client, once all results from before are returned.
    pub async fn next(&mut self) -> Result<DeliveryEvent, ClientError> {
        loop {
            if let Some(event) = self.take_ready() {
                return Ok(event);
            }
            match self.queue.ended() {
                None => {}
                Some(ClientError::TooManySessions) if self.outlasts_session => {}
                Some(error) => {
                    // The ended client has stored the last results.
                    let _unreadable = self.check_outbox().await;
                    return self.take_ready().ok_or(error);
                }
            }
            tokio::select! {
                () = self.queue.changed.notified() => {}
                _ = self.checks.tick(), if !self.pending.is_empty() => self.check_outbox().await?,
            }
        }
    }

    /// The results that the outbox has now. Call this after [`Client::close`].
    ///
    /// # Errors
    /// [`ClientError::State`].
    pub async fn last_results(&mut self) -> Result<Vec<DeliveryEvent>, ClientError> {
        self.check_outbox().await?;
        Ok(std::iter::from_fn(|| self.take_ready()).collect())
    }

    async fn watch(&mut self, ids: &[MessageId]) {
        self.pending.extend(ids);
        self.router.watch(ids, &self.queue);
        // The messages are on disk: an error here would make the caller send them twice.
        let _closed = self.client.notify_enqueued().await;
    }

    fn take_ready(&mut self) -> Option<DeliveryEvent> {
        if let Some(event) = self.ready.pop_front() {
            return Some(event);
        }
        while let Some((message_id, result)) = self.queue.take() {
            if !self.pending.remove(&message_id) && !self.discarded.remove(&message_id) {
                continue;
            }
            return Some(match result {
                Ok(ack) => DeliveryEvent::Recorded { message_id, ack },
                Err(why) => DeliveryEvent::Refused { message_id, why },
            });
        }
        self.queue.take_progress().then_some(DeliveryEvent::Progress)
    }

    /// Finds messages that another process has sent or removed, or whose result is older than
    /// [`Self::watch`].
    async fn check_outbox(&mut self) -> Result<(), ClientError> {
        let ids: Vec<_> = self.pending.iter().copied().collect();
        for ids in ids.chunks(CHECK_SIZE) {
            let (outbox, asked) = (self.client.state().outbox(), ids.to_vec());
            let outcomes = blocking(move || Ok(outbox.outcomes(&asked)?)).await?;
            for (&message_id, outcome) in ids.iter().zip(outcomes) {
                if matches!(outcome, Some(MessageOutcome::Recorded(_) | MessageOutcome::Refused(_)))
                {
                    self.router.forget([&message_id]);
                }
                let event = match outcome {
                    Some(MessageOutcome::Pending) => continue,
                    Some(MessageOutcome::Recorded(ack)) => {
                        DeliveryEvent::Recorded { message_id, ack }
                    }
                    Some(MessageOutcome::Refused(why)) => {
                        DeliveryEvent::Refused { message_id, why }
                    }
                    None => {
                        self.discarded.insert(message_id);
                        DeliveryEvent::Discarded { message_id }
                    }
                };
                self.pending.remove(&message_id);
                self.ready.push_back(event);
            }
        }
        Ok(())
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.router.forget(self.pending.iter().chain(&self.discarded));
    }
}
