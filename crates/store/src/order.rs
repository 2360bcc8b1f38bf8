//! The order of appends, which survives failures (design 006).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use crate::appended::Appended;
use crate::error::StoreError;

/// Resolves to the outcome of an append when its transaction has ended.
pub type AppendAnswer = Pin<Box<dyn Future<Output = Result<Vec<Appended>, StoreError>> + Send>>;

/// A sequence of appends that must keep its order even if some of them fail.
///
/// After one append of an order fails, later ones fail too ([`StoreError::OutOfOrder`]). A client
/// that sends all failed appends again therefore keeps the order. Clones share one order. A new
/// order starts without a failure.
#[derive(Debug, Clone, Default)]
pub struct Order(Arc<AtomicBool>);

impl Order {
    /// Whether an append of this order has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The store's side of one append: checks the order before it records, and answers the caller.
#[derive(Debug)]
pub struct AppendReply {
    order: Order,
    reply: oneshot::Sender<Result<Vec<Appended>, StoreError>>,
}

impl AppendReply {
    /// The reply to an append of `order`, and the answer for its caller.
    #[must_use]
    pub fn new(order: &Order) -> (Self, AppendAnswer) {
        let (reply, answer) = oneshot::channel();
        let answer = async { answer.await.unwrap_or(Err(StoreError::Closed)) };
        (Self { order: order.clone(), reply }, Box::pin(answer))
    }

    /// Whether an earlier append of the order has failed; this one must not be recorded then.
    ///
    /// # Errors
    /// [`StoreError::OutOfOrder`] if it has.
    pub fn check_order(&self) -> Result<(), StoreError> {
        if self.order.has_failed() { Err(StoreError::OutOfOrder) } else { Ok(()) }
    }

    /// Answers the caller after the transaction has ended.
    ///
    /// An error marks the order as failed first, so that a caller with the error finds it so. The
    /// append counts even if the caller has dropped its answer.
    pub fn send(self, result: Result<Vec<Appended>, StoreError>) {
        if result.is_err() {
            self.order.0.store(true, Ordering::Release);
        }
        self.reply.send(result).ok();
    }
}
