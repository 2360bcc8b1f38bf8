//! The server library over real sockets.

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

mod acts;
mod classic_lines;
mod classic_origin;
mod common;
mod costs;
mod ends;
mod files;
mod files_content;
mod files_flow;
mod files_interrupted;
mod files_limits;
mod files_refused;
mod flow;
mod guessing;
mod handshake_runtime;
mod logs;
mod logs_appends;
mod logs_limits;
mod memory;
mod queues;
mod registering;
mod slots;
mod talking;
mod torture_timing;
mod transports;
