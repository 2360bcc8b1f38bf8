//! The recorder's transaction, as writes other than appends use it.

use rusqlite::Connection;

use crate::head_cache::HeadCache;

/// The recorder's open transaction.
pub(crate) struct WriteTransaction<'a> {
    /// The recorder's connection, inside a transaction.
    pub(crate) conn: &'a Connection,
    /// A job may only remove cached state, because the transaction can still fail.
    pub(crate) cache: &'a mut HeadCache,
    /// Milliseconds since 1970 UTC.
    pub(crate) now_ms: u64,
    /// Set by a job that erased content: the WAL is emptied after the commit.
    pub(crate) erased: bool,
}
