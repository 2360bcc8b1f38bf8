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
mod administration;
mod appended;
mod bounds;
mod classic_keys;
pub mod conformance;
mod directory;
pub mod equal_cost;
mod error;
pub mod file_body;
mod files;
mod log;
mod order;
pub mod rights;
pub mod row_mac;
mod search;
pub mod sequencer;
mod store;
pub mod tokenizer;

pub use accounts::{
    Accounts, Holder, InviteState, InviteTerms, KNOWN_DEVICE_SOURCES, KNOWN_SOURCE_MS,
    KNOWN_SOURCES, ListedInvite, LoginMethod, LookedUp, NewDevice, PersonState, PreparedInvite,
    Registered, Registration, StoredCredential, StoredDevice, StoredPerson, UserRole,
};
pub use administration::{Act, ActEffects, Actor, Administered, Administration, RevokedInvite};
pub use appended::{Appended, Receipt};
pub use bounds::{Bound, Bounds};
pub use classic_keys::{AddedClassicKey, ClassicKeyStore, ListedClassicKey, StoredClassicKey};
pub use directory::{
    AUDIT, ConversationForm, Directory, Joined, LOBBY, OWN_COUNTED, RoomKind, StoredConversation,
};
pub use error::StoreError;
pub use files::{FileIndex, FileRef, FileUsage, LEAST_CHARGE};
pub use log::{
    EntryLog, EntryPage, Erased, NewEntry, Newest, Published, ReadLimit, StoredContent, StoredEntry,
};
pub use order::{AppendAnswer, AppendReply, Order};
pub use search::{EntrySearch, SLICE, SearchFrom, SearchResult};
pub use store::{Clock, Close, Store};

/// Key of the MACs over credential rows, derived from the OPAQUE setup by
/// [`twinlock_core::opaque::ServerSetup::row_key`].
///
/// A stolen database alone does not permit guessing. Replacing one user's record with another's is
/// detected.
pub use twinlock_core::keys::RowKey;
