//! How long to wait before connecting again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use twinlock_core::Entropy as _;
use twinlock_link::OsEntropy;

use crate::client::Options;
use crate::error::ClientError;

/// After a good line the first attempt is made at once, spread over this, so that a server which
/// dropped everybody is not met by everybody in one instant.
const AT_ONCE: Duration = Duration::from_millis(100);
/// A line that stood this long was a good one, whatever was on it.
pub(crate) const GOOD_LINE: Duration = Duration::from_secs(10);

/// The delays between the attempts of one task: growing, with jitter, up to the longest.
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

    /// The delay after a line, or an attempt, that ended with `error`. `good`: something came of
    /// it; logging in alone is no progress, so a server that drops people right after it is left
    /// alone for longer and longer. `hint`: when the server said it would be back.
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
        // The delay on top spreads those who come back a little.
        delay + hint.unwrap_or_default()
    }
}

/// Anything from 0 to 1.
fn chance() -> f64 {
    let mut byte = [0; 1];
    OsEntropy.fill(&mut byte);
    f64::from(u8::from_be_bytes(byte)) / f64::from(u8::MAX)
}
