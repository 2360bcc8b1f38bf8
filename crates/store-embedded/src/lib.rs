//! The store of one machine, on SQLite: one file, WAL, `synchronous=FULL`.
//!
//! One thread writes (`recorder`), a few connections read, and another thread checkpoints the
//! WAL. A lock file ensures that only one process has the record open.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod checkpoint;
mod checkpoint_state;
mod classic;
mod contract;
mod conversations;
mod credentials;
mod entries;
mod entry_writer;
mod error;
mod examine;
mod file_names;
mod files;
mod fts_query;
mod head_cache;
mod index;
mod open;
mod open_error;
mod options;
mod people;
mod readers;
mod record_files;
mod recorder;
mod reopen;
mod row;
mod search;
mod sources;
mod store;
mod write_transaction;

pub use examine::{RecordState, examine_record};
pub use open_error::OpenError;
pub use options::{Expected, StoreOptions};
pub use record_files::RecordLock;
pub use store::EmbeddedStore;
