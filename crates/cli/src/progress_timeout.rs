//! A timeout without progress that excludes the time in which the process was stopped.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Interval between two readings of the clock.
const TICK: Duration = Duration::from_millis(500);
/// The most that counts between two readings. In the rest the process was stopped (Ctrl-Z, a
/// debugger) or was not scheduled.
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// A timeout that counts only time in which the process ran, and starts over after progress.
#[derive(Debug)]
pub(crate) struct ProgressTimeout {
    limit: Duration,
    left: Duration,
    last_tick: Instant,
}

impl ProgressTimeout {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, left: limit, last_tick: Instant::now() }
    }

    /// Restarts the whole limit after progress.
    pub(crate) fn renew(&mut self) {
        (self.left, self.last_tick) = (self.limit, Instant::now());
    }

    /// Resolves after the whole limit without progress. Cancel-safe: elapsed time still counts.
    pub(crate) async fn is_over(&mut self) {
        loop {
            let passed = self.last_tick.elapsed().min(LONGEST_TICK);
            self.last_tick = Instant::now();
            self.left = self.left.saturating_sub(passed);
            if self.left.is_zero() {
                return;
            }
            sleep(self.left.min(TICK)).await;
        }
    }
}

/// The output of `work`, or `None` if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut timeout = ProgressTimeout::new(limit);
    tokio::select! {
        done = work => Some(done),
        () = timeout.is_over() => None,
    }
}

/// Resolves after `limit`, or never without one.
pub(crate) async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => ProgressTimeout::new(limit).is_over().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn progress_timeout__spans_cancelled_waits_and_is_renewable() {
        let began = Instant::now();
        let mut timeout = ProgressTimeout::new(Duration::from_secs(5));
        for _ in 0..4 {
            let early = time::timeout(Duration::from_millis(1200), timeout.is_over()).await;
            assert!(early.is_err());
        }
        timeout.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        timeout.renew();
        timeout.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn progress_timeout__excludes_time_while_stopped() {
        let mut timeout = ProgressTimeout::new(Duration::from_secs(5));
        // As after SIGSTOP: the clock is far ahead before anything is polled again.
        time::advance(Duration::from_secs(100)).await;
        let began = Instant::now();
        timeout.is_over().await;
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }
}
