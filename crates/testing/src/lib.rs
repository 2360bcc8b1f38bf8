//! What the tests of several crates share: a server in the test's process, a client below the SDK,
//! a faulty network, a proxy that intercepts TLS, a random generator, link checks.
//!
//! Test crates and `twinlock-fuzz` depend on this crate; no build of the program does. A helper that
//! only one crate's tests use stays in those tests. Helpers panic on failure, as a test does.
//!
//! The feature `server` adds `TestServer`, for the tests of crates above the server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stderr)]
#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

// `server` is compiled in the tests of the server too, where this is an external crate.
#[cfg(feature = "server")]
extern crate self as twinlock_testing;

mod credentials;
mod dirs;
pub mod endpoint;
pub mod faulty_network;
pub mod links;
pub mod messages;
pub mod process;
pub mod raw_client;
pub mod raw_handshake;
pub mod record_files;
mod rng;
pub mod search;
#[cfg(feature = "server")]
mod server;
mod stalled_socket;
mod timeouts;
mod tls_interceptor;

pub use credentials::{TestDevice, TestInvite, password};
pub use dirs::copy_dir;
pub use endpoint::Endpoint;
pub use faulty_network::FaultyNetwork;
pub use raw_client::RawClient;
pub use rng::{Rng, bytes, random};
#[cfg(feature = "server")]
pub use server::TestServer;
pub use stalled_socket::StalledSocket;
pub use timeouts::{LONG, SOON, soon};
pub use tls_interceptor::{TlsInterceptor, Watch};
