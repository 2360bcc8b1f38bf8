//! The context of a transfer, without its connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::limit::RateLimit;
use super::model::{JobId, TransferEvent};
use crate::state::State;

/// Minimum interval between two progress events.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The context of a transfer, without its connection.
pub(super) struct JobContext {
    job: JobId,
    events: mpsc::Sender<TransferEvent>,
    pub(super) limit: Arc<RateLimit>,
    pub(super) state: State,
    /// When progress was reported last, and the bytes then.
    reported: Mutex<(Instant, u64)>,
}

impl JobContext {
    pub(super) fn new(
        job: JobId,
        events: mpsc::Sender<TransferEvent>,
        limit: Arc<RateLimit>,
        state: State,
    ) -> Self {
        Self { job, events, limit, state, reported: Mutex::new((Instant::now(), 0)) }
    }

    /// Reports that the transfer begins at byte `from`.
    pub(super) async fn began(&self, from: u64) {
        let _gone = self.events.send(TransferEvent::Began { job: self.job, from }).await;
    }

    /// Reports progress, at intervals, unless the event channel is full.
    pub(super) fn progress(&self, done: u64) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.1 != done && reported.0.elapsed() >= PROGRESS_INTERVAL {
            *reported = (Instant::now(), done);
            let _full = self.events.try_send(TransferEvent::Progress { job: self.job, done });
        }
    }
}
