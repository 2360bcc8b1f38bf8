//! Limits and timing of the protocol, each with its unit, source and reason.
//!
//! Both ends must share the limits. An operator may lower the timing values.

use std::time::Duration;

/// The one protocol version of this crate.
pub const VERSION: u8 = 1;

/// Longest body of a SEALED frame, bytes: the largest bucket less padding byte and inner header
/// (section 5).
pub const MAX_BODY: usize = 65_531;

/// Longest text of an entry, bytes of UTF-8 (section 9).
pub const MAX_TEXT: usize = 32 * 1024;

/// Longest topic of a room, bytes of UTF-8 (section 9).
pub const MAX_TOPIC: usize = 512;

/// Longest text of a search, bytes of UTF-8 (section 9).
pub const MAX_SEARCH: usize = 256;

/// Most data in one BULK frame, bytes (section 3).
pub const MAX_BULK: usize = 262_144;

/// Timing of a session (sections 5, 6 and 9).
///
/// `Default` holds the protocol's values; tests and cautious operators lower them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The client starts a rekey at this age of an epoch with traffic.
    pub rekey_after: Duration,
    /// The client starts a rekey after this many frames in the busier direction.
    pub rekey_after_frames: u64,
    /// Minimum time between REKEY2 and the client's next REKEY1. It exceeds
    /// [`Timing::rekey_apart`], so that small clock differences never violate the server's limit.
    pub rekey_pause: Duration,
    /// The server refuses a REKEY1 that arrives sooner than this after its last REKEY2.
    pub rekey_apart: Duration,
    /// The server closes (3) this long after the first traffic of an epoch.
    pub rekey_overdue: Duration,
    /// The server closes (3) after this many frames in the busier direction.
    pub rekey_overdue_frames: u64,
    /// The server closes (4) at this age of the session.
    pub max_age: Duration,
    /// PING after this long without a byte while the session follows a conversation.
    pub ping_following: Duration,
    /// PING after this long without a byte otherwise.
    pub ping_idle: Duration,
    /// The connection is dead when no byte arrives within this time after a PING.
    pub ping_answer: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            rekey_after: Duration::from_secs(10 * 60),
            rekey_after_frames: 1 << 20,
            rekey_pause: Duration::from_secs(15),
            rekey_apart: Duration::from_secs(10),
            rekey_overdue: Duration::from_secs(30 * 60),
            rekey_overdue_frames: 1 << 22,
            max_age: Duration::from_secs(24 * 60 * 60),
            ping_following: Duration::from_secs(10),
            ping_idle: Duration::from_secs(60),
            ping_answer: Duration::from_secs(10),
        }
    }
}
