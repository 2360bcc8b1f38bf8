//! Frame headers (section 3) and the codes of ERROR and CLOSE (section 9).
//!
//! A header is checked before anything is allocated. An unknown type, a type that is not due, or a
//! length outside its type's range closes the connection without an answer.

use thiserror::Error;

use crate::limits::MAX_BULK;

/// Bytes of a frame header: `type:u8 || len:u24`.
pub const HEADER: usize = 4;
/// Bytes of the tag of a SEALED frame.
pub(crate) const MAC: usize = 32;
/// Bytes before the data of a BULK frame: `transfer:u32 || offset:u64`.
pub(crate) const BULK_PREFIX: usize = 12;
/// Bytes of the GCM tag of a BULK frame.
pub(crate) const BULK_TAG: usize = 16;
/// Bytes of a BULK frame in addition to those of the file.
pub const BULK_OVERHEAD: usize = HEADER + BULK_PREFIX + BULK_TAG;
/// Bytes of a HELLO before the id: version, flags, kind, id_len.
pub(crate) const HELLO_PREFIX: usize = 4;
/// Encapsulation key of ML-KEM-768, bytes.
pub const KEM_EK: usize = 1184;
/// Ciphertext of ML-KEM-768, bytes.
pub const KEM_CT: usize = 1088;
/// First message of OPAQUE's login, bytes.
pub const KE1: usize = 96;
/// Second message of OPAQUE's login, bytes.
pub const KE2: usize = 320;
/// Third message of OPAQUE's login, bytes.
pub const KE3: usize = 64;
/// Payload of CHALLENGE, bytes.
pub const CHALLENGE: usize = KEM_CT + KE2;
/// Shortest payload of HELLO, bytes: an id of one byte.
pub const MIN_HELLO: usize = HELLO_PREFIX + 1 + KEM_EK + KE1;
/// Longest payload of HELLO, bytes: an id of 32 bytes.
pub const MAX_HELLO: usize = HELLO_PREFIX + 32 + KEM_EK + KE1;

/// Smallest and largest bucket; each bucket is a power of two (section 5).
pub(crate) const MIN_BUCKET: usize = 256;
pub(crate) const MAX_BUCKET: usize = 65_536;

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// The client's first frame.
    Hello = 0x01,
    /// The server's answer.
    Challenge = 0x02,
    /// The client's proof.
    Proof = 0x03,
    /// The server's refusal, only before it accepts PROOF.
    Error = 0x0E,
    /// A message, encrypted by the session.
    Sealed = 0x10,
    /// File bytes, encrypted by the session.
    Bulk = 0x11,
}

/// Which frames may arrive next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At the server: HELLO.
    Hello,
    /// At the client: CHALLENGE, or an ERROR.
    Challenge,
    /// At the server: PROOF.
    Proof,
    /// At the client after PROOF: the first SEALED frame, or still an ERROR.
    FirstSealed,
    /// At both ends from then on: SEALED and BULK.
    Session,
}

/// A frame header: its type, and the length of the payload in bytes.
///
/// Exists only if the frame is due and the length is valid for the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type.
    pub frame: FrameType,
    /// Length of the payload, bytes.
    pub len: usize,
}

/// The header is not that of a frame that is due: close, send nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("frame of type {frame:#04x} and {len} bytes instead of {due:?}")]
pub struct BadHeader {
    /// The type byte received.
    pub frame: u8,
    /// The length received.
    pub len: usize,
    /// The frames that were due.
    pub due: Due,
}

impl BadHeader {
    /// Whether the four bytes are the start of an HTTP answer.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.frame == b'H' && self.len == u32::from_be_bytes(*b"\0TTP") as usize
    }
}

impl Header {
    /// Checks the four bytes of a header.
    ///
    /// A HELLO passes with any length of at least one byte, because its version is checked before
    /// its length ([`crate::handshake::check_hello`]): a client of a later version must learn which
    /// version this server speaks.
    ///
    /// # Errors
    /// [`BadHeader`].
    pub fn parse(bytes: [u8; HEADER], due: Due) -> Result<Self, BadHeader> {
        let [ty, a, b, c] = bytes;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let frame = match (ty, due) {
            (0x01, Due::Hello) if len >= 1 => FrameType::Hello,
            (0x02, Due::Challenge) if len == CHALLENGE => FrameType::Challenge,
            (0x03, Due::Proof) if len == KE3 => FrameType::Proof,
            (0x0E, Due::Challenge | Due::FirstSealed) if len == 3 => FrameType::Error,
            (0x10, Due::FirstSealed | Due::Session) if is_sealed_len(len) => FrameType::Sealed,
            (0x11, Due::Session) if is_bulk_len(len) => FrameType::Bulk,
            _ => return Err(BadHeader { frame: ty, len, due }),
        };
        Ok(Self { frame, len })
    }

    /// The encoded header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        [self.frame as u8, a, b, c]
    }
}

fn is_sealed_len(len: usize) -> bool {
    len.checked_sub(MAC)
        .is_some_and(|b| b.is_power_of_two() && (MIN_BUCKET..=MAX_BUCKET).contains(&b))
}

fn is_bulk_len(len: usize) -> bool {
    len.checked_sub(BULK_PREFIX + BULK_TAG).is_some_and(|d| (1..=MAX_BULK).contains(&d))
}

/// Encodes a whole frame with a small payload.
pub(crate) fn encode(frame: FrameType, payload: &[&[u8]]) -> Vec<u8> {
    let len = payload.iter().map(|p| p.len()).sum();
    let mut out = Vec::with_capacity(HEADER + len);
    out.extend_from_slice(&Header { frame, len }.to_bytes());
    for part in payload {
        out.extend_from_slice(part);
    }
    out
}

/// The server's answer instead of CHALLENGE or READY. Without an authenticated session it is a
/// hint, never a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ErrorCode {
    /// The server speaks versions up to this one.
    #[error("the server speaks protocol version {0}")]
    Version(u8),
    /// Retry after this many seconds.
    #[error("the server is busy; try again in {0} s")]
    Busy(u16),
    /// The login was refused.
    #[error("login refused")]
    Refused,
    /// The server could not decode the message.
    #[error("the server rejected the first message as malformed")]
    Malformed,
    /// A code this version does not know.
    #[error("the server answered with error {0}")]
    Unknown(u8),
}

impl ErrorCode {
    /// Encodes the ERROR frame.
    #[must_use]
    pub fn to_frame(self) -> Vec<u8> {
        let (code, arg) = match self {
            Self::Version(highest) => (1, u16::from(highest)),
            Self::Busy(seconds) => (2, seconds),
            Self::Refused => (3, 0),
            Self::Malformed => (4, 0),
            Self::Unknown(code) => (code, 0),
        };
        encode(FrameType::Error, &[&[code], &arg.to_be_bytes()])
    }

    /// Decodes the payload of an ERROR.
    #[must_use]
    pub fn parse(payload: [u8; 3]) -> Self {
        let [code, a, b] = payload;
        let arg = u16::from_be_bytes([a, b]);
        match code {
            1 => Self::Version(u8::try_from(arg).unwrap_or(u8::MAX)),
            2 => Self::Busy(arg),
            3 => Self::Refused,
            4 => Self::Malformed,
            code => Self::Unknown(code),
        }
    }
}

/// The reason why a session ended, as CLOSE encodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CloseCode {
    /// 0: a regular end.
    #[error("bye")]
    Bye,
    /// 1: the peer violated the protocol.
    #[error("protocol violated")]
    Protocol,
    /// 2: TLS is terminated between the two ends.
    #[error("TLS is intercepted")]
    Binding,
    /// 3: the client did not rekey in time.
    #[error("rekey overdue")]
    RekeyOverdue,
    /// 4: the session reached its maximum age.
    #[error("log in again")]
    LogInAgain,
    /// 5: the credential was revoked.
    #[error("revoked")]
    Revoked,
    /// 6: the peer was silent for too long.
    #[error("idle")]
    Idle,
    /// 7: too many sessions, or another quota is reached.
    #[error("quota reached")]
    Quota,
    /// 8: the server is shutting down.
    #[error("the server is shutting down")]
    Shutdown,
    /// 9: an internal failure.
    #[error("internal failure")]
    Internal,
    /// 10: a newer session of the same device replaced this one.
    #[error("replaced by a newer session of this device")]
    Replaced,
    /// 11: both ends support a higher version.
    #[error("the protocol version was downgraded in between")]
    Version,
    /// A code this version does not know.
    #[error("closed with code {0}")]
    Unknown(u16),
}

impl CloseCode {
    /// The code's number in CLOSE.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Bye => 0,
            Self::Protocol => 1,
            Self::Binding => 2,
            Self::RekeyOverdue => 3,
            Self::LogInAgain => 4,
            Self::Revoked => 5,
            Self::Idle => 6,
            Self::Quota => 7,
            Self::Shutdown => 8,
            Self::Internal => 9,
            Self::Replaced => 10,
            Self::Version => 11,
            Self::Unknown(code) => code,
        }
    }

    /// Decodes the number in CLOSE.
    #[must_use]
    pub fn from_number(code: u16) -> Self {
        match code {
            0 => Self::Bye,
            1 => Self::Protocol,
            2 => Self::Binding,
            3 => Self::RekeyOverdue,
            4 => Self::LogInAgain,
            5 => Self::Revoked,
            6 => Self::Idle,
            7 => Self::Quota,
            8 => Self::Shutdown,
            9 => Self::Internal,
            10 => Self::Replaced,
            11 => Self::Version,
            code => Self::Unknown(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame__header_lengths_by_type_match_section_3() {
        let all = [Due::Hello, Due::Challenge, Due::Proof, Due::FirstSealed, Due::Session];
        let mut accepted = 0u32;
        for ty in 0..=255u8 {
            for len in 0..=300_000u32 {
                let [_, a, b, c] = len.to_be_bytes();
                for due in all {
                    if let Ok(header) = Header::parse([ty, a, b, c], due) {
                        assert_eq!(header.to_bytes(), [ty, a, b, c]);
                        accepted += u32::from(header.frame != FrameType::Hello);
                    }
                }
                // Beyond the dense range, only the types that have such lengths are worth the loop.
                if len > 2000 && !matches!(ty, 0x01 | 0x10 | 0x11) {
                    break;
                }
            }
        }
        // CHALLENGE, PROOF, ERROR in two states, nine buckets in two states, every BULK length.
        assert_eq!(accepted, 1 + 1 + 2 + 18 + 262_144);
    }

    #[test]
    fn frame__close_and_error_codes_round_trip() {
        for number in 0..=300 {
            assert_eq!(CloseCode::from_number(number).number(), number);
        }
        for code in [ErrorCode::Version(3), ErrorCode::Busy(900), ErrorCode::Refused] {
            let frame = code.to_frame();
            assert_eq!(ErrorCode::parse(frame[HEADER..].try_into().unwrap()), code);
        }
    }
}
