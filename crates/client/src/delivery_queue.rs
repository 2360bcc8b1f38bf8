//! The results of messages between the router and [`crate::Deliveries`].

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use twinlock_core::id::MessageId;

use crate::error::{ClientError, RefusalReason};
use crate::outbox::Ack;

/// The results of messages on their way from the router. At most one for each watched message.
#[derive(Debug, Default)]
pub(crate) struct DeliveryQueue {
    state: Mutex<DeliveryState>,
    pub(crate) changed: Notify,
}

type MessageResult = Result<Ack, RefusalReason>;

#[derive(Debug, Default)]
struct DeliveryState {
    results: VecDeque<(MessageId, MessageResult)>,
    /// A message of somebody else has a result.
    has_progress: bool,
    ended: Option<ClientError>,
}

impl DeliveryQueue {
    pub(crate) fn settle(&self, message_id: MessageId, result: MessageResult) {
        self.state().results.push_back((message_id, result));
        self.changed.notify_one();
    }

    pub(crate) fn progressed(&self) {
        self.state().has_progress = true;
        self.changed.notify_one();
    }

    pub(crate) fn end(&self, error: &ClientError) {
        self.state().ended = Some(error.clone());
        self.changed.notify_one();
    }

    pub(crate) fn take(&self) -> Option<(MessageId, MessageResult)> {
        self.state().results.pop_front()
    }

    pub(crate) fn take_progress(&self) -> bool {
        std::mem::take(&mut self.state().has_progress)
    }

    pub(crate) fn ended(&self) -> Option<ClientError> {
        self.state().ended.clone()
    }

    fn state(&self) -> MutexGuard<'_, DeliveryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
