//! Tests of the store contract, and of the log alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    non_snake_case,
    unreachable_pub
)]

mod common;
mod conformance;
mod convert;
mod convert_damaged;
mod convert_kill;
mod record_duplicates;
mod record_erasure;
mod record_files;
mod record_kill;
mod record_rebuild;
mod record_tampered;
