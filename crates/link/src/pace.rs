//! How far the sender of file bytes runs ahead of what the receiver says it has taken.
//!
//! The protocol allows 8 MiB ahead (section 10), which a long fat line needs. Everywhere else most
//! of that would only stand in buffers between the two ends, where it is lost when an end is killed
//! and goes over the wire again. So the sender keeps about what fits on the way: the rate at which
//! acknowledgements come, times the shortest time that one took, and half as much again, so that a
//! way with more room is found within a few round trips. On far ways it is as much again: their
//! length varies, and they are to be fed all the same.
//!
//! On near and fast ways that is so little that the two ends take turns instead of working side by
//! side. There it may be more, as long as it is a small part of what has been carried since the line
//! began, and gone in a moment: then a break costs little all the same.
//!
//! What is on its way beyond what fits makes the way look longer than it is. So before an old
//! measure is forgotten, half of what fits goes for one round, and the next one is taken of a way
//! without a queue of our own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use twinlock_core::frame::BULK_OVERHEAD;

/// Bytes that the sender of a file may be ahead of what the receiver has taken (section 10).
pub const WINDOW: u64 = 8 << 20;
/// Bytes after which a receiver of ours acknowledges what it has taken: two frames.
pub const ACK_EACH: u32 = 2 * FRAME as u32;
/// Bytes after which any receiver does (section 10).
const RAREST: u32 = 1 << 20;
/// Bytes of a file in a frame of ours at most: it may end beyond the step it begins in. A frame of
/// which a part was under way when the line was cut goes again, half of one on average; a message
/// waits for one that is being sent; sealing costs the same per byte from about here on. Sealed it
/// fills four TLS records to the last byte.
pub const FRAME: usize = (64 << 10) - BULK_OVERHEAD;
/// What a break costs may be this part of what the line had carried until then.
const LITTLE: u64 = 128;
/// But what is sent for that reason waits no longer than this, so that a message behind it does not.
const BRIEF: Duration = Duration::from_millis(2);
/// A way longer than this leads out of the house.
const FAR: Duration = Duration::from_millis(5);
/// What was the fastest and the nearest holds for this long, and for as long again.
const MEMORY: Duration = Duration::from_secs(5);

/// A frame on its way.
#[derive(Debug)]
struct Sent {
    end: u64,
    at: Instant,
    /// What had been acknowledged by then, and when.
    acked: (u64, Instant),
}

/// The best that was seen for a while.
#[derive(Debug, Clone, Copy)]
struct Best {
    /// Bytes a second.
    rate: f64,
    /// Seconds from a frame to its acknowledgement.
    way: f64,
}

impl Best {
    const NONE: Self = Self { rate: 0.0, way: f64::INFINITY };

    fn or(self, other: Self) -> Self {
        Self { rate: self.rate.max(other.rate), way: self.way.min(other.way) }
    }
}

/// What one transfer has on its way, and how much of it there may be.
#[derive(Debug)]
pub struct Pace {
    /// Where this line began.
    from: u64,
    sent: u64,
    acked: (u64, Instant),
    way: VecDeque<Sent>,
    /// Less than this on the way, and the receiver may never say a word.
    least: u64,
    now: Best,
    before: Best,
    since: Instant,
    /// What was sent before this waited behind too much of our own: it is no measure.
    clear_from: Option<u64>,
    window: u64,
}

impl Pace {
    /// A transfer that goes on from `offset`, to a receiver that acknowledges after each `ack_each`
    /// bytes; 0, or more than a MiB, is a MiB.
    #[must_use]
    pub fn new(offset: u64, ack_each: u32, now: Instant) -> Self {
        let ack_each = if ack_each == 0 { RAREST } else { ack_each.min(RAREST) };
        let least = u64::from(ack_each) + 2 * FRAME as u64;
        Self {
            from: offset,
            sent: offset,
            acked: (offset, now),
            way: VecDeque::new(),
            least,
            now: Best::NONE,
            before: Best::NONE,
            since: now,
            clear_from: None,
            window: least,
        }
    }

    /// Everything before here was taken.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.0
    }

    /// Where the next byte is.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a frame with so many bytes may go now. One always may when nothing is on its way.
    #[must_use]
    pub fn may(&self, bytes: usize) -> bool {
        let ahead = self.sent - self.acked.0;
        ahead == 0 || ahead + bytes as u64 <= self.window
    }

    /// A frame with so many bytes goes.
    pub fn send(&mut self, bytes: usize, now: Instant) {
        self.sent += bytes as u64;
        if self.way.is_empty() {
            // Nothing was on its way: the pause was ours and says nothing about the line.
            self.acked.1 = now;
        }
        self.way.push_back(Sent { end: self.sent, at: now, acked: self.acked });
    }

    /// The receiver has taken everything before `offset`; an older word changes nothing. `false`:
    /// it cannot have, for that was not sent.
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
        while let Some(sent) = self.way.pop_front_if(|sent| sent.end <= offset) {
            newest = Some(sent);
        }
        if let Some(sent) = newest {
            self.learn(&sent, now);
        }
        true
    }

    fn learn(&mut self, sent: &Sent, now: Instant) {
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
        let way = now.saturating_duration_since(sent.at).as_secs_f64();
        let rate = if took > 0.0 { (offset - sent.acked.0) as f64 / took } else { 0.0 };
        if self.clear_from.is_none() {
            self.now = self.now.or(Best { rate, way });
        }
        let Best { rate, way } = self.now.or(self.before);
        let (share, spare) = match self.clear_from {
            Some(_) => (0.5, 0.0),
            // Far ways vary, and the shortest is less than the usual one.
            None if way > FAR.as_secs_f64() => (2.0, 0.0),
            None => {
                let little = (self.sent - self.from) / LITTLE;
                (1.5, (rate * BRIEF.as_secs_f64()).min(little as f64))
            }
        };
        // A cast of what is too much, or not a number, saturates.
        self.window = ((rate * way * share).max(spare) as u64).clamp(self.least, WINDOW);
    }
}

#[cfg(test)]
mod tests;
