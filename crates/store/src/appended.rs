//! The result of an append.

use twinlock_core::id::{ConversationId, Link, Salt};

/// Number, time, salt and link of a recorded entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The conversation.
    pub conversation: ConversationId,
    /// The entry's number.
    pub n: u64,
    /// Milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// `None` once the entry is erased.
    pub salt: Option<Salt>,
    /// The entry's link, `link_n`.
    pub link: Link,
}

/// The answer to one [`NewEntry`](crate::NewEntry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// The entry is on disk. For a repeated `message_id`, the receipt of the first recording.
    Recorded(Receipt),
    /// The conversation does not exist, the sender is not a member or is suspended, or the sender's
    /// classic key is revoked or bound to another conversation.
    NotAMember,
    /// The sender is a member who may only read there.
    ReadOnly,
}
