//! The client's side of Twinlock, as a library: it neither prints nor asks.
//!
//! What a client keeps on disk: [`home`] says where, [`profile`] who it is and whom it trusts,
//! [`state`] opens the database in which the [`outbox`] holds what is not recorded yet and
//! [`receipts`] holds the links by which a changed record is found out.

mod disk;
pub mod home;
pub mod outbox;
pub mod profile;
pub mod receipts;
pub mod state;
