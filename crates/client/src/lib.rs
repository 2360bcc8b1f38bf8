//! The client side of Twinlock as a library, without output or prompts.
//!
//! A program opens a profile, which `twinlock join` or [`Client::join`] has made, and connects in the
//! background:
//!
//! ```
//! # use twinlock_client::home::Home;
//! # use twinlock_client::{Client, ClientError};
//! # #[tokio::main]
//! # async fn main() -> Result<(), ClientError> {
//! # let server = twinlock_testing::TestServer::start().await;
//! # let link = server.server().owner_invite().unwrap().to_link();
//! # let (home, link) = (Home::at(&server.data().join("../home")), link.as_str());
//! let client = Client::join_in(&home, "default", link, "ada").await?;
//! let lobby = client.conversation("lobby").await?;
//! let mut messages = lobby.messages().resume("my program");
//!
//! let number = lobby.send("the backup is done").await?.recorded().await?;
//!
//! let message = messages.next().await?;
//! assert_eq!((message.number(), message.text()), (number, "the backup is done"));
//! assert!(message.is_own());
//! message.handled().await?;
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Files, and messages without a connection:
//!
//! ```
//! # use twinlock_client::Client;
//! # use twinlock_client::home::Home;
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = twinlock_testing::TestServer::start().await;
//! # let link = server.server().owner_invite().unwrap().to_link();
//! # let dir = server.data().parent().unwrap().to_owned();
//! # let home = Home::at(&dir.join("home"));
//! # Client::join_in(&home, "default", &link, "ada").await?.close().await;
//! # std::fs::write(dir.join("report.txt"), "all is well")?;
//! let client = Client::open_in(&home, "default").await?;
//! let lobby = client.conversation("lobby").await?;
//! let mut messages = lobby.messages();
//!
//! lobby.send_file(dir.join("report.txt")).await?.recorded().await?;
//! let message = messages.next().await?;
//! assert_eq!(message.file().map(|file| file.size), Some(11));
//! # std::fs::create_dir(dir.join("reports"))?;
//! let path = message.save_file(dir.join("reports")).await?;
//! assert_eq!(std::fs::read_to_string(path)?, "all is well");
//!
//! // On this machine's disk now, and recorded once there is a connection.
//! let queued = client.send("lobby", "good night").await?;
//! assert_eq!(queued.recorded().await?, 2);
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
pub mod blocking;
mod client;
pub mod clock;
mod connection_events;
pub mod connector;
mod conversation;
mod delays;
mod delivery;
mod delivery_queue;
pub mod directory;
mod disk;
pub mod doctor;
mod driver;
pub mod enrol;
pub mod error;
mod event_router;
pub mod home;
mod inbox;
mod limits;
pub mod model;
pub mod outbox;
pub mod profile;
mod race;
pub mod ready;
pub mod receipts;
pub mod record;
mod refusal;
mod register;
mod registration_client;
pub mod request_connection;
pub mod route;
mod session_log;
mod shared_transfers;
pub mod state;
mod subscription;
pub mod target;
pub mod transfer;
pub mod uploads;
pub mod via;

pub use client::Client;
pub use connection_events::{ConnectionEvent, ConnectionEvents};
pub use conversation::{Conversation, Message, Messages, SentMessage};
pub use delivery::{Deliveries, DeliveryEvent};
pub use directory::{ConversationInfo, ConversationKind, PersonInfo};
pub use error::ClientError;
pub use inbox::{Inbox, InboxEvent, InboxOptions, InboxStart};
pub use model::{Event, Options};
pub use route::{Route, TransportChoice};
pub use shared_transfers::SentFile;
pub use target::Target;
