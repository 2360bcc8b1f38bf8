//! Appends under way: handed to the recorder, not yet acknowledged. Bounded, answered in order.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::Instant;
use twinlock_store::{Appended, NewEntry, Order, Store, StoreError};

use super::refusal::RETRY;
use crate::config::Limits;

/// Appends that go to the recorder together.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<Asked>,
    entries: Vec<NewEntry>,
    bytes: usize,
}

/// Who waits for an append.
pub(crate) struct Asked {
    /// The request's id.
    pub(crate) id: u64,
    /// Of the body, for the log.
    pub(crate) bytes: usize,
}

impl Batch {
    pub(crate) fn push(&mut self, id: u64, entry: NewEntry) {
        self.requests.push(Asked { id, bytes: entry.body.len() });
        self.bytes += entry.body.len();
        self.entries.push(entry);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn entries(&self) -> &[NewEntry] {
        &self.entries
    }
}

/// A batch that the recorder has answered.
pub(crate) struct Recorded {
    pub(crate) requests: Vec<Asked>,
    pub(crate) result: Result<Vec<Appended>, StoreError>,
}

/// The batches of a line that the recorder has.
#[derive(Default)]
pub(crate) struct Appends {
    queue: FuturesOrdered<BoxFuture<'static, Recorded>>,
    requests: usize,
    bytes: usize,
    /// Once one batch has failed, those behind it fail too, until none is left.
    order: Order,
    /// And so do those that come before the client can have heard of it and come again: they were
    /// on their way.
    refusing: Option<Instant>,
}

impl Appends {
    /// None is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// How many are under way.
    pub(crate) fn count(&self) -> usize {
        self.requests
    }

    /// Whether another may join `batch`. One is always let through, so that nobody waits for ever.
    pub(crate) fn have_room(&self, batch: &Batch, limits: &Limits) -> bool {
        let requests = self.requests + batch.requests.len();
        let bytes = self.bytes + batch.bytes;
        requests == 0 || (requests < limits.in_flight && bytes < limits.in_flight_bytes)
    }

    /// Hands a batch to the recorder.
    pub(crate) async fn record(&mut self, store: &Arc<dyn Store>, batch: Batch) {
        let Batch { requests, entries, bytes } = batch;
        if entries.is_empty() {
            return;
        }
        self.requests += requests.len();
        self.bytes += bytes;
        if self.refusing.is_some_and(|until| Instant::now() < until) {
            let result = Err(StoreError::OutOfOrder);
            self.queue.push_back(Box::pin(ready(Recorded { requests, result })));
            return;
        }
        match store.hand_over(entries, &self.order).await {
            Ok(answer) => {
                self.queue.push_back(Box::pin(async move {
                    Recorded { requests, result: answer.await }
                }));
            }
            Err(error) => {
                self.queue.push_back(Box::pin(ready(Recorded { requests, result: Err(error) })));
            }
        }
    }

    /// The next answer of the recorder; `None` while nothing is under way. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Recorded> {
        let recorded = self.queue.next().await?;
        self.requests -= recorded.requests.len();
        self.bytes -= recorded.requests.iter().map(|asked| asked.bytes).sum::<usize>();
        self.refusing = match &recorded.result {
            Err(StoreError::OutOfOrder) => self.refusing,
            Err(_) => Some(Instant::now() + RETRY),
            Ok(_) => None,
        };
        if self.requests == 0 {
            // An idle line keeps no buffer.
            self.queue = FuturesOrdered::new();
            if self.order.has_failed() {
                self.order = Order::default();
            }
        }
        Some(recorded)
    }
}

/// A body of its own: what came is a part of its whole frame, which it would keep in memory for as
/// long as it is kept itself.
pub(crate) fn own_body(body: &Bytes) -> Bytes {
    Bytes::copy_from_slice(body)
}
