//! The client's side of Twinlock, as a library: it neither prints nor asks.
//!
//! What a client keeps on disk: [`home`] says where, [`profile`] who it is and whom it trusts,
//! [`state`] opens the database in which the [`outbox`] holds what is not recorded yet and
//! [`receipts`] holds the links by which a changed record is found out.
//!
//! What it does with a server: [`enrol`] makes a profile, [`client`] keeps a line up, sends the
//! outbox, follows and asks, [`record`] checks what is read.

pub mod client;
mod delays;
mod dial;
mod disk;
mod driver;
pub mod enrol;
pub mod error;
pub mod home;
pub mod load;
pub mod outbox;
pub mod profile;
pub mod receipts;
pub mod record;
mod refusal;
mod register;
mod session_log;
pub mod state;
mod step_up;
pub mod transfer;
pub mod uploads;

pub use client::{Client, Event, Options};
pub use error::ClientError;
