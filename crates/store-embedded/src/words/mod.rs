//! `words.db`: the search for words. It lags behind the record and is rebuilt from it if it is lost.

mod database;
mod feeder;
mod fts_query;
mod search;

pub(crate) use database::{ENTRY, WORDS, WordsWriter};
pub(crate) use feeder::{ErasedEntry, FeederParts, WordsFeeder, WordsHandle, erase};
pub(crate) use search::some;
