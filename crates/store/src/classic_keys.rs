//! The keys of classic connections and of the origin bridge.

use async_trait::async_trait;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{ConversationId, Name};

use crate::error::StoreError;

/// The keys of classic connections and of the origin bridge.
#[async_trait]
pub trait ClassicKeyStore: Send + Sync + 'static {
    /// Adds a classic key.
    ///
    /// One transaction checks that the user is a member of the conversation and that the name is
    /// free, or belongs to a revoked key of the same user. A form of the origin bridge may have one
    /// key only, because the bridge's messages do not name their key. [`StoreError::TooMany`] at
    /// [`Bound::ClassicKeys`](crate::Bound::ClassicKeys).
    async fn add_classic_key(&self, key: StoredClassicKey) -> Result<AddedClassicKey, StoreError>;

    /// The usable key of this name. `None`: it is unknown or revoked.
    ///
    /// A hit and every kind of miss cost the same reads. A row whose MAC does not verify is a miss.
    async fn classic_key(&self, name: &Name) -> Result<Option<StoredClassicKey>, StoreError>;

    /// The usable key of this form of the origin bridge.
    async fn classic_key_of(
        &self,
        form: ClassicScheme,
    ) -> Result<Option<StoredClassicKey>, StoreError>;

    /// Usable keys of one user or of all, with names greater than `after`, in ascending order, at
    /// most `limit`.
    async fn classic_keys(
        &self,
        of: Option<&Name>,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<ListedClassicKey>, StoreError>;

    /// Revokes a key. `false`: there is no usable key of this name.
    async fn revoke_classic_key(&self, name: &Name) -> Result<bool, StoreError>;
}

/// A key of classic connections or of the origin bridge.
///
/// The key itself is not stored. It is derived from the server's setup, the name and the salt, or
/// it is sealed under a key that is derived from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClassicKey {
    /// The key's name, in the protocol and in the record.
    pub name: Name,
    /// The user who owns it.
    pub user: Name,
    /// The only conversation that it may append to.
    pub conversation: ConversationId,
    /// The message format that it is for.
    pub form: ClassicScheme,
    /// Input of the key's derivation, drawn by the server. Reveals nothing without the setup.
    pub salt: [u8; 32],
    /// An imported key, sealed with [`twinlock_core::keys::ClassicRoot::seal_imported`]; `None`:
    /// the key is derived.
    pub sealed: Option<[u8; 32]>,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
}

/// The result of adding a classic key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedClassicKey {
    /// The key can be used.
    Added,
    /// A key of this name exists.
    NameTaken,
    /// The origin bridge has a key of this form already.
    FormTaken,
    /// The user does not exist or is not a member of the conversation.
    NotAMember,
}

/// A classic key in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedClassicKey {
    /// The key.
    pub key: StoredClassicKey,
    /// The room's name, if the conversation is a room.
    pub room: Option<Name>,
}
