//! Limits that several modules share.

/// Maximum number of items in one list of the server, of conversations and of waiting events: ten
/// times that of a large server.
pub(crate) const MAX_LISTED: usize = 200_000;
