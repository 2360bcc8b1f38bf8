//! What a user wants.

use std::path::PathBuf;

use thiserror::Error;
use twinlock_core::id::Name;

/// A wish of the user, which a renderer derives from a typed line, a key or a click.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Send a text to the open conversation.
    Send {
        /// The text.
        text: String,
    },
    /// Send a text to a person, and stay in the open conversation.
    SendDirect {
        /// The person.
        user: Name,
        /// The text.
        text: String,
    },
    /// Join a room and open it.
    OpenRoom(Name),
    /// Open the direct conversation with a person.
    OpenDirect(Name),
    /// Show earlier entries of the open conversation.
    ShowHistory {
        /// Number of entries.
        entries: u64,
    },
    /// Show who is online, and the members of the open room.
    ShowPeople,
    /// Show the user's conversations and the rooms that can be joined.
    ShowRooms,
    /// Show the state of TLS and session.
    ShowStatus,
    /// Send a file to the open conversation.
    SendFile {
        /// The file.
        path: PathBuf,
    },
    /// Fetch the file of an entry of the open conversation.
    FetchFile {
        /// The number of the entry.
        n: u64,
    },
}

/// An intent that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntentError {
    /// The text is too long for one message.
    #[error("too long: a message has at most {most} bytes")]
    TextTooLong {
        /// The maximum in bytes.
        most: usize,
    },
}
