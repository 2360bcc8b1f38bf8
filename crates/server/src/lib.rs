//! The server: listeners, sessions, followers, limits.
//!
//! [`Server::start`] opens or creates everything in the data directory and serves until
//! [`Server::shutdown`]. It does not print, prompt or handle signals; the program does. The
//! functions in [`process`] prepare the process before that.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

// Unit tests use the fixture of `tests/`, which names this crate as an external crate.
#[cfg(test)]
extern crate self as twinlock_server;
#[cfg(test)]
#[path = "../tests/integration/common/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod common;

mod admission;
mod append_log;
mod appends;
mod barred;
mod bus;
mod classic;
mod config;
mod convert;
mod env;
mod error;
mod files;
mod handshake_runtime;
pub mod identity;
pub mod inspect;
mod invites;
mod limits;
mod private;
pub mod process;
mod record;
mod refusal;
mod server;
mod services;
mod session;

pub use config::{ClassicConfig, Config, Limits};
pub use error::StartError;
pub use server::{FILE_ONLY, Server, make_data_directory};
pub use twinlock_store_embedded::convert::{
    Progress as ConversionProgress, Stage as ConversionStage,
};
