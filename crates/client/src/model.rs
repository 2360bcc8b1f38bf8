//! The types that a client takes and returns: settings, events, entries, facts of a session.
//!
//! Everything else in this crate may import this module; it imports only errors and acks.

use std::time::Duration;

use twinlock_core::chain::EntryKind;
use twinlock_core::id::{ConversationId, InviteId, Link, MessageId, Sender, ServerKey, SessionId};
use twinlock_core::invite::Address;
use twinlock_core::keys::{ClassicSecret, InviteSecret};
use twinlock_core::limits::Timing;
use twinlock_core::proto::RefusalReason;
use twinlock_core::session::{Binding, SessionFacts};
use twinlock_core::text::Untrusted;
use twinlock_transport::tls::TlsFacts;

use crate::directory::{ConversationInfo, ServerDescription};
use crate::error::ClientError;
use crate::outbox::Ack;
use crate::route::{ClientTransport, Route};

/// Default time that a one-shot command waits for a connection slot.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Settings of a client.
#[derive(Debug, Clone)]
pub struct Options {
    /// Reconnect after a lost connection. Without it the first failure is final, unless the server
    /// has no free connection slot.
    pub reconnect: bool,
    /// Without `reconnect`: how long to retry while no slot is free. Default 10 s.
    pub patience: Duration,
    /// Send the outbox.
    pub send: bool,
    /// Connect to this address instead of the profile's; its TLS and server keys still apply.
    pub address: Option<Address>,
    /// First delay before reconnecting; grows exponentially, with jitter. Default 0.2 s: a client
    /// reaches a server that restarts quickly within half a second. After a connection that made
    /// progress, the first attempt is immediate.
    pub first_delay: Duration,
    /// How connections reach the server.
    pub route: Route,
    /// Maximum delay. Default 30 s; with a longer one, users wait longer after an outage.
    pub longest_delay: Duration,
    /// Timing of the session: rekey, keep-alive. The profile's `rekey-after` overrides this one.
    pub timing: Timing,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reconnect: true,
            patience: PATIENCE,
            send: true,
            address: None,
            route: Route::default(),
            first_delay: Duration::from_millis(200),
            longest_delay: Duration::from_secs(30),
            timing: Timing::default(),
        }
    }
}

/// The number of a follow, which tells it from others of the same conversation. A greater one is a
/// later one. [`crate::Client::follow`] uses 0.
pub type FollowToken = u64;

/// An event of the client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The session is ready.
    Up(Box<Up>),
    /// The connection was lost, or could not be established.
    Down {
        /// The cause.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// The server cannot record now; the client continues to retry. Reported once, until a message
    /// is recorded again.
    Held {
        /// The server's refusal.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// Verified entries of a followed conversation, in order.
    Entries {
        /// The conversation.
        conversation: ConversationId,
        /// Which follow of the conversation it is.
        follow: FollowToken,
        /// At least one.
        entries: Vec<Entry>,
    },
    /// All entries that existed when following started or resumed have arrived.
    CaughtUp {
        /// The conversation.
        conversation: ConversationId,
        /// Which follow of the conversation it is.
        follow: FollowToken,
        /// The number of these entries.
        entries: u64,
    },
    /// A message is on the server's disk.
    Recorded {
        /// The message.
        message_id: MessageId,
        /// Its position, time and link.
        ack: Ack,
    },
    /// The server refuses to record a message, which stays in the outbox.
    Refused {
        /// The message.
        message_id: MessageId,
        /// The reason.
        why: RefusalReason,
    },
    /// A conversation of this user is new or has changed, or the user has left it (not `joined`).
    Conversation(ConversationInfo),
    /// A user went online or offline; sent after [`crate::Client::people`] with `watch`.
    Presence {
        /// The user.
        user: String,
        /// Whether the user is online now.
        online: bool,
    },
    /// The last event: the client has ended, by [`crate::Client::close`] or by this error.
    Ended(Option<ClientError>),
}

/// An established session.
#[derive(Debug, Clone)]
pub struct Up {
    /// What the server says of itself and of this session.
    pub server: ServerDescription,
    /// The result of the channel binding.
    pub binding: Binding,
    /// The parameters of TLS.
    pub tls: TlsFacts,
    /// The transport, as this client sees it.
    pub transport: ClientTransport,
}

/// The current state of TLS and of the session.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The TLS parameters and what the server says.
    pub up: Up,
    /// The session's state.
    pub session: SessionFacts,
    /// The session's id, as in the server's log.
    pub id: SessionId,
    /// The key that identifies the server.
    pub server_key: ServerKey,
    /// The age of the session.
    pub age: Duration,
    /// Time since the last rekey; `None` before the first.
    pub since_rekey: Option<Duration>,
}

/// A completed rekey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rekeyed {
    /// The epoch at the time of the request.
    pub before: u32,
    /// The new epoch of both directions, as seen from this end.
    pub after: u32,
}

/// An entry; its link was verified if [`Self::link`] is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub n: u64,
    /// Milliseconds since 1970 UTC, by the server's clock.
    pub time_ms: u64,
    /// The id that the sender chose.
    pub message_id: MessageId,
    /// Text, notice, file and so on.
    pub kind: EntryKind,
    /// The sender; `None` if the bytes name no valid one.
    pub sender: Option<Sender>,
    /// The text; `None` for an erased entry and for a file.
    pub text: Option<Untrusted>,
    /// The file, for an entry of kind 3 that is not erased.
    pub file: Option<FileEntry>,
    /// `link_n`; `None` in search results, which have gaps.
    pub link: Option<Link>,
}

/// What an entry says of its file. The content is fetched by the entry's number
/// ([`crate::transfer::Transfers::get`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The name that the sender gave it; see [`crate::transfer::name::harmless`].
    pub name: Untrusted,
    /// The directories above it, as the sender named them, separated by `/`; empty: none. See
    /// [`crate::transfer::name::below`].
    pub path: Untrusted,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, at most 0777; 0: unknown.
    pub mode: u32,
    /// Time of the last change, in ms since 1970 UTC; 0: unknown.
    pub modified_ms: u64,
    /// BLAKE3 hash of the content.
    pub hash: [u8; 32],
}

/// A new invite.
#[derive(Debug)]
pub struct NewInvite {
    /// The invite's id.
    pub id: InviteId,
    /// The invite's secret; the server does not return it again.
    pub secret: InviteSecret,
    /// Time of expiry, in ms since 1970 UTC.
    pub expires_ms: u64,
}

/// A new classic key.
#[derive(Debug)]
pub struct NewClassicKey {
    /// The key; the server does not return it again.
    pub key: ClassicSecret,
    /// The server's port for it; `None`: the listener is off.
    pub port: Option<u16>,
}
