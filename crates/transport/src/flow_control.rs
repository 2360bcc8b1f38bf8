//! Flow control: how far the sender of file bytes may run ahead of the receiver.
//!
//! The protocol allows 8 MiB ahead (section 10), which a long and fast path needs. On any other
//! path, most of that would only fill buffers between the two ends. It is lost when an end is
//! killed, and must then be sent again. The window is therefore 1.5 x delivery rate x minimum
//! round-trip time (RTT). The additional half discovers a path with more room within a few round
//! trips. On far paths the factor is 2, because their RTT varies and they must be filled all the
//! same.
//!
//! On near and fast paths, that window is so small that the two ends take turns instead of working
//! in parallel. There it may be larger, as long as it is a small part of what the connection has
//! carried and drains within milliseconds. A broken connection then still costs little.
//!
//! Bytes in flight beyond the path's capacity inflate the measured RTT. Before an old measurement
//! expires, the window is therefore half of rate x RTT for one round, so that the next measurement
//! sees no queue of our own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use twinlock_core::frame::BULK_OVERHEAD;

/// Bytes that the sender of a file may be ahead of the receiver (section 10).
pub const WINDOW: u64 = 8 << 20;
/// Bytes after which our receiver acknowledges: two frames.
pub const ACK_EACH: u32 = 2 * FRAME as u32;
/// Bytes after which any receiver acknowledges at the latest (section 10).
const MAX_ACK_STEP: u32 = 1 << 20;
/// Most file bytes in one of our frames, which may end beyond the acknowledgement step it begins
/// in.
///
/// A broken connection repeats the frame that was in transit, half of one on average, and a message
/// waits for a frame that is being sent. From about this size on, sealing costs the same per byte.
/// A sealed frame of this size fills exactly four TLS records.
pub const FRAME: usize = (64 << 10) - BULK_OVERHEAD;
/// On near paths, the window may be 1/128 of what the connection has carried.
const NEAR_WINDOW_PART: u64 = 128;
/// But that window must drain within this time, so that a message behind it does not wait longer.
const NEAR_DRAIN_TIME: Duration = Duration::from_millis(2);
/// A path with a longer RTT than this is far: it leaves the local network.
const FAR: Duration = Duration::from_millis(5);
/// How long the best measurements are current, and then previous for as long again.
const MEMORY: Duration = Duration::from_secs(5);

/// A frame in flight.
#[derive(Debug)]
struct SentFrame {
    end: u64,
    at: Instant,
    /// What had been acknowledged when it was sent, and when that was.
    acked: (u64, Instant),
}

/// The best measurements of a period.
#[derive(Debug, Clone, Copy)]
struct Best {
    /// Delivery rate, bytes per second.
    rate: f64,
    /// RTT, seconds: from a frame to its acknowledgement.
    rtt: f64,
}

impl Best {
    const NONE: Self = Self { rate: 0.0, rtt: f64::INFINITY };

    fn or(self, other: Self) -> Self {
        Self { rate: self.rate.max(other.rate), rtt: self.rtt.min(other.rtt) }
    }
}

/// The flow control of one transfer: the frames in flight, and the window.
#[derive(Debug)]
pub struct FlowControl {
    /// Offset at which this connection started.
    from: u64,
    sent: u64,
    acked: (u64, Instant),
    in_flight: VecDeque<SentFrame>,
    /// Minimum window. With less in flight, the receiver might never acknowledge.
    least: u64,
    now: Best,
    before: Best,
    since: Instant,
    /// Frames sent before this offset queued behind our own bytes and are not measured.
    clear_from: Option<u64>,
    window: u64,
}

impl FlowControl {
    /// Starts at `offset`, with a receiver that acknowledges every `ack_each` bytes. 0, or more
    /// than 1 MiB, counts as 1 MiB.
    #[must_use]
    pub fn new(offset: u64, ack_each: u32, now: Instant) -> Self {
        let ack_each = if ack_each == 0 { MAX_ACK_STEP } else { ack_each.min(MAX_ACK_STEP) };
        let least = u64::from(ack_each) + 2 * FRAME as u64;
        Self {
            from: offset,
            sent: offset,
            acked: (offset, now),
            in_flight: VecDeque::new(),
            least,
            now: Best::NONE,
            before: Best::NONE,
            since: now,
            clear_from: None,
            window: least,
        }
    }

    /// The receiver has taken everything before this offset.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.0
    }

    /// The offset of the next byte to send.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a frame of `bytes` may be sent now. Always true if nothing is in flight.
    #[must_use]
    pub fn may(&self, bytes: usize) -> bool {
        let ahead = self.sent - self.acked.0;
        ahead == 0 || ahead + bytes as u64 <= self.window
    }

    /// Notes that a frame of `bytes` is sent.
    pub fn send(&mut self, bytes: usize, now: Instant) {
        self.sent += bytes as u64;
        if self.in_flight.is_empty() {
            // Nothing was in flight: the pause was the sender's and does not measure the path.
            self.acked.1 = now;
        }
        self.in_flight.push_back(SentFrame { end: self.sent, at: now, acked: self.acked });
    }

    /// The receiver has taken everything before `offset`; an older offset changes nothing. Returns
    /// `false` if `offset` is beyond the sent bytes.
    #[must_use]
    pub fn acknowledge(&mut self, offset: u64, now: Instant) -> bool {
        if offset > self.sent {
            return false;
        }
        if offset <= self.acked.0 {
            return true;
        }
        self.acked = (offset, now);
        let mut newest = None;
        while let Some(sent) = self.in_flight.pop_front_if(|sent| sent.end <= offset) {
            newest = Some(sent);
        }
        if let Some(sent) = newest {
            self.learn(&sent, now);
        }
        true
    }

    fn learn(&mut self, sent: &SentFrame, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age > MEMORY {
            self.before = if age > 2 * MEMORY { Best::NONE } else { self.now };
            (self.now, self.since, self.clear_from) = (Best::NONE, now, Some(self.sent));
        }
        if self.clear_from.is_some_and(|from| sent.end > from) {
            self.clear_from = None;
        }
        let (offset, _) = self.acked;
        let took = now.saturating_duration_since(sent.acked.1).as_secs_f64();
        let rtt = now.saturating_duration_since(sent.at).as_secs_f64();
        let rate = if took > 0.0 { (offset - sent.acked.0) as f64 / took } else { 0.0 };
        if self.clear_from.is_none() {
            self.now = self.now.or(Best { rate, rtt });
        }
        let Best { rate, rtt } = self.now.or(self.before);
        let (share, spare) = match self.clear_from {
            Some(_) => (0.5, 0.0),
            // The RTT of far paths varies, and the minimum is below the usual one.
            None if rtt > FAR.as_secs_f64() => (2.0, 0.0),
            None => {
                let little = (self.sent - self.from) / NEAR_WINDOW_PART;
                (1.5, (rate * NEAR_DRAIN_TIME.as_secs_f64()).min(little as f64))
            }
        };
        // The cast saturates if the value is too large or not a number.
        self.window = ((rate * rtt * share).max(spare) as u64).clamp(self.least, WINDOW);
    }
}

#[cfg(test)]
mod tests;
