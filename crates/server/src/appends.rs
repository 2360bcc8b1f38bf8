//! Appends in flight: handed to the recorder and not yet acknowledged. Bounded, answered in order.

use std::cell::Cell;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::{Instant, sleep_until};
use twinlock_store::{AppendAnswer, Appended, NewEntry, Order, StoreError};

use crate::config::Limits;
use crate::limits::accounts::{Account, ENTRY};
use crate::record::Record;
use crate::refusal::{RETRY, RequestRefusal, Unrecorded};

/// Appends that go to the recorder together.
#[derive(Default)]
pub(crate) struct AppendBatch {
    requests: Vec<AppendRequest>,
    entries: Vec<NewEntry>,
    bytes: usize,
}

/// The request of an append.
pub(crate) struct AppendRequest {
    /// The request's id.
    pub(crate) id: u64,
    /// Length of the body, for the log.
    pub(crate) bytes: usize,
}

impl AppendBatch {
    pub(crate) fn push(&mut self, id: u64, entry: NewEntry) {
        self.requests.push(AppendRequest { id, bytes: entry.body.len() });
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

/// A batch that was handed to the recorder.
pub(crate) struct HandedBatch {
    requests: Vec<AppendRequest>,
    answer: Result<AppendAnswer, StoreError>,
    charged: u64,
}

/// A batch that the recorder has answered.
pub(crate) struct AnsweredBatch {
    pub(crate) requests: Vec<AppendRequest>,
    pub(crate) result: Result<Vec<Appended>, Unrecorded>,
    /// Bytes charged to the account; 0 if the recorder never had the batch.
    charged: u64,
}

impl AnsweredBatch {
    /// The answer to an empty batch.
    fn nothing() -> Self {
        Self { requests: Vec::new(), result: Ok(Vec::new()), charged: 0 }
    }
}

/// Batches of a session that are in flight.
#[derive(Default)]
pub(crate) struct Appends {
    /// The account of the user who appends.
    account: Option<Arc<Account>>,
    /// Until then, an append waits for the user's rate.
    slowed: Cell<Option<Instant>>,
    queue: FuturesOrdered<BoxFuture<'static, AnsweredBatch>>,
    requests: usize,
    bytes: usize,
    /// After a batch fails, those behind it fail too, until none is in flight.
    order: Order,
    /// Until then, new appends fail too: the client may have sent them before it learned of the
    /// failure.
    refusing: Option<Instant>,
    /// Why a batch was not handed over. Batches behind it get the same refusal.
    refused: Option<RequestRefusal>,
    /// The limit that caused `refusing`, if one did.
    refusing_for: Option<RequestRefusal>,
}

impl Appends {
    /// For a session of this account's user, whose other sessions share the account.
    pub(crate) fn of(account: Arc<Account>) -> Self {
        Self { account: Some(account), ..Self::default() }
    }

    /// Whether none is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Number of appends in flight.
    pub(crate) fn count(&self) -> usize {
        self.requests
    }

    /// Whether another append may join `batch`.
    ///
    /// If none is in flight, the first always may, so that no append waits forever. An exceeded
    /// text rate is the exception: [`Appends::next`] then wakes the session later.
    pub(crate) fn have_room(&self, batch: &AppendBatch, limits: &Limits) -> bool {
        if batch.is_empty()
            && let Some(account) = &self.account
        {
            let now = Instant::now();
            let wait = account.text_wait(now.into_std());
            self.slowed.set(wait.map(|wait| now + wait));
            if wait.is_some() {
                return false;
            }
        }
        let requests = self.requests + batch.requests.len();
        let bytes = self.bytes + batch.bytes;
        requests == 0 || (requests < limits.in_flight && bytes < limits.in_flight_bytes)
    }

    /// Hands a batch to the recorder.
    pub(crate) async fn record(&mut self, record: &Record, batch: AppendBatch) {
        if let Some(append) = self.begin(record, batch) {
            let handed = append.await;
            self.add_batch(handed);
        }
    }

    /// Starts to hand a batch to the recorder.
    ///
    /// Pass the future's output to [`Appends::add_batch`]. Poll it to completion, because other
    /// batches queue behind it. If it is dropped, nothing of the batch is recorded.
    pub(crate) fn begin(
        &mut self,
        record: &Record,
        batch: AppendBatch,
    ) -> Option<BoxFuture<'static, HandedBatch>> {
        let AppendBatch { requests, entries, bytes } = batch;
        if entries.is_empty() {
            return None;
        }
        self.requests += requests.len();
        self.bytes += bytes;
        let no = match (self.refused, self.refusing) {
            (Some(refused), _) => Some(Unrecorded::Behind(refused)),
            (None, Some(until)) if Instant::now() < until => Some(match self.refusing_for {
                Some(refused) => Unrecorded::Behind(refused),
                None => StoreError::OutOfOrder.into(),
            }),
            _ => None,
        };
        let charged = requests.iter().map(|asked| asked.bytes as u64 + ENTRY).sum();
        let no = no.or_else(|| {
            let refused = record.may_record(self.account.as_deref(), charged).err()?;
            self.refused = Some(refused);
            Some(Unrecorded::Limit(refused))
        });
        if let Some(no) = no {
            let refused = AnsweredBatch { requests, result: Err(no), charged: 0 };
            self.queue.push_back(Box::pin(ready(refused)));
            return None;
        }
        let (store, order) = (record.store.clone(), self.order.clone());
        Some(Box::pin(async move {
            HandedBatch { requests, answer: store.hand_over(entries, &order).await, charged }
        }))
    }

    /// Adds a batch that the recorder has taken or refused.
    pub(crate) fn add_batch(&mut self, HandedBatch { requests, answer, charged }: HandedBatch) {
        self.queue.push_back(Box::pin(async move {
            let result = match answer {
                Ok(answer) => answer.await.map_err(Unrecorded::from),
                Err(error) => Err(error.into()),
            };
            AnsweredBatch { requests, result, charged }
        }));
    }

    /// The recorder's next answer; `None` while nothing is in flight.
    ///
    /// Returns an empty answer once an append has waited for its user's rate. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<AnsweredBatch> {
        let recorded = match self.slowed.get() {
            None => self.queue.next().await?,
            Some(until) => tokio::select! {
                biased;
                Some(recorded) = self.queue.next() => recorded,
                () = sleep_until(until) => {
                    self.slowed.set(None);
                    return Some(AnsweredBatch::nothing());
                }
            },
        };
        self.requests -= recorded.requests.len();
        self.bytes -= recorded.requests.iter().map(|asked| asked.bytes).sum::<usize>();
        let until = Instant::now() + RETRY;
        match &recorded.result {
            Err(Unrecorded::Store(StoreError::OutOfOrder) | Unrecorded::Behind(_)) => {}
            Err(Unrecorded::Limit(refused)) => {
                (self.refusing, self.refusing_for) = (Some(until), Some(*refused));
            }
            Err(Unrecorded::Store(_)) => (self.refusing, self.refusing_for) = (Some(until), None),
            Ok(_) => (self.refusing, self.refusing_for) = (None, None),
        }
        if let (Err(_), Some(account)) = (&recorded.result, &self.account) {
            account.give_back(recorded.charged);
        }
        if self.requests == 0 {
            // An idle session keeps no buffer.
            self.queue = FuturesOrdered::new();
            self.refused = None;
            if self.order.has_failed() {
                self.order = Order::default();
            }
        }
        Some(recorded)
    }
}

/// Copies a body out of its frame. A slice would keep the whole frame in memory as long as the
/// body.
pub(crate) fn own_body(body: &Bytes) -> Bytes {
    Bytes::copy_from_slice(body)
}
