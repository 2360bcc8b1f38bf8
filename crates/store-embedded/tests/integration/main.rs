//! Tests of the store contract, and of SQLite alone.

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
mod sqlite_files;
mod sqlite_full;
mod sqlite_kill;
mod sqlite_tampered;
