//! The whole contract, which brings the traits together.

use std::sync::Arc;

use async_trait::async_trait;

use crate::accounts::Accounts;
use crate::administration::Administration;
use crate::classic_keys::ClassicKeyStore;
use crate::directory::Directory;
use crate::error::StoreError;
use crate::files::FileIndex;
use crate::log::EntryLog;
use crate::search::EntrySearch;

/// Source of the store's time: milliseconds since 1970 UTC.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A durable record of conversations, people and their credentials.
///
/// Unless stated otherwise, a method that writes returns after the data is on disk (fsync). Every
/// method may be cancelled; a write that has started completes nevertheless.
///
/// Every type that has all parts of the contract is a store.
pub trait Store:
    EntryLog + Directory + Accounts + Administration + FileIndex + EntrySearch + ClassicKeyStore + Close
{
}

impl<T> Store for T where
    T: EntryLog
        + Directory
        + Accounts
        + Administration
        + FileIndex
        + EntrySearch
        + ClassicKeyStore
        + Close
{
}

/// The orderly end of a record's use.
#[async_trait]
pub trait Close: Send + Sync + 'static {
    /// Flushes and closes the record. Later calls fail, and the files can be moved or copied.
    async fn close(&self) -> Result<(), StoreError>;
}
