//! The Twinlock line protocol, version 1: everything two ends must agree on, and nothing else.
//!
//! This crate does no I/O, reads no clock, spawns nothing and logs nothing: bytes, time and
//! randomness come in as arguments, bytes and events go out as results. `docs/protocol.md` is its
//! specification; section numbers in these modules refer to it.
//!
//! The calling order of one line, which the `twinlock-link` crate follows:
//!
//! 1. [`handshake`]: the client's [`handshake::AwaitChallenge`] and the server's
//!    [`handshake::Hello`] are consumed step by step and end in a [`handshake::Established`].
//! 2. [`session::Session`] is made from it. Frames that arrive go into
//!    [`session::Session::handle_frame`], time into [`session::Session::handle_timeout`]; bytes to
//!    send come out of [`session::Session::outgoing`], the next moment it wants to be woken out of
//!    [`session::Session::poll_timeout`].

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod chain;
pub mod classic;
pub mod credential;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod invite;
mod island;
mod kem;
pub mod keys;
pub mod limits;
pub mod pack;
pub mod proto;
mod rekey;
mod schedule;
pub mod seal;
pub mod session;
pub mod step_up;
pub mod text;
#[cfg(test)]
mod vectors;
mod wiped;

pub use island::opaque;

/// A source of random bytes, passed in by the edge.
///
/// The edge hands in the operating system's generator; tests hand in a script.
pub trait Entropy {
    /// Fills all of `out` with bytes nobody can predict.
    fn fill(&mut self, out: &mut [u8]);
}
