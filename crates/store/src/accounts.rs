//! People, their credentials, and the sources of their logins.

use async_trait::async_trait;
use twinlock_core::id::{CredentialId, DeviceId, InviteId, Name};

use crate::error::StoreError;

/// Maximum number of login sources kept for a user.
pub const KNOWN_SOURCES: u32 = 16;

/// Maximum number of them that only device logins came from.
pub const KNOWN_DEVICE_SOURCES: u32 = 4;

/// Time for which a login source stays known, ms: 30 days.
pub const KNOWN_SOURCE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// People, devices, invites, credentials and login sources.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// Looks up the usable credential of `id`: one that exists and is not revoked, used or expired
    /// at `now_ms`, and whose user is neither suspended nor removed.
    ///
    /// A hit and every kind of miss cost the same reads and return the same amount of data. A row
    /// whose MAC does not verify is a miss.
    async fn look_up(&self, id: &CredentialId, now_ms: u64) -> Result<LookedUp, StoreError>;

    /// As [`Self::look_up`], for callers that need not hide whether the credential is usable.
    async fn credential(
        &self,
        id: &CredentialId,
        now_ms: u64,
    ) -> Result<Option<StoredCredential>, StoreError> {
        Ok(self.look_up(id, now_ms).await?.into_credential())
    }

    /// Adds an invite. `false`: its creator may not invite anybody as this role.
    /// [`StoreError::TooMany`] at [`Bound::Invites`](crate::Bound::Invites) of its creator.
    async fn add_invite(&self, invite: PreparedInvite) -> Result<bool, StoreError>;

    /// The invites that `user` has made, and those of others that its role could have made, with ids
    /// greater than `after`, in ascending order, at most `limit`. Empty for a role that may not invite.
    async fn invites(
        &self,
        user: &Name,
        after: Option<InviteId>,
        limit: usize,
    ) -> Result<Vec<ListedInvite>, StoreError>;

    /// Registers a user with an invite.
    ///
    /// One transaction checks that the invite is unused, unexpired at `now_ms` and valid for this
    /// name, and that the name is free. It then creates user, password and device, and adds the
    /// user to the lobby, and an owner to the [audit](crate::Administration). Of concurrent
    /// registrations with one invite or one name, one succeeds.
    async fn register(
        &self,
        registration: Registration,
        now_ms: u64,
    ) -> Result<Registered, StoreError>;

    /// Adds a device of an active user. `false`: it does not exist or is not active. [`StoreError::TooMany`]
    /// at [`Bound::Devices`](crate::Bound::Devices).
    async fn add_device(
        &self,
        user: &Name,
        device: NewDevice,
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Replaces the password record of an active user. `false`: it does not exist or is not active.
    async fn set_password(
        &self,
        user: &Name,
        record: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// The devices of a user that are not revoked, oldest first.
    async fn devices(&self, user: &Name) -> Result<Vec<StoredDevice>, StoreError>;

    /// Revokes a device of this user. `false`: the user has no such device.
    async fn revoke_device(&self, user: &Name, device: &DeviceId) -> Result<bool, StoreError>;

    /// Notes a login of a device at `now_ms`. Written asynchronously, without a guarantee.
    async fn touch_device(&self, device: &DeviceId, now_ms: u64) -> Result<(), StoreError>;

    /// Whether `user` has logged in from `source` (any bytes that name an address prefix) within
    /// [`KNOWN_SOURCE_MS`]. A hit, a miss and an unknown name cost the same reads.
    async fn is_known_source(
        &self,
        user: &Name,
        source: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError>;

    /// Notes a login of `user` from `source` at `now_ms`. Written asynchronously, without a
    /// guarantee.
    ///
    /// Keeps at most [`KNOWN_SOURCES`] for a user, as keyed hashes, and ignores unknown names. A
    /// password login replaces the oldest source of device logins, or else the oldest source. A
    /// device login renews a source or adds one, up to [`KNOWN_DEVICE_SOURCES`], and replaces none.
    async fn note_source(
        &self,
        user: &Name,
        source: &[u8],
        method: LoginMethod,
        now_ms: u64,
    ) -> Result<(), StoreError>;

    /// Removes all login sources of `user`, and returns their number.
    async fn forget_sources(&self, user: &Name) -> Result<u64, StoreError>;

    /// One user, also a suspended or removed one.
    async fn person(&self, user: &Name) -> Result<Option<StoredPerson>, StoreError>;

    /// Users with names greater than `after`, in ascending order, at most `limit`. Removed users are
    /// not among them.
    async fn people(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<StoredPerson>, StoreError>;
}

/// The data that a login needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCredential {
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What the credential belongs to.
    pub holder: Holder,
}

/// A credential, or a stand-in of the same size.
///
/// Data from another thread takes longer to read and to free than `None` would. Without the
/// stand-in, this difference would reveal a miss.
#[derive(Debug)]
pub struct LookedUp {
    pub(crate) credential: StoredCredential,
    usable: bool,
}

impl LookedUp {
    /// A credential, or a stand-in that is not `usable`. For stores.
    #[must_use]
    pub fn new(credential: StoredCredential, usable: bool) -> Self {
        Self { credential, usable }
    }

    /// The `N` bytes of a usable credential's OPAQUE record. A stand-in's record is read as well,
    /// for equal timing.
    #[must_use]
    pub fn record<const N: usize>(&self) -> Option<[u8; N]> {
        let record = <[u8; N]>::try_from(&*self.credential.record);
        std::hint::black_box(record).ok().filter(|_| self.usable)
    }

    /// The credential, if it is usable.
    #[must_use]
    pub fn into_credential(self) -> Option<StoredCredential> {
        self.usable.then_some(self.credential)
    }
}

/// The owner of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user, by password.
    User(StoredPerson),
    /// A device of a user.
    Device(StoredPerson, DeviceId),
    /// An invite.
    Invite(InviteTerms),
}

/// What an invite permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteTerms {
    /// Role of the user that it registers.
    pub role: UserRole,
    /// The only name it can register; `None`: any.
    pub user: Option<Name>,
    /// Expiry, ms since 1970 UTC.
    pub expires_ms: u64,
}

/// An invite to be added.
#[derive(Debug, Clone)]
pub struct PreparedInvite {
    /// Random, drawn by the server.
    pub id: InviteId,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
    /// What the invite permits.
    pub terms: InviteTerms,
    /// The user who created it; `None`: the server, on its first start.
    pub made_by: Option<Name>,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
}

/// An invite in a list, without its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedInvite {
    /// Its id.
    pub id: InviteId,
    /// What it permits.
    pub terms: InviteTerms,
    /// The user who created it; `None`: the server, on its first start.
    pub made_by: Option<Name>,
    /// Time of creation, ms since 1970 UTC.
    pub created_ms: u64,
    /// Whether it was used or revoked. One that was not may have expired.
    pub state: InviteState,
}

/// What has become of an invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InviteState {
    /// Nothing yet.
    Unused,
    /// This user has registered with it.
    Used(Name),
    /// It was revoked.
    Revoked,
}

/// The registration of a user with an invite.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The invite.
    pub invite: InviteId,
    /// The new user's name.
    pub user: Name,
    /// The password's OPAQUE record, 192 bytes, if the user has one.
    pub password: Option<Vec<u8>>,
    /// The first device.
    pub device: Option<NewDevice>,
}

/// A device to be enrolled.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Random, drawn by the server.
    pub id: DeviceId,
    /// The user's name for it.
    pub label: String,
    /// The OPAQUE record, 192 bytes.
    pub record: Vec<u8>,
}

/// The result of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The user was created.
    Done(StoredPerson),
    /// The invite is used, expired, revoked or unknown.
    InviteGone,
    /// The invite is for another name.
    NotThisName,
    /// A user of that name exists.
    NameTaken,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPerson {
    /// The name.
    pub user: Name,
    /// The user's permissions.
    pub role: UserRole,
    /// Whether the user can log in with a password.
    pub password: bool,
    /// Time of registration, ms since 1970 UTC.
    pub created_ms: u64,
    /// Whether the user can log in at all.
    pub state: PersonState,
}

impl StoredPerson {
    /// Whether the user is neither suspended nor removed.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == PersonState::Active
    }
}

/// A user's role. Roles have no order: [`rights`](crate::rights) has what each of them may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserRole {
    /// Sends messages, and makes and joins rooms.
    Member,
    /// In addition invites people and manages members.
    Admin,
    /// In addition manages everybody, and reads the audit.
    Owner,
}

impl UserRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];

    /// The role in messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// Whether a user's credentials and entries are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PersonState {
    /// They are.
    #[default]
    Active,
    /// They are not, until the user is restored.
    Suspended,
    /// They are not, and never will be. The name stays taken.
    Removed,
}

/// How a user logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginMethod {
    /// With the password.
    Password,
    /// With the secret of a device, which may be stolen.
    Device,
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDevice {
    /// The id of its credential.
    pub id: DeviceId,
    /// The user's name for it.
    pub label: String,
    /// Time of enrolment, ms since 1970 UTC.
    pub created_ms: u64,
    /// Approximate time of its last login, ms since 1970 UTC.
    pub seen_ms: u64,
}
