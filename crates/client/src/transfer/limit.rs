//! A rate limit in bytes per second for all connections together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Unused rate is available for this long, so that a connection that waits for an ack loses none.
const BURST: Duration = Duration::from_millis(250);
/// Minimum size of a frame in bytes, at any limit: its overhead is about 50 bytes.
const SMALLEST: usize = 4 * 1024;

/// The limit; without a rate nothing waits.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: Option<u64>,
    /// Time at which all granted bytes are sent.
    free: Mutex<Instant>,
}

impl RateLimit {
    /// `rate`: bytes per second; 0 counts as 1.
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1)), free: Mutex::new(Instant::now()) }
    }

    /// Grants `bytes`; returns when they may be sent, `None`: now.
    pub(super) fn grant(&self, bytes: usize) -> Option<Instant> {
        let rate = self.rate?;
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (*free).max(now.checked_sub(BURST).unwrap_or(now));
        let nanos = (bytes as u128 * 1_000_000_000) / u128::from(rate);
        *free = at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        (at > now).then_some(at)
    }

    /// Size of a frame in bytes, for about eight frames per second; at most `most`.
    pub(super) fn frame(&self, most: usize) -> usize {
        let eighth = self.rate.map_or(most, |rate| usize::try_from(rate / 8).unwrap_or(most));
        eighth.clamp(SMALLEST.min(most), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rate_limit__spreads_bytes_and_allows_short_burst() {
        let limit = RateLimit::new(Some(1000));
        let began = Instant::now();
        assert_eq!(limit.grant(1000), None);
        assert_eq!(limit.grant(500).unwrap() - began, Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(limit.grant(250), None, "what was not used is used");
        assert_eq!(limit.grant(1), None, "as is this moment's");
        assert!(limit.grant(1).is_some(), "and no more");
        assert_eq!(RateLimit::new(None).grant(usize::MAX), None);
    }

    #[test]
    fn rate_limit__frame_size_shrinks_with_limit() {
        assert_eq!(RateLimit::new(None).frame(262_144), 262_144);
        assert_eq!(RateLimit::new(Some(80_000)).frame(262_144), 10_000);
        assert_eq!(RateLimit::new(Some(1)).frame(262_144), SMALLEST);
    }
}
