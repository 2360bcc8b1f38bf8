//! The contract of the record, and what every store of it shares.
//!
//! [`Store`] is everything that the server requires of its record, as one trait for each kind of
//! data. The contract assumes neither that this process is the only writer nor that anything is
//! cached, so that several servers may share one record later. Every implementation passes
//! [`conformance`].
//!
//! The store knows nothing of connections, sessions or the protocol. It never sees a password, a
//! device secret or the OPAQUE setup, only the row key that is derived from the setup.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

mod accounts;
mod bounds;
mod classic_keys;
pub mod conformance;
mod directory;
pub mod equal_cost;
mod error;
pub mod file_body;
mod files;
mod log;
pub mod row_mac;
mod search;
pub mod sequencer;
mod store;
pub mod tokenizer;

pub use accounts::{
    Accounts, Credential, Device, Holder, InviteTerms, KNOWN_DEVICE_SOURCES, KNOWN_SOURCE_MS,
    KNOWN_SOURCES, LoginMethod, LookedUp, NewDevice, NewInvite, Person, Registered, Registration,
    Role,
};
pub use bounds::{Bound, Bounds};
pub use classic_keys::{AddedClassicKey, ClassicKey, ClassicKeys, ListedClassicKey};
pub use directory::{Conversation, Directory, Form, Joined, LOBBY, OWN_COUNTED};
pub use error::StoreError;
pub use files::{FileIndex, FileRef, LEAST_CHARGE, Stored};
pub use log::{
    Answer, Appended, Content, Entry, EntryLog, Erased, Limit, NewEntry, Newest, Order, Page,
    Published, Receipt,
};
pub use search::{EntrySearch, Found, IndexPosition, PrefixWords, SLICE, SearchFrom};
pub use store::{Clock, Close, Store};

/// Key of the MACs over credential rows, derived from the OPAQUE setup by
/// [`twinlock_core::opaque::ServerSetup::row_key`].
///
/// A stolen database alone does not permit guessing. Replacing one user's record with another's is
/// detected.
pub use twinlock_core::keys::RowKey;
