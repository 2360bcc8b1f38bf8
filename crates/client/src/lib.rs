//! The client side of Twinlock as a library, without output or prompts.
//!
//! ```no_run
//! # async fn run() -> Result<(), twinlock_client::ClientError> {
//! let client = twinlock_client::Client::open("default").await?;
//! let ops = client.conversation("ops").await?;
//! let number = ops.send("the backup is done").await?.recorded().await?;
//! let mut messages = ops.messages().resume("my program");
//! let message = messages.next().await?;
//! println!("{number}, then {} by {:?}", message.text(), message.sender());
//! message.handled().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Data on disk: [`home`] locates it, and [`profile`] holds the identity and the pins. [`state`]
//! opens a database. There the [`outbox`] holds messages without an ack, and [`receipts`] holds the
//! links that reveal a changed record.
//!
//! Work with a server: [`enrol`] creates a profile. [`Client`] maintains a connection, sends the
//! outbox, follows conversations and sends requests. [`record`] verifies entries, [`transfer`]
//! moves files, and [`audit`] reads everything again.
//!
//! Imports run one way: [`model`], then the data on disk, [`record`], the driver, [`Client`],
//! [`audit`].

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

pub mod audit;
mod blocking;
mod client;
pub mod clock;
pub mod connector;
mod conversation;
mod delays;
mod disk;
mod driver;
pub mod enrol;
pub mod error;
mod event_router;
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
pub mod route;
mod session_log;
pub mod state;
pub mod transfer;
pub mod uploads;

pub use client::Client;
pub use conversation::{Conversation, Message, Messages, SentMessage};
pub use error::ClientError;
pub use model::{Event, Options};
pub use route::{Route, TransportChoice};
