//! The client's side of Twinlock, as a library: it neither prints nor asks.
//!
//! What a client keeps on disk: [`home`] says where, [`profile`] who it is and whom it trusts.

mod disk;
pub mod home;
pub mod profile;
