//! How long a command waits without progress.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Interval between two readings of the clock.
const LOOK: Duration = Duration::from_millis(500);
/// The most that counts between two readings. In the rest the process was stopped (Ctrl-Z, a
/// debugger) or was not scheduled.
const MOST: Duration = Duration::from_secs(1);

/// A deadline that counts only time in which the process ran.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    left: Duration,
    looked: Instant,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, left: limit, looked: Instant::now() }
    }

    /// Restarts the whole limit after progress.
    pub(crate) fn renew(&mut self) {
        (self.left, self.looked) = (self.limit, Instant::now());
    }

    /// Resolves after the whole limit without progress. Cancel-safe: elapsed time still counts.
    pub(crate) async fn is_over(&mut self) {
        loop {
            let passed = self.looked.elapsed().min(MOST);
            self.looked = Instant::now();
            self.left = self.left.saturating_sub(passed);
            if self.left.is_zero() {
                return;
            }
            sleep(self.left.min(LOOK)).await;
        }
    }
}

/// The output of `work`, or `None` if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut patience = Patience::new(limit);
    tokio::select! {
        done = work => Some(done),
        () = patience.is_over() => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn progress_timeout__spans_cancelled_waits_and_is_renewable() {
        let began = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(5));
        for _ in 0..4 {
            let early = timeout(Duration::from_millis(1200), patience.is_over()).await;
            assert!(early.is_err());
        }
        patience.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        patience.renew();
        patience.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_timeout__excludes_time_while_stopped() {
        let mut patience = Patience::new(Duration::from_secs(5));
        // As after SIGSTOP: the clock is far ahead before anything is polled again.
        advance(Duration::from_secs(100)).await;
        let began = Instant::now();
        patience.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }
}
