//! Log lines that a peer can cause as often as it likes, at a bounded rate.

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One line of a kind in this time.
const EACH: Duration = Duration::from_secs(10);

/// What was logged when, by kind.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<HashMap<&'static str, Logged>>);

#[derive(Debug, Clone, Copy)]
struct Logged {
    last: Instant,
    left_out: u64,
}

impl Throttle {
    /// Whether a line of this kind is to be written now, and how many were left out since the last.
    pub(crate) fn pass(&self, kind: &'static str, now: Instant) -> Option<u64> {
        self.pass_each(kind, EACH, now)
    }

    /// The same with another time between two lines.
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
                kinds.insert(kind, Logged { last: now, left_out: 0 });
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

/// Of [`log_fault`]: the log is the process's, so its limit is as well.
static FAULTS: LazyLock<Throttle> = LazyLock::new(Throttle::default);

/// Logs a fault of the record or its disk that a request ran into. Requests can run into it as often
/// as they are sent. `what` is the line's message and its kind.
pub(crate) fn log_fault(what: &'static str, error: impl fmt::Display) {
    if let Some(left_out) = FAULTS.pass(what, Instant::now()) {
        tracing::error!(%error, left_out, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_passes_one_of_a_kind_and_counts_the_rest() {
        let throttle = Throttle::default();
        let now = Instant::now();
        assert_eq!(throttle.pass("a", now), Some(0));
        for _ in 0..7 {
            assert_eq!(throttle.pass("a", now + EACH / 2), None);
        }
        assert_eq!(throttle.pass("b", now), Some(0));
        assert_eq!(throttle.pass("a", now + EACH), Some(7));
        assert_eq!(throttle.pass("a", now + EACH * 2), Some(0));
    }
}
