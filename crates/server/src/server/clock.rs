//! Warns when the system clock is wrong.
//!
//! The time of an entry is never before that of the preceding entry. An entry recorded under a
//! clock far ahead therefore freezes the time of its conversation until the clock catches up.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use twinlock_store::{Store, StoreError};

/// Interval between checks of the clock.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Smallest difference that is logged, ms.
const LARGE: i128 = 60_000;
/// Newest entries that are checked.
const ENTRIES: usize = 256;

/// Two clocks at one moment, in ms: wall time, and CLOCK_BOOTTIME, which cannot be set and includes
/// suspend.
#[derive(Debug, Clone, Copy)]
struct Moment {
    system: i128,
    steady: i128,
}

impl Moment {
    fn now() -> Self {
        let steady = clock_gettime(ClockId::Boottime);
        let steady = i128::from(steady.tv_sec) * 1000 + i128::from(steady.tv_nsec) / 1_000_000;
        let system = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => ms(since),
            Err(before) => -ms(before.duration()),
        };
        Self { system, steady }
    }

    /// How far the system clock was set forward since `before`, in ms; negative if back.
    fn step_since(self, before: Self) -> i128 {
        (self.system - before.system) - (self.steady - before.steady)
    }
}

fn ms(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX)
}

/// Warns if one of the newest entries was recorded under a clock ahead of the current one.
pub(super) async fn check(store: &dyn Store) -> Result<(), StoreError> {
    let newest = store.newest(ENTRIES).await?;
    let now = Moment::now().system;
    let ahead = |time_ms| i128::from(time_ms) - now;
    if let Some(at) = newest.iter().max_by_key(|at| at.time_ms)
        && ahead(at.time_ms) > LARGE
    {
        tracing::warn!(
            conversation = at.conversation,
            n = at.n,
            seconds = seconds(ahead(at.time_ms)),
            "the clock is behind the newest entry: one of the two times is wrong. \
             New entries there bear the time of that entry until the clock has passed it"
        );
    }
    Ok(())
}

/// Detects steps of the clock for as long as the server runs.
pub(super) async fn watch(store: &dyn Store) {
    watch_clock(store, Moment::now).await;
}

async fn watch_clock(store: &dyn Store, read_clock: impl Fn() -> Moment) {
    let mut before = read_clock();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let now = read_clock();
        let step = now.step_since(before);
        before = now;
        if step.abs() > LARGE {
            tracing::warn!(
                seconds = seconds(step),
                "the system clock was set: the times of entries jump by this"
            );
            if let Err(error) = check(store).await {
                tracing::warn!(%error, "the newest entry was not checked");
            }
        }
    }
}

fn seconds(ms: i128) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tracing::Level;

    use super::*;
    use crate::common::TestServer;
    use crate::common::log::Log;

    #[tokio::test]
    async fn clock__step_while_running_is_logged_once() {
        let host = TestServer::start().await;
        let log = Log::of(Level::WARN);
        tokio::time::pause();
        let reads = Cell::new(0);
        let read_clock = || {
            reads.set(reads.get() + 1);
            let steady = reads.get() * 10_000;
            // Set forward between the second reading and the third.
            Moment { system: if reads.get() < 3 { steady } else { steady + 90_000 }, steady }
        };
        let watching = watch_clock(&*host.server().services.record.store, read_clock);
        tokio::select! {
            () = watching => {}
            () = tokio::time::sleep(5 * CHECK_INTERVAL) => {}
        }
        assert!(reads.get() > 3);
        assert_eq!(log.with(&["clock was set", "seconds=90"]).len(), 1, "{}", log.text());
    }

    #[test]
    fn clock__step_is_system_minus_steady_difference() {
        let at = |system, steady| Moment { system, steady };
        assert_eq!(at(11_000, 51_000).step_since(at(1000, 41_000)), 0);
        assert_eq!(at(111_000, 51_000).step_since(at(1000, 41_000)), 100_000);
        assert_eq!(at(1000, 51_000).step_since(at(1000, 41_000)), -10_000);
        let now = Moment::now();
        assert!(Moment::now().step_since(now).abs() < LARGE);
    }
}
