//! A write of accounts, conversations, members or classic keys.

use rusqlite::Connection;
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};

use crate::error::DbError;
use crate::people::apply::apply;
use crate::people::changes::Change;

/// What the log knows of conversations, and `people.db` does not.
pub(crate) trait Heads {
    /// The newest number of a conversation and its link; 0 and `link_0` while it is empty.
    ///
    /// In a write this includes the entries that precede it in the same batch, because they are
    /// recorded together. In a read it is the newest one on disk.
    fn head(
        &self,
        conversation: ConversationId,
        server_key: &ServerKey,
    ) -> Result<(u64, Link), DbError>;

    /// Number of entries after number `after`, up to `last`, that this user sent.
    fn own_after(
        &self,
        conversation: ConversationId,
        user: &Name,
        after: u64,
        last: u64,
    ) -> Result<u64, DbError>;
}

/// One write, whose changes become one record of the log.
///
/// The recorder opens a savepoint of `people.db` for each write. It drops this value and the
/// savepoint if the write fails, and otherwise appends [`Self::changes`] to the log. `people.db` is
/// committed after the log is synced, and before the answer.
pub(crate) struct WriteTransaction<'a> {
    /// The only connection that writes, inside a transaction.
    pub(crate) conn: &'a Connection,
    /// Changes so far. They are applied already.
    pub(crate) changes: Vec<Change>,
    /// Members who have left. The recorder removes them from its cache, whether or not the write
    /// succeeds.
    pub(crate) left: Vec<(ConversationId, Name)>,
    /// Users whose entries are not accepted any more, in no conversation. As with [`Self::left`].
    pub(crate) shut_out: Vec<Name>,
    /// Notices of the server, which become entries of the same batch.
    pub(crate) notices: Vec<(ConversationId, String)>,
    pub(crate) heads: &'a dyn Heads,
    /// Milliseconds since 1970 UTC.
    pub(crate) now_ms: u64,
}

impl<'a> WriteTransaction<'a> {
    /// A write without changes.
    pub(crate) fn new(conn: &'a Connection, heads: &'a dyn Heads, now_ms: u64) -> Self {
        let (changes, left, shut_out, notices) = Default::default();
        Self { conn, changes, left, shut_out, notices, heads, now_ms }
    }

    /// Applies a change and notes it for the log.
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), DbError> {
        apply(self.conn, &change)?;
        self.changes.push(change);
        Ok(())
    }
}
