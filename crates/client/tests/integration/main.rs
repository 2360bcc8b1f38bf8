//! The client library against real servers.

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
mod evidence;
mod front_door;
mod line;
mod network;
mod state_db;
mod state_files;
mod state_processes;
mod transfers;
