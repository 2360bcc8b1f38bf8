//! The invariants of every decoder and state machine for any input, as functions of bytes.
//!
//! [`TARGETS`] lists them by name. A target reads its input as received bytes or as a list of
//! steps, and panics if an invariant is violated, which a fuzzer detects. `tests/replay.rs` runs
//! each target over its corpus in `corpus/` and over mutated copies; `libfuzzer/` lets libFuzzer
//! search for more. If an input must be nearly valid to get anywhere, the target creates a valid
//! one and lets the input change it. So no corpus holds keys or becomes stale with a version.
//!
//! No target stretches a password: all logins are those of devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod classic;
mod hello;
mod http;
mod input;
mod line;
mod login;
mod names;
mod pair;
mod peer;
mod profile;
mod record;
mod requests;
mod sealed;
mod step_up;
mod stream;
mod text;
mod tls;
mod wire;

/// An invariant of some part of the program.
pub type Target = fn(&[u8]);

/// Calls a macro with the names of all targets.
#[macro_export]
macro_rules! for_each_target {
    ($then:ident) => {
        $then! {
            address answers certificate chain classic enrolment file_name frames greeting hello
            http invite_link line login name origin password peer profile proxy requests sealed search
            session setup step_up text
        }
    };
}

macro_rules! table {
    ($($name:ident)*) => {
        /// All targets by name.
        pub const TARGETS: &[(&str, Target)] = &[$((stringify!($name), targets::$name)),*];
    };
}
for_each_target!(table);

mod targets {
    pub(crate) use crate::classic::{classic, origin};
    pub(crate) use crate::hello::{enrolment, hello, setup};
    pub(crate) use crate::http::http;
    pub(crate) use crate::line::line;
    pub(crate) use crate::login::{greeting, login};
    pub(crate) use crate::names::{address, file_name, invite_link, name, password};
    pub(crate) use crate::pair::session;
    pub(crate) use crate::peer::peer;
    pub(crate) use crate::profile::profile;
    pub(crate) use crate::record::{chain, search};
    pub(crate) use crate::requests::{answers, requests};
    pub(crate) use crate::sealed::sealed;
    pub(crate) use crate::step_up::step_up;
    pub(crate) use crate::text::text;
    pub(crate) use crate::tls::certificate;
    pub(crate) use crate::wire::{frames, proxy};
}

/// Runs the target of this name.
///
/// # Panics
/// If an invariant is violated, or if there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|target| target.0 == name).expect("a target's name");
    target(data);
}
