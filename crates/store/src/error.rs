//! Why a call of the store failed.

use thiserror::Error;

use crate::bounds::Bound;

/// A failure of the store, or a limit that the request would exceed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The disk is full. Appends fail until there is space again; reads still work.
    #[error("the disk that holds the record is full")]
    Full,
    /// Any other error of the database.
    #[error("the record's database failed: {0}")]
    Database(String),
    /// A row does not match its MAC, or its values are invalid.
    #[error("the record is damaged: {0}")]
    Damaged(String),
    /// An earlier append of the same [`Order`](crate::Order) failed.
    #[error("an earlier append of this connection failed")]
    OutOfOrder,
    /// The store was closed.
    #[error("the record is closed")]
    Closed,
    /// The request would exceed a bound that the store was opened with; nothing was changed.
    #[error("the limit of {1} is reached ({0:?})")]
    TooMany(Bound, usize),
}
