//! The one request of a session that is under way, polled together with the connection.
//!
//! A request owns what it needs, so the session can go on reading, keep its timers and end at any
//! moment. A request that only reads ends with its session. One that changes something runs to its
//! end in a separate task: its commit and the steps after it, such as ending the sessions of a revoked
//! device, must not be separated.

use futures_util::future::BoxFuture;
use twinlock_core::id::ConversationId;
use twinlock_core::proto::answer::Result as Answered;

use super::super::appends::Handed;
use super::super::refusal::Refused;
use super::super::register::Registrations;
use super::super::step_up::StepUp;

/// A request under way, or appends on their way to the recorder.
pub(super) struct Job {
    work: BoxFuture<'static, Finished>,
    lasting: bool,
}

/// What a job has come to.
pub(super) enum Finished {
    Request(Box<Done>),
    Handed(Handed),
    /// Its task panicked, which is logged there.
    Failed,
}

/// A request that was done.
pub(super) struct Done {
    pub(super) id: u64,
    pub(super) result: Result<Answered, Refused>,
    /// A cursor to set, together with the answer.
    pub(super) follow: Option<(ConversationId, u64)>,
    /// Given back by a request that may register.
    pub(super) registrations: Option<Registrations>,
    /// Given back by a request that may use the step-up.
    pub(super) step_up: Option<Box<StepUp>>,
}

impl Job {
    /// Ends when the session does.
    pub(super) fn reading(work: impl Future<Output = Done> + Send + 'static) -> Self {
        Self { work: Box::pin(async { Finished::Request(Box::new(work.await)) }), lasting: false }
    }

    /// Runs to its end, whether the session does or not.
    pub(super) fn changing(work: impl Future<Output = Done> + Send + 'static) -> Self {
        let task = tokio::spawn(work);
        let work = Box::pin(async {
            match task.await {
                Ok(done) => Finished::Request(Box::new(done)),
                Err(error) => {
                    tracing::error!(%error, "a request's task failed");
                    Finished::Failed
                }
            }
        });
        Self { work, lasting: true }
    }

    /// Appends that the recorder has no room for yet. Dropped, they are not recorded.
    pub(super) fn handing(work: BoxFuture<'static, Handed>) -> Self {
        Self { work: Box::pin(async { Finished::Handed(work.await) }), lasting: false }
    }

    /// Runs to its end in any case.
    pub(super) fn is_lasting(&self) -> bool {
        self.lasting
    }
}

/// What the job has come to, which is none then; `None` while there is none. Cancel-safe.
pub(super) async fn next_finished(job: &mut Option<Job>) -> Option<Finished> {
    let finished = job.as_mut()?.work.as_mut().await;
    *job = None;
    Some(finished)
}
