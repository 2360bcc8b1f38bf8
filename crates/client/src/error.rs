//! Errors between this client and its server, sorted by the side at fault.
//!
//! Several waiters can share an error, so causes are kept as text.

use thiserror::Error;
use twinlock_core::chain::Broken;
use twinlock_core::frame::{CloseCode, ErrorCode};
use twinlock_core::id::{ConversationId, Name, ServerKey};
use twinlock_core::invite::{Address, BadLink, server_words};
use twinlock_core::session::SessionFault;
use twinlock_transport::connection::ConnectionError;
use twinlock_transport::login::LoginError;
use twinlock_transport::tls::TlsFault;

use crate::home::{DiskError, HomeError};
use crate::profile::ProfileError;
pub use crate::refusal::Refusal;
use crate::state::StateError;
pub use twinlock_core::proto::{Limit, RefusalReason};

/// The side at fault; a program decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This machine: its disk, its profile.
    Local,
    /// The credentials: the server refuses them.
    Credentials,
    /// The server's identity: not the known server, or a TLS interception that is not allowed.
    ServerIdentity,
    /// There is no connection to the server; a retry may succeed.
    Network,
    /// The server refuses a request.
    Request,
    /// The record was altered, or received data is not what was announced.
    Record,
}

/// An error of the client.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The profile's state cannot be used, or contradicts the server.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file of this client failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A CA file cannot be used.
    #[error("{0}")]
    Authority(String),
    /// A newer program has used this profile.
    #[error(
        "this profile has spoken protocol version {0} with its server, which this program does not \
         know: update it"
    )]
    Outdated(u8),
    /// The profile's host is not a valid address.
    #[error("'{0}' is neither a DNS name nor an IP address")]
    NoAddress(String),
    /// The connection could not be established.
    #[error("no connection to {address}: {problem}")]
    Unreachable {
        /// The server's address.
        address: Address,
        /// The operating system's message.
        problem: String,
    },
    /// Without TLS only this machine is reached.
    #[error("{0} is not this machine: the plain transport reaches this machine only")]
    PlainBeyondMachine(Address),
    /// A proxy on the way out opens no connection to the server.
    #[error("the proxy {proxy} opens no connection to {address}: {problem}{hint}")]
    Proxy {
        /// The proxy, as a URL without a password.
        proxy: String,
        /// The server's address.
        address: Address,
        /// What the proxy answered.
        problem: String,
        /// What to do, after a semicolon.
        hint: &'static str,
    },
    /// The proxy that the environment names does not work here.
    #[error("the environment names a proxy that cannot be used: {0}")]
    Via(#[from] crate::via::ViaError),
    /// The server closed the connection before the login was complete.
    #[error(
        "no connection to {address}: no connection slot was free there (it closed the connection \
         before the login)"
    )]
    NotAdmitted {
        /// The server's address.
        address: Address,
    },
    /// The connection ended.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The server asks for a later retry.
    #[error("the server is busy; it asks to retry in {seconds} s")]
    Busy {
        /// The delay in seconds.
        seconds: u16,
    },
    /// The server presents another TLS key or certificate.
    #[error(
        "this is not the server this profile knows: {0}. If its owner replaced the TLS key, ask for \
         a new invite link; until then nothing is sent"
    )]
    Distrusted(String),
    /// TLS is intercepted, and the profile or the server does not allow that.
    #[error(
        "TLS is intercepted between you and the server: a proxy{}, or an attacker with a forged \
         certificate. This profile or the server does not allow that",
        issued_by(.issuer.as_deref())
    )]
    TlsCut {
        /// Who issued the certificate, as it says; `None` without TLS, or if it cannot be read.
        issuer: Option<String>,
    },
    /// The protocol version was lowered, although both ends support a higher one.
    #[error("the protocol version was downgraded between you and the server")]
    Downgrade,
    /// The server proved another key than the one this client knows.
    #[error(
        "this is not the server you know: its key reads {}, and this profile knows {}. If its owner \
         replaced its identity, ask for a new invite link. Nothing was sent",
        server_words(shown),
        server_words(known)
    )]
    OtherServer {
        /// The key this client knows.
        known: ServerKey,
        /// The key that the server proved.
        shown: ServerKey,
    },
    /// The login failed on both sides: neither the secret nor the server was verified.
    #[error(
        "login refused: the secret is wrong or was revoked, or this is not the server you know"
    )]
    LoginRefused,
    /// A login by password was refused. Another server would look the same.
    #[error("login refused: wrong password, or this server knows no such user with a password")]
    PasswordRefused,
    /// The password of this session's user is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// The user has no password.
    #[error("{0} has no password on this server, so requests that need one are impossible")]
    NoPassword(Name),
    /// This program failed.
    #[error(
        "{0}: an internal failure of this program, not a refusal by the server; see the log and retry"
    )]
    Failed(&'static str),
    /// The server ended the session permanently.
    #[error("{0}")]
    Ended(&'static str),
    /// This device has as many sessions as the server allows.
    #[error(
        "this device has as many sessions open as the server allows (`sessions-per-device`, 16 by \
         default); end one of its programs, or try again later"
    )]
    TooManySessions,
    /// The server refuses a request.
    #[error("{0}")]
    Refused(Refusal),
    /// An entry was altered or is missing.
    #[error("the record was changed: {0}")]
    Tampered(#[from] Broken),
    /// The record ends before an entry that is known.
    #[error(
        "the record was changed: conversation {conversation} ends at entry {head}, but entry \
         {known} was recorded before"
    )]
    Truncated {
        /// The conversation.
        conversation: ConversationId,
        /// The number of its last entry now.
        head: u64,
        /// The newest known entry.
        known: u64,
    },
    /// The server's record has a gap.
    #[error(
        "the record was changed: entry {n} of conversation {conversation} is missing or cannot be read"
    )]
    Missing {
        /// The conversation.
        conversation: ConversationId,
        /// The entry.
        n: u64,
    },
    /// An entry that no honest server records.
    #[error("entry {n} of conversation {conversation} cannot be shown: {what}")]
    BadEntry {
        /// The conversation.
        conversation: ConversationId,
        /// The entry.
        n: u64,
        /// The fault.
        what: &'static str,
    },
    /// A list that never ends, or whose pages are out of order.
    #[error("the server's list of {0} is out of order or has no end")]
    BadList(&'static str),
    /// The server violates the protocol.
    #[error("the server violates the protocol: {0}")]
    Protocol(&'static str),
    /// No such room or user exists.
    #[error(
        "there is no {0} that you belong to or can write to (see `twinlock rooms` and `people`)"
    )]
    NoTarget(String),
    /// A string is not a user name.
    #[error("'{}' is not a user name", .0.escape_debug())]
    NotAName(String),
    /// An invite link is invalid.
    #[error(transparent)]
    InviteLink(#[from] BadLink),
    /// There is no location for profiles.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The caller of [`crate::Client::start`] takes the events that conversations need.
    #[error("this client gives its events to its caller: use a client from `Client::open`")]
    EventsTaken,
    /// A message was removed from the outbox before it was recorded.
    #[error("the message was removed from the outbox before it was recorded")]
    Discarded,
    /// The user has left the conversation, perhaps on another device.
    #[error("this user has left the conversation")]
    Left,
    /// More requests wait for a connection than this client keeps.
    #[error("too many requests of this program wait for a connection")]
    TooManyRequests,
    /// Another part of the program receives this conversation now.
    #[error("another part of this program receives the conversation now")]
    Superseded,
    /// The client was closed.
    #[error("this client was closed")]
    Closed,
}

impl ClientError {
    /// The side at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Profile(_)
            | Self::Disk(_)
            | Self::Authority(_)
            | Self::NoAddress(_)
            | Self::PlainBeyondMachine(_)
            | Self::Outdated(_)
            | Self::Failed(_)
            | Self::NotAName(_)
            | Self::InviteLink(_)
            | Self::Home(_)
            | Self::Via(_)
            | Self::EventsTaken
            | Self::Discarded
            | Self::Left
            | Self::Superseded
            | Self::TooManyRequests
            | Self::Closed => Fault::Local,
            Self::State(
                StateError::Conflict { .. }
                | StateError::AckChanged { .. }
                | StateError::OutOfRange { .. },
            )
            | Self::BadEntry { .. }
            | Self::BadList(_)
            | Self::Refused(Refusal {
                why: RefusalReason::Damaged | RefusalReason::Hash, ..
            })
            | Self::Tampered(_)
            | Self::Missing { .. }
            | Self::Truncated { .. } => Fault::Record,
            Self::State(_) => Fault::Local,
            Self::Unreachable { .. }
            | Self::Proxy { .. }
            | Self::NotAdmitted { .. }
            | Self::Lost(_)
            | Self::Busy { .. }
            | Self::Protocol(_) => Fault::Network,
            Self::Distrusted(_)
            | Self::OtherServer { .. }
            | Self::TlsCut { .. }
            | Self::Downgrade => Fault::ServerIdentity,
            Self::LoginRefused
            | Self::PasswordRefused
            | Self::WrongPassword
            | Self::NoPassword(_)
            | Self::Ended(_) => Fault::Credentials,
            Self::Refused(Refusal {
                why:
                    RefusalReason::AlreadyUsed
                    | RefusalReason::LogInAgain
                    | RefusalReason::WrongPassword,
                ..
            }) => Fault::Credentials,
            Self::Refused(_) | Self::NoTarget(_) | Self::TooManySessions => Fault::Request,
        }
    }

    /// Whether an automatic retry may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.fault() == Fault::Network
    }

    /// Whether the server has no capacity for a connection or a login now. That is brief, so even a
    /// one-shot command retries.
    pub(crate) fn wants_a_slot(&self) -> bool {
        matches!(self, Self::NotAdmitted { .. } | Self::Busy { .. })
    }

    /// Adds who issued the certificate of the connection to an error about its TLS.
    pub(crate) fn with_issuer(self, issuer: impl FnOnce() -> Option<String>) -> Self {
        match self {
            Self::TlsCut { issuer: None } => Self::TlsCut { issuer: issuer() },
            error => error,
        }
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
            // An ERROR is not authenticated, so it ends this attempt and nothing else.
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<ConnectionError> for ClientError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Refused(ErrorCode::Busy(seconds)) => Self::Busy { seconds },
            ConnectionError::Refused(ErrorCode::Refused) => Self::LoginRefused,
            ConnectionError::Fault(SessionFault::Binding) => Self::TlsCut { issuer: None },
            ConnectionError::Fault(SessionFault::Downgrade(_)) => Self::Downgrade,
            other => Self::Lost(other.to_string()),
        }
    }
}

/// Who issued the certificate of an intercepted TLS, in brackets for a message.
#[must_use]
pub fn issued_by(issuer: Option<&str>) -> String {
    issuer.map(|by| format!(" (its certificate is issued by {by})")).unwrap_or_default()
}

/// The error for a CLOSE of the server.
#[must_use]
pub fn closed(code: CloseCode) -> ClientError {
    match code {
        CloseCode::Binding => ClientError::TlsCut { issuer: None },
        CloseCode::Version => ClientError::Downgrade,
        CloseCode::Revoked => ClientError::Ended("this device was revoked"),
        CloseCode::Replaced => {
            ClientError::Ended("another program with this device's secret took the line over")
        }
        CloseCode::Quota => ClientError::TooManySessions,
        code => ClientError::Lost(code.to_string()),
    }
}
