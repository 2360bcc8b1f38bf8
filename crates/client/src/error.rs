//! What can go wrong between this client and its server, sorted by whose fault it is.
//!
//! Errors are values that several waiters can share, so causes are kept as their words.

use thiserror::Error;
use twinlock_core::chain::Broken;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::id::{ConversationId, Name, ServerKey};
use twinlock_core::invite::{Address, server_words};
use twinlock_core::proto::Why;
use twinlock_core::session::Fault;
use twinlock_link::line::LineError;
use twinlock_link::login::LoginError;
use twinlock_link::tls::TlsFault;

use crate::home::DiskError;
use crate::profile::ProfileError;
pub use crate::refusal::Refusal;
use crate::state::StateError;

/// Whose fault an error is, which is what a program decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// This machine: its disk, its profile.
    Here,
    /// Who we are: the server refuses us.
    Us,
    /// Who they are: not the server we know, or TLS was cut where that is not allowed.
    Them,
    /// There is no line to the server now; later there may be.
    Network,
    /// The server says no to a request.
    Request,
    /// The record is not what it was, or what came is not what was promised.
    Record,
}

/// Why something did not come about.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// A profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The profile's state cannot be used, or contradicts the server.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file of this client's.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A certificate authority's file cannot be used.
    #[error("{0}")]
    Authority(String),
    /// This program is older than the one that used this profile last.
    #[error(
        "this profile has spoken protocol version {0} with its server, which this program does not \
         know: update it"
    )]
    Outdated(u8),
    /// What a profile names as its server's host.
    #[error("'{0}' is neither a DNS name nor an IP address")]
    NoAddress(String),
    /// No connection.
    #[error("no connection to {address}: {problem}")]
    Unreachable {
        /// Where to.
        address: Address,
        /// The system's words.
        problem: String,
    },
    /// The server closed the connection before the login was over.
    #[error(
        "no connection to {address}: no connection slot was free there (it closed the connection \
         before the login)"
    )]
    NotAdmitted {
        /// Where to.
        address: Address,
    },
    /// The connection ended.
    #[error("the line was lost: {0}")]
    Lost(String),
    /// The server asks to come back.
    #[error("the server is busy; it asks to come back in {seconds} s")]
    Busy {
        /// When.
        seconds: u16,
    },
    /// The server shows another TLS key or certificate.
    #[error(
        "this is not the server this profile knows: {0}. If its owner replaced the TLS key, ask for \
         a new invite link; until then nothing is sent"
    )]
    Distrusted(String),
    /// TLS ends in the middle and the profile does not go on.
    #[error(
        "TLS ends somewhere between you and the server (a proxy, or somebody with a forged \
         certificate), and this profile requires that it does not"
    )]
    TlsCut,
    /// Both could have spoken a higher version.
    #[error("somebody between you and the server lowered the protocol version")]
    Downgrade,
    /// The server proved itself, with another key than the one this client knows.
    #[error(
        "this is not the server you know: its key reads {}, and this profile knows {}. If its owner \
         replaced its identity, ask for a new invite link. Nothing was sent",
        server_words(shown),
        server_words(known)
    )]
    OtherServer {
        /// The key this client knows.
        known: ServerKey,
        /// The key that was shown.
        shown: ServerKey,
    },
    /// Neither the server nor we.
    #[error(
        "login refused: the secret is wrong or was revoked, or this is not the server you know"
    )]
    LoginRefused,
    /// A login by password. That the server is another one would look the same.
    #[error("login refused: wrong password, or this server knows no such user with a password")]
    PasswordRefused,
    /// The password of a user that this session belongs to.
    #[error("wrong password")]
    WrongPassword,
    /// The user has no password.
    #[error("{0} has no password on this server, and so nothing that asks for one")]
    NoPassword(Name),
    /// This program failed.
    #[error(
        "{0}: this program failed, and the server has refused nothing; see its log, and try again"
    )]
    Failed(&'static str),
    /// The server ended the session for good.
    #[error("{0}")]
    Ended(&'static str),
    /// This device has as many sessions as the server allows.
    #[error(
        "this device has as many sessions open as the server allows (`sessions-per-device`, 16 by \
         default); end one of its programs, or try again later"
    )]
    TooManySessions,
    /// The server says no.
    #[error("{0}")]
    Refused(Refusal),
    /// An entry was altered, or is missing.
    #[error("the record was changed: {0}")]
    Tampered(#[from] Broken),
    /// The record ends before an entry that is known to be in it.
    #[error(
        "the record was changed: conversation {conversation} ends at entry {head}, but entry \
         {known} was recorded before"
    )]
    Truncated {
        /// Which.
        conversation: ConversationId,
        /// Where it ends now.
        head: u64,
        /// What is known of it.
        known: u64,
    },
    /// The server's record has a gap.
    #[error(
        "the record was changed: entry {n} of conversation {conversation} is missing or cannot be read"
    )]
    Missing {
        /// Which.
        conversation: ConversationId,
        /// The entry.
        n: u64,
    },
    /// An entry that no honest server records.
    #[error("entry {n} of conversation {conversation} cannot be shown: {what}")]
    BadEntry {
        /// Which conversation.
        conversation: ConversationId,
        /// The entry.
        n: u64,
        /// The fault.
        what: &'static str,
    },
    /// A list that has no end, or whose pages are out of order.
    #[error("the server's list of {0} is out of order or has no end")]
    BadList(&'static str),
    /// The server does not keep to the protocol.
    #[error("the server does not keep to the protocol: {0}")]
    Protocol(&'static str),
    /// There is no such room or person.
    #[error("there is no {0} that you are in or can write to (see `twinlock rooms` and `people`)")]
    NoTarget(String),
    /// The client was closed meanwhile.
    #[error("this client was closed")]
    Closed,
}

impl ClientError {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Profile(_)
            | Self::Disk(_)
            | Self::Authority(_)
            | Self::NoAddress(_)
            | Self::Outdated(_)
            | Self::Failed(_)
            | Self::Closed => Blame::Here,
            Self::State(
                StateError::Conflict { .. }
                | StateError::AckChanged { .. }
                | StateError::OutOfRange { .. },
            )
            | Self::BadEntry { .. }
            | Self::BadList(_)
            | Self::Refused(Refusal { why: Why::Damaged | Why::Hash, .. })
            | Self::Tampered(_)
            | Self::Missing { .. }
            | Self::Truncated { .. } => Blame::Record,
            Self::State(_) => Blame::Here,
            Self::Unreachable { .. }
            | Self::NotAdmitted { .. }
            | Self::Lost(_)
            | Self::Busy { .. }
            | Self::Protocol(_) => Blame::Network,
            Self::Distrusted(_) | Self::OtherServer { .. } | Self::TlsCut | Self::Downgrade => {
                Blame::Them
            }
            Self::LoginRefused
            | Self::PasswordRefused
            | Self::WrongPassword
            | Self::NoPassword(_)
            | Self::Ended(_) => Blame::Us,
            Self::Refused(Refusal {
                why: Why::AlreadyUsed | Why::LogInAgain | Why::WrongPassword,
                ..
            }) => Blame::Us,
            Self::Refused(_) | Self::NoTarget(_) | Self::TooManySessions => Blame::Request,
        }
    }

    /// Trying again by itself may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.blame() == Blame::Network
    }

    /// The server has no room for a connection or a login now. It does so in a moment, so that
    /// even a command that tries once tries again.
    pub(crate) fn wants_a_slot(&self) -> bool {
        matches!(self, Self::NotAdmitted { .. } | Self::Busy { .. })
    }

    pub(crate) fn tls(fault: &TlsFault, address: &Address) -> Self {
        if fault.is_distrust() {
            Self::Distrusted(fault.to_string())
        } else {
            Self::Unreachable { address: address.clone(), problem: fault.to_string() }
        }
    }
}

impl From<LoginError> for ClientError {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Server(ErrorCode::Busy(seconds)) => Self::Busy { seconds },
            LoginError::Server(ErrorCode::Refused) | LoginError::Refused(_) => Self::LoginRefused,
            LoginError::OtherServer { known, shown } => Self::OtherServer { known, shown },
            LoginError::Failed => Self::Failed("the password could not be stretched"),
            // Only a hint, as is every ERROR: it ends this attempt and no more.
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<LineError> for ClientError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Refused(ErrorCode::Busy(seconds)) => Self::Busy { seconds },
            LineError::Refused(ErrorCode::Refused) => Self::LoginRefused,
            LineError::Fault(Fault::Binding) => Self::TlsCut,
            LineError::Fault(Fault::Downgrade(_)) => Self::Downgrade,
            other => Self::Lost(other.to_string()),
        }
    }
}

/// What the server's CLOSE means for us.
pub(crate) fn closed(code: CloseCode) -> ClientError {
    match code {
        CloseCode::Binding => ClientError::TlsCut,
        CloseCode::Version => ClientError::Downgrade,
        CloseCode::Revoked => ClientError::Ended("this device was revoked"),
        CloseCode::Replaced => {
            ClientError::Ended("another program with this device's secret took the line over")
        }
        CloseCode::Quota => ClientError::TooManySessions,
        code => ClientError::Lost(code.to_string()),
    }
}
