//! What the models need from outside, and the answers.

use std::path::PathBuf;

use twinlock_client::model::Facts;
use twinlock_client::outbox::MessageOutcome;
use twinlock_client::record::Page;
use twinlock_client::{ConversationInfo, PersonInfo};
use twinlock_core::id::{ConversationId, MessageId, Name};

/// Work outside the models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Work for [`crate::perform()`].
    Client(ClientEffect),
    /// Work with files, which is the caller's: it knows directories and overwriting.
    File(FileEffect),
}

/// Work for a client of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEffect {
    /// Follow a conversation.
    Follow {
        /// The conversation.
        conversation: ConversationId,
        /// The entry before the first one.
        after: u64,
    },
    /// Set the read marker. A lost marker is harmless; the next one replaces it.
    MarkRead {
        /// The conversation.
        conversation: ConversationId,
        /// The last read entry.
        n: u64,
    },
    /// Put a message into the outbox.
    Enqueue {
        /// The target.
        target: String,
        /// The text.
        text: String,
        /// The target is not the open conversation.
        is_aside: bool,
    },
    /// Look up messages in the outbox.
    CheckOutbox(Vec<MessageId>),
    /// Join a room and open it.
    JoinRoom(Name),
    /// Open the direct conversation with a person.
    OpenDirect(Name),
    /// Find a conversation, to read its last entries.
    FindForHistory {
        /// The target.
        target: String,
        /// Number of entries.
        entries: u64,
    },
    /// Read a page of entries.
    ReadPage(HistoryPosition),
    /// List all people.
    ListPeople,
    /// List the members of a room.
    ListMembers {
        /// The room's name.
        room: String,
    },
    /// List the user's conversations and the rooms that can be joined.
    ListRooms,
    /// Read the state of TLS and session.
    ReadFacts,
}

/// A position in a series of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPosition {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry before the first one of the next page.
    pub after: u64,
    /// The last entry of the series.
    pub upto: u64,
    /// The conversation to open after the last page.
    pub opens: Option<Box<ConversationInfo>>,
}

impl ClientEffect {
    /// Whether the server has to answer, so that the effect waits for a connection.
    #[must_use]
    pub fn needs_server(&self) -> bool {
        !matches!(
            self,
            Self::Follow { .. }
                | Self::MarkRead { .. }
                | Self::Enqueue { .. }
                | Self::CheckOutbox(_)
        )
    }
}

/// Work with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileEffect {
    /// Examine a file and send it.
    Send {
        /// The file.
        path: PathBuf,
        /// The target.
        target: String,
    },
    /// Fetch the file of an entry.
    Fetch {
        /// The conversation as a target.
        target: String,
        /// The number of the entry.
        n: u64,
    },
}

/// The result of a [`ClientEffect`].
#[derive(Debug)]
pub enum EffectOutcome {
    /// It is done.
    Done,
    /// The message is in the outbox.
    Queued {
        /// The message.
        message_id: MessageId,
        /// The target.
        target: String,
        /// The text.
        text: String,
        /// The target is not the open conversation.
        is_aside: bool,
    },
    /// What the outbox has of messages.
    OutboxChecked(Vec<(MessageId, Option<MessageOutcome>)>),
    /// A conversation to open.
    Found(ConversationInfo),
    /// A conversation whose last entries are to be read.
    FoundForHistory {
        /// The conversation.
        conversation: ConversationInfo,
        /// Number of entries.
        entries: u64,
    },
    /// A page of entries.
    Page(HistoryPosition, Page),
    /// All people.
    People(Vec<PersonInfo>),
    /// The members of a room.
    Members {
        /// The room's name.
        room: String,
        /// The members.
        users: Vec<String>,
    },
    /// The user's conversations, then the rooms that can be joined.
    Rooms(Vec<ConversationInfo>),
    /// The state of TLS and session.
    Facts(Box<Facts>),
}
