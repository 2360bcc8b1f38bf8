//! The store of one machine: an append-only log of linked entries, and SQLite for what can be
//! rebuilt from it.
//!
//! `docs/design/019-record-log.md` describes the files and the rules. One thread records
//! (`recorder`), one indexes (`index`), one keeps the words (`words`), a few connections read.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod check;
mod contract;
pub mod convert;
mod database;
mod entry_batch;
mod entry_reader;
mod error;
mod file_names;
mod head_cache;
mod index;
mod log;
mod open;
mod open_error;
mod options;
mod people;
mod readers;
mod record_lock;
mod recorder;
mod replay;
mod row;
mod store;
mod sync_thread;
mod tail;
mod words;

pub use check::{
    CheckKeys, CheckProgress, Finding, RecordReport, RecordState, check_record, examine_record,
};
pub use open_error::OpenError;
pub use options::{Expected, StoreOptions};
pub use record_lock::{ReadLock, RecordLock};
pub use store::EmbeddedStore;
