//! Both ends of a connection over real sockets.

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
mod connection;
mod login;
mod tls_negotiation;
mod tls_trust;
