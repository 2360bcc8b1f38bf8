//! What a renderer is to show.

use std::time::Duration;

use twinlock_client::ClientError;
use twinlock_client::model::{Entry, Facts};
use twinlock_core::id::ConversationId;
use twinlock_core::session::Binding;
use twinlock_core::text::Untrusted;

use crate::composer::Settlement;
use crate::connection::Reconnection;
use crate::conversations::ConversationView;
use crate::timeline::TimelineItem;
use crate::transfers::TransferChange;

/// A change of the view models, or the answer to an intent.
#[derive(Debug)]
#[non_exhaustive]
pub enum Change {
    /// A session is ready.
    Connected {
        /// The connection before it.
        reconnection: Reconnection,
        /// Whether TLS reaches the server.
        binding: Binding,
        /// Who issued the TLS certificate, as it says.
        issuer: Option<String>,
    },
    /// There is no connection.
    Disconnected {
        /// The cause.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
        /// The first report since the last session.
        is_first: bool,
    },
    /// The server cannot record messages now.
    RecordingDelayed {
        /// The server's refusal.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// The user's conversations are known; the open one has this topic.
    Ready {
        /// The topic; empty if there is none.
        topic: Untrusted,
    },
    /// Another conversation is open.
    Opened {
        /// Its name as a target.
        target: String,
    },
    /// Conversations or people that were unknown, as a user writes them: `#` and a room's name, or
    /// `@` and a user name.
    Names(Vec<String>),
    /// New entries of a conversation that is shown.
    Entries {
        /// The conversation.
        conversation: ConversationId,
        /// Its name as a target.
        target: String,
        /// The conversation is open.
        is_here: bool,
        /// The entries, in the order of the record.
        items: Vec<TimelineItem>,
    },
    /// Entries that were missed while there was no connection have arrived.
    CaughtUp {
        /// The conversation as a target.
        target: String,
        /// Number of these entries.
        entries: u64,
    },
    /// New entries of a conversation that is not shown.
    Activity {
        /// The conversation as a target.
        target: String,
        /// Number of entries of others since the last report.
        entries: u64,
    },
    /// An own message has reached its final state.
    Settled(Settlement),
    /// A transfer has changed.
    Transfer(TransferChange),
    /// Earlier entries of the open conversation, in order.
    History(Vec<Entry>),
    /// The people who are online.
    Online(Vec<String>),
    /// The members of a room.
    Members {
        /// The room's name.
        room: String,
        /// The members.
        users: Vec<String>,
    },
    /// The user's conversations, then the rooms that can be joined.
    Rooms(Vec<ConversationView>),
    /// The state of TLS and session.
    Status(Box<Facts>),
}
