//! Headless view models of a chat: what a line chat, a full-screen chat and a web page show.
//!
//! The models keep what a user sees and nothing of how it looks. They do no I/O, read no clock and
//! print nothing. The caller passes events of [`twinlock_client`] and the time, and renders the
//! models and the returned changes.
//!
//! [`ConversationList`] has rooms and people with unread counts and mentions. [`Composer`] has the
//! user's own messages with the state of each. [`ActivityDigest`] collects new entries of
//! conversations that are not on the screen.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod composer;
mod conversations;
mod digest;
mod mentions;

pub use composer::{Composer, MessageState, OwnMessage, Preview, Rejection, Settlement};
pub use conversations::{
    Arrival, ConversationKind, ConversationList, ConversationView, Visibility,
};
pub use digest::ActivityDigest;
pub use mentions::mentions;
