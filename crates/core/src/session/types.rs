//! What a session is configured with, what its frames result in, and why it ends.

use std::time::Instant;

use thiserror::Error;

use crate::frame::CloseCode;
use crate::limits::Timing;
use crate::seal::TooLarge;

/// What one end does when TLS is terminated in between (section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindingPolicy {
    /// Continues only if both ends see the same TLS connection.
    Require,
    /// Continues and warns the user.
    Warn,
    /// A proxy is expected: sends no value and compares none.
    Off,
}

/// The facts about TLS once both READY frames have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Both ends see the same TLS connection.
    Bound,
    /// They do not: TLS is terminated in between. The session's own encryption is intact.
    Cut,
    /// One end at least has no value, so nothing is known.
    Unknown,
    /// This end does not check.
    Off,
}

/// The configuration of a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// This end's policy.
    pub binding: BindingPolicy,
    /// This end's tls-exporter value (RFC 9266), 32 bytes; `None` without TLS.
    pub exporter: Option<[u8; 32]>,
    /// This end's Info for READY, encoded protobuf, at most 65497 bytes.
    pub info: Vec<u8>,
    /// The highest version this end speaks.
    pub max_version: u8,
    /// Rekey, keep-alive and age limits.
    pub timing: Timing,
}

/// The result of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum SessionEvent<'a> {
    /// Nothing for the caller: a ping, a step of a rekey.
    Nothing,
    /// The peer is ready; requests may be sent from now on.
    Ready {
        /// The peer's Info, encoded protobuf.
        info: &'a [u8],
        /// The facts about TLS.
        binding: Binding,
    },
    /// The body of an APP frame, encoded protobuf.
    App(&'a [u8]),
    /// File bytes.
    Bulk {
        /// The transfer's number.
        transfer: u32,
        /// Offset in the file, bytes.
        offset: u64,
        /// 1..=262144 bytes.
        data: &'a [u8],
    },
    /// Both directions have switched to this epoch, as seen from this end.
    Rekeyed(u32),
    /// The peer closed the session.
    Closed(CloseCode),
}

/// The reason why this end ended the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SessionFault {
    /// A frame was not authentic. Nothing is sent.
    #[error("a frame was not authentic")]
    Tampered,
    /// The peer violated the protocol: CLOSE 1.
    #[error("protocol violated: {0}")]
    Violation(&'static str),
    /// The policy requires a channel binding and the check did not succeed: CLOSE 2.
    #[error("TLS is intercepted")]
    Binding,
    /// Both ends support a higher version: CLOSE 11.
    #[error("the protocol version was downgraded in between: {0} was possible")]
    Downgrade(u8),
    /// The client did not rekey in time: CLOSE 3.
    #[error("rekey overdue")]
    RekeyOverdue,
    /// The session reached its maximum age, 24 h by default: CLOSE 4.
    #[error("the session is too old")]
    TooOld,
    /// The peer was silent for too long after a PING: CLOSE 6.
    #[error("no answer from the peer")]
    Silent,
    /// A frame arrived after the session ended.
    #[error("the session has ended")]
    Ended,
}

impl SessionFault {
    /// The CLOSE to send to the peer, if any.
    #[must_use]
    pub fn close_code(&self) -> Option<CloseCode> {
        match self {
            Self::Tampered | Self::Ended => None,
            Self::Violation(_) => Some(CloseCode::Protocol),
            Self::Binding => Some(CloseCode::Binding),
            Self::Downgrade(_) => Some(CloseCode::Version),
            Self::RekeyOverdue => Some(CloseCode::RekeyOverdue),
            Self::TooOld => Some(CloseCode::LogInAgain),
            Self::Silent => Some(CloseCode::Idle),
        }
    }
}

/// A message could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The peer's READY has not arrived, or the session has ended.
    #[error("the session is not open")]
    NotOpen,
    /// The payload exceeds the maximum of a frame.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Counters and states for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionFacts {
    /// Epoch of the sending and the receiving direction.
    pub epoch: (u32, u32),
    /// Frames sent and received in this epoch.
    pub frames: (u64, u64),
    /// Rekeys completed.
    pub rekeys: u32,
    /// Time of the last rekey; `None` before the first.
    pub last_rekey: Option<Instant>,
    /// The facts about TLS; `None` before READY.
    pub binding: Option<Binding>,
}
