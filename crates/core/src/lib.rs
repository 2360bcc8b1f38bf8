//! The Twinlock protocol, version 1: everything that both ends must agree on, and nothing else.
//!
//! This crate does no I/O, reads no clock, spawns no task and logs nothing. Bytes, time and
//! randomness are arguments; bytes and events are results. `docs/protocol.md` is the specification;
//! section numbers in these modules refer to it.
//!
//! The calling order for one connection, as the `twinlock-transport` crate implements it:
//!
//! 1. [`handshake`]: the client's [`handshake::AwaitChallenge`] and the server's
//!    [`handshake::Hello`] are consumed step by step and end in a [`handshake::Established`].
//! 2. [`session::Session`] is created from it. Received frames go to
//!    [`session::Session::handle_frame`], time goes to [`session::Session::handle_timeout`].
//!    [`session::Session::outgoing`] holds the bytes to send, and
//!    [`session::Session::poll_timeout`] returns the next wake-up time.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

pub mod chain;
pub mod classic;
pub mod credential;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod invite;
mod kem;
pub mod keys;
mod legacy_crypto;
pub mod limits;
pub mod pack;
pub mod proto;
mod rekey;
mod schedule;
pub mod seal;
pub mod session;
pub mod step_up;
#[cfg(test)]
mod test_entropy;
pub mod text;
#[cfg(test)]
mod vectors;
mod wiped;

pub use legacy_crypto::opaque;

/// A source of random bytes, supplied by the caller.
///
/// Programs pass the operating system's generator; tests pass a fixed sequence.
pub trait Entropy {
    /// Fills all of `out` with unpredictable bytes.
    fn fill(&mut self, out: &mut [u8]);
}
