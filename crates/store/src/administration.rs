//! Acts of power: what owners, admins and the operator do to other people.

use std::fmt;

use async_trait::async_trait;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name, Sender};

use crate::accounts::UserRole;
use crate::error::StoreError;

/// Acts of power, each with an entry in the audit.
///
/// The audit is a room whose members are the owners and to which only the server writes. It is
/// created with the first act.
#[async_trait]
pub trait Administration: Send + Sync + 'static {
    /// Performs an act, if [`rights`](crate::rights) allow it.
    ///
    /// One transaction reads the rows of actor and person, judges the act, changes the rows and
    /// records the entry of the audit. Of concurrent acts that would leave no owner, one is
    /// refused. After a removal or suspension is on disk, no entry of this person is recorded any
    /// more, also none that was handed over before.
    async fn administer(&self, by: Actor, act: Act) -> Result<Administered, StoreError>;

    /// Revokes an unused invite that the actor can see with
    /// [`invites`](crate::Accounts::invites), with an entry in the audit.
    async fn revoke_invite(&self, by: Actor, id: InviteId) -> Result<RevokedInvite, StoreError>;
}

/// What became of the revocation of an invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedInvite {
    /// It is on disk, with its entry in the audit.
    Done(ActEffects),
    /// It was revoked before; nothing was recorded.
    Unchanged,
    /// It was used before, or has expired.
    Gone,
    /// The actor can see no such invite.
    NotFound,
}

/// Who performs an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A user, on one of its devices.
    Person {
        /// The user.
        user: Name,
        /// The device.
        device: DeviceId,
    },
    /// The operator, on the server's machine.
    Operator {
        /// The user id of the operator's process.
        uid: u32,
    },
}

/// As the audit names it: as the sender of an entry.
impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person { user, device } => Sender::new(user, Some(device)).fmt(f),
            Self::Operator { uid } => write!(f, "operator (uid {uid})"),
        }
    }
}

/// An act on one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Changes the role. Invites that the person has made and may not make any more are revoked.
    SetRole {
        /// The person.
        user: Name,
        /// The new role.
        role: UserRole,
    },
    /// Ends all sessions, and accepts no credential, entry or classic key of the person until it is
    /// restored. Revokes the open invites that the person has made.
    Suspend {
        /// The person.
        user: Name,
    },
    /// Ends a suspension.
    Restore {
        /// The person.
        user: Name,
    },
    /// Ends all sessions, and revokes password, devices, classic keys and open invites for good. The
    /// person leaves all rooms. The name stays taken, and the entries stay.
    Remove {
        /// The person.
        user: Name,
    },
    /// Revokes a device of another person, whose sessions on it end.
    RevokeDevice {
        /// The person.
        user: Name,
        /// The device.
        device: DeviceId,
    },
}

impl Act {
    /// The person that the act is on.
    #[must_use]
    pub fn user(&self) -> &Name {
        match self {
            Self::SetRole { user, .. }
            | Self::Suspend { user }
            | Self::Restore { user }
            | Self::Remove { user }
            | Self::RevokeDevice { user, .. } => user,
        }
    }

    /// Whether all sessions of the person end with it.
    #[must_use]
    pub fn shuts_out(&self) -> bool {
        matches!(self, Self::Suspend { .. } | Self::Remove { .. })
    }

    /// Whether it takes access away, and so has to hold even if it cannot be written.
    #[must_use]
    pub fn revokes(&self) -> bool {
        self.shuts_out() || matches!(self, Self::RevokeDevice { .. })
    }
}

/// What became of an act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Administered {
    /// It is on disk, with its entry in the audit.
    Done(ActEffects),
    /// It is so already; nothing was recorded.
    Unchanged,
    /// The person or the device does not exist, or was removed.
    NotFound,
    /// The actor may not do it. The role that may, if there is one.
    NotAllowed(Option<UserRole>),
    /// The server would have no owner.
    LastOwner,
}

/// What an act has changed that sessions must learn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActEffects {
    /// Rooms that the person has left, other than the audit.
    pub left: Vec<ConversationId>,
    /// The audit, and the people who have entered or left it.
    pub audit: Option<(ConversationId, Vec<Name>)>,
}
