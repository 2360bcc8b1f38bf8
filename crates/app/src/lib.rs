//! Headless view models of a chat: what a line chat, a full-screen chat and a web page show.
//!
//! The models keep what a user sees and nothing of how it looks. They do no I/O, read no clock and
//! print nothing. [`App`] brings them together: it takes [`Intent`]s, events of
//! [`twinlock_client`] and the time, and returns [`Change`]s to render and [`Effect`]s to perform.
//! Only [`perform()`] and [`load_roster`] use a client.
//!
//! [`ConversationList`] has rooms and people with unread counts and mentions. [`Timeline`] has the
//! entries of a conversation. [`Composer`] has the user's own messages with the state of each.
//! [`TransferList`] has the files under way. [`ConnectionView`] has the state of the connection.
//! [`ActivityDigest`] collects new entries of conversations that are not shown.
//!
//! ```
//! use std::time::Instant;
//!
//! use twinlock_app::{App, AppOptions, ClientEffect, Effect, Intent};
//! use twinlock_core::id::Name;
//!
//! let options = AppOptions { is_interactive: true, backlog: 20, timeline_entries: 500 };
//! let ada = Name::new("ada").expect("a valid name");
//! let mut app = App::new(ada, "lobby".to_owned(), options, Instant::now());
//! app.handle_intent(Intent::Send { text: "hello".to_owned() }).expect("a short text");
//! // The caller performs effects, and returns their outcomes.
//! let Some(Effect::Client(effect)) = app.poll_effect() else { panic!("no effect") };
//! assert!(matches!(effect, ClientEffect::Enqueue { target, .. } if target == "lobby"));
//! ```

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod app;
mod change;
mod composer;
mod connection;
mod conversations;
mod digest;
mod effect;
mod events;
#[cfg(test)]
mod fixtures;
mod intent;
mod mentions;
mod outcomes;
mod perform;
#[cfg(test)]
mod tests;
mod timeline;
mod transfers;

pub use app::{App, AppOptions};
pub use change::Change;
pub use composer::{Composer, MessageState, OwnMessage, Preview, Rejection, Settlement};
pub use connection::{ConnectionState, ConnectionView, Reconnection};
pub use conversations::{Arrival, ConversationList, ConversationView, Visibility};
pub use digest::ActivityDigest;
pub use effect::{ClientEffect, Effect, EffectOutcome, FileEffect, HistoryPosition};
pub use intent::{Intent, IntentError};
pub use mentions::mentions;
pub use perform::{Roster, load_roster, perform};
pub use timeline::{Timeline, TimelineItem};
pub use transfers::{TransferChange, TransferDirection, TransferList, TransferView};
