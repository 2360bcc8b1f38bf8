//! The client side of Twinlock as a library, without output or prompts.
//!
//! Data on disk: [`home`] locates it, and [`profile`] holds the identity and the pins. [`state`]
//! opens a database. There the [`outbox`] holds messages without an ack, and [`receipts`] holds the
//! links that reveal a changed record.
//!
//! Work with a server: [`enrol`] creates a profile. [`client`] maintains a connection, sends the
//! outbox, follows conversations and sends requests. [`record`] verifies entries.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

pub mod audit;
mod blocking;
pub mod client;
pub mod clock;
pub mod connector;
mod delays;
mod disk;
mod driver;
pub mod enrol;
pub mod error;
pub mod home;
mod limits;
pub mod model;
pub mod outbox;
pub mod profile;
pub mod ready;
pub mod receipts;
pub mod record;
mod refusal;
mod register;
mod registration_client;
pub mod request_connection;
mod session_log;
pub mod state;
pub mod transfer;
pub mod uploads;

pub use client::Client;
pub use error::ClientError;
pub use model::{Event, Options};
