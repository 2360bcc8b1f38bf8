//! The server: listener, sessions, following, limits.
//!
//! [`Server::start`] opens or makes everything in its directory and serves until
//! [`Server::shutdown`]. It prints nothing, asks nothing and reads no signals: that is the
//! program's part, with [`process`] for what a process should be before it serves.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

// Unit tests use the test client of `tests/`, which names this crate from outside.
#[cfg(test)]
extern crate self as twinlock_server;
#[cfg(test)]
#[path = "../tests/integration/common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;

mod append_log;
mod barred;
mod classic;
mod config;
mod convert;
mod doors;
mod files;
mod hub;
pub mod identity;
mod limits;
mod private;
pub mod process;
mod server;
mod session;

pub use config::{Classic, Config, Limits};
pub use server::{FILE_ONLY, Server, StartError, make_data_directory};
