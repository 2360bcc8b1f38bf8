//! `index.db`: where entries are, and which message ids were recorded. Rebuilt from the log if it is
//! lost.

mod database;
mod ids;
mod indexer;

pub(crate) use database::{INDEX, IndexReader, IndexWriter};
pub(crate) use indexer::Indexer;
