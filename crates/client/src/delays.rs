//! Back-off between connection attempts.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use twinlock_core::Entropy as _;
use twinlock_transport::OsEntropy;

use crate::error::ClientError;
use crate::model::Options;

/// Maximum delay of the first attempt after a good connection. It is random, so that clients that a
/// server dropped together do not reconnect in the same instant.
const AT_ONCE: Duration = Duration::from_millis(100);
/// A connection that lasted this long is good, whatever its traffic.
pub(crate) const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// The delays between the attempts of one task: exponential, with jitter and a maximum.
pub(crate) struct Delays {
    builder: ExponentialBuilder,
    next: ExponentialBackoff,
    first: Duration,
    longest: Duration,
}

impl Delays {
    pub(crate) fn new(options: &Options) -> Self {
        Self::between(options.first_delay, options.longest_delay)
    }

    pub(crate) fn between(first: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(first)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Self { builder, next: builder.build(), first, longest }
    }

    /// The delay after a connection or an attempt that ended with `error`.
    ///
    /// `good`: the connection made progress. A login alone is not progress: the delays grow for a
    /// server that drops clients right after it. `hint`: the downtime that the server announced.
    pub(crate) fn after(
        &mut self,
        good: bool,
        error: &ClientError,
        hint: Option<Duration>,
    ) -> Duration {
        if good {
            self.next = self.builder.build();
        }
        let mut delay = if good && hint.is_none() {
            self.first.min(AT_ONCE).mul_f64(chance())
        } else {
            self.next.next().unwrap_or(self.longest)
        };
        if let ClientError::Busy { seconds } = error {
            delay = delay.max(Duration::from_secs(u64::from(*seconds)));
        }
        // The delay is added to the hint, to spread reconnecting clients.
        delay + hint.unwrap_or_default()
    }
}

/// A random number from 0 to 1.
fn chance() -> f64 {
    let mut byte = [0; 1];
    OsEntropy.fill(&mut byte);
    f64::from(u8::from_be_bytes(byte)) / f64::from(u8::MAX)
}
