//! The request in progress of a session, polled together with the connection.
//!
//! A request owns what it needs, so the session can continue to read, keep its timers and end at
//! any moment. A request that only reads ends with its session. One that changes something runs to
//! its end in a separate task: its commit and the steps after it, such as closing the sessions of a
//! revoked device, must not be separated.

use futures_util::future::BoxFuture;
use twinlock_core::id::ConversationId;
use twinlock_core::proto::answer::Result as Answered;

use super::super::register::Registrations;
use super::super::step_up::SessionStepUp;
use crate::appends::HandedBatch;
use crate::refusal::RequestRefusal;

/// A request in progress, or a hand-over of appends to the recorder.
pub(super) struct InProgress {
    work: BoxFuture<'static, FinishedWork>,
    lasting: bool,
}

/// The output of a job.
pub(super) enum FinishedWork {
    Request(Box<CompletedRequest>),
    Handed(HandedBatch),
    /// Its task panicked, which is logged there.
    Failed,
}

/// A completed request.
pub(super) struct CompletedRequest {
    pub(super) id: u64,
    pub(super) result: Result<Answered, RequestRefusal>,
    /// A cursor to set together with the answer.
    pub(super) follow: Option<(ConversationId, u64)>,
    /// Returned by a request that may register.
    pub(super) registrations: Option<Registrations>,
    /// Returned by a request that may use the step-up.
    pub(super) step_up: Option<Box<SessionStepUp>>,
}

impl InProgress {
    /// A job that ends with the session.
    pub(super) fn reading(work: impl Future<Output = CompletedRequest> + Send + 'static) -> Self {
        Self {
            work: Box::pin(async { FinishedWork::Request(Box::new(work.await)) }),
            lasting: false,
        }
    }

    /// A job that runs to its end even if the session ends.
    pub(super) fn changing(work: impl Future<Output = CompletedRequest> + Send + 'static) -> Self {
        let task = tokio::spawn(work);
        let work = Box::pin(async {
            match task.await {
                Ok(done) => FinishedWork::Request(Box::new(done)),
                Err(error) => {
                    tracing::error!(%error, "a request's task failed");
                    FinishedWork::Failed
                }
            }
        });
        Self { work, lasting: true }
    }

    /// A hand-over of appends for which the recorder has no room yet. If dropped, they are not
    /// recorded.
    pub(super) fn append(work: BoxFuture<'static, HandedBatch>) -> Self {
        Self { work: Box::pin(async { FinishedWork::Handed(work.await) }), lasting: false }
    }

    /// Whether the job runs to its end in any case.
    pub(super) fn is_lasting(&self) -> bool {
        self.lasting
    }
}

/// The output of the job, which is then removed; `None` while there is none. Cancel-safe.
pub(super) async fn next_finished(in_progress: &mut Option<InProgress>) -> Option<FinishedWork> {
    let finished = in_progress.as_mut()?.work.as_mut().await;
    *in_progress = None;
    Some(finished)
}
