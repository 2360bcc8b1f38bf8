//! Rate limit for log lines that a peer can cause at will.

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// The last line and the number of omitted ones, by kind.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<HashMap<&'static str, LastLine>>);

#[derive(Debug, Clone, Copy)]
struct LastLine {
    last: Instant,
    left_out: u64,
}

impl Throttle {
    /// Whether a line of this kind may be written now, and how many were omitted since the last
    /// one.
    pub(crate) fn pass(&self, kind: &'static str, now: Instant) -> Option<u64> {
        self.pass_each(kind, INTERVAL, now)
    }

    /// Like [`Throttle::pass`], with another interval.
    pub(crate) fn pass_each(
        &self,
        kind: &'static str,
        each: Duration,
        now: Instant,
    ) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(kind) {
            Some(logged) if now.saturating_duration_since(logged.last) < each => {
                logged.left_out += 1;
                None
            }
            logged => {
                let left_out = logged.map_or(0, |logged| logged.left_out);
                kinds.insert(kind, LastLine { last: now, left_out: 0 });
                Some(left_out)
            }
        }
    }

    /// Logs that a limit has closed a connection or refused a login. `limit` is the name of its
    /// setting, or what it bounds.
    pub(crate) fn closed_by(&self, limit: &'static str, peer: impl fmt::Display) {
        if let Some(left_out) = self.pass(limit, Instant::now()) {
            tracing::info!(limit, %peer, left_out, "connection closed by a limit");
        }
    }
}

/// The throttle of [`log_fault`]. The log is the process's, so its limit is as well.
static FAULTS: LazyLock<Throttle> = LazyLock::new(Throttle::default);

/// Logs a fault of the record or its disk that a request met. Requests can meet it at any rate, so
/// these lines are limited. `what` is the message of the line and its kind.
pub(crate) fn log_fault(what: &'static str, error: impl fmt::Display) {
    if let Some(left_out) = FAULTS.pass(what, Instant::now()) {
        tracing::error!(%error, left_out, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle__passes_one_per_kind_and_counts_suppressed() {
        let throttle = Throttle::default();
        let now = Instant::now();
        assert_eq!(throttle.pass("a", now), Some(0));
        for _ in 0..7 {
            assert_eq!(throttle.pass("a", now + INTERVAL / 2), None);
        }
        assert_eq!(throttle.pass("b", now), Some(0));
        assert_eq!(throttle.pass("a", now + INTERVAL), Some(7));
        assert_eq!(throttle.pass("a", now + INTERVAL * 2), Some(0));
    }
}
