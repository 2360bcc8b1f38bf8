//! A load generator: connections that only measure a server (`twinlock bench`).
//!
//! Only the server is measured, so the client skips its own work: no outbox, no receipts, no
//! verification of links. It counts answers instead of decoding them. The bytes on the network are
//! those of any client, with TLS and the session. The server does all of its work: each message
//! becomes an entry, and its ack follows an fsync.
//!
//! All messages go into a separate room. Connections are sessions of the profile's device, each
//! with a distinct `instance`, or of users created for the run ([`Plan::users`]). A server allows
//! 16 sessions per user by default.
//!
//! A run has a warm-up, a window in which answers count, and a phase that waits for outstanding
//! answers. So [`Measurement::total`] is what the record has.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod fanout;
mod files;
mod idle;
mod load;
mod logins;
mod measure;
mod messages;
mod model;
mod open_files;
mod process;
mod proto_scan;
mod sender;
mod virtual_users;

pub use load::Load;
pub use model::{Latency, LoadError, LoadMode, Measurement, Plan, ServerCost, Shape, StopSignal};
pub use open_files::{OpenFilesError, SPARE_FILES, raise_open_files};

/// Maximum number of concurrent logins.
pub const LOGINS_AT_ONCE: u32 = virtual_users::CONCURRENT_LOGINS as u32;
