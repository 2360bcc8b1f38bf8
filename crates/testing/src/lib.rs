//! What the tests of several crates share: a random generator, a faulty network, link checks.
//!
//! Test crates and `twinlock-fuzz` depend on this crate; no build of the program does. A helper that
//! only one crate's tests use stays in those tests. Helpers panic on failure, as a test does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stderr)]

pub mod faulty_network;
pub mod links;
mod rng;
mod stalled_socket;

pub use faulty_network::FaultyNetwork;
pub use rng::{Rng, bytes, random};
pub use stalled_socket::StalledSocket;
