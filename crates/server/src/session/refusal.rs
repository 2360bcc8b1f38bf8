//! The server's no, in the words of the wire.

use std::time::Duration;

use twinlock_core::id::BadName;
use twinlock_core::proto::{self, Limit, Why};
use twinlock_store::{Bound, StoreError};

use crate::limits::throttle::log_fault;

/// When a client whose entry could not be recorded is to come again.
pub(crate) const RETRY: Duration = Duration::from_secs(RETRY_SECONDS as u64);
const RETRY_SECONDS: u32 = 5;

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: Why,
    pub(crate) retry_seconds: u32,
    /// The limit that was reached, and its figure.
    pub(crate) limit: Limit,
    pub(crate) most: u64,
    /// The least role that may.
    pub(crate) role: proto::Role,
    /// A revocation that holds until a restart and is not recorded.
    pub(crate) barred: bool,
}

impl Refused {
    /// For a while.
    pub(crate) fn for_now(why: Why, retry_seconds: u32) -> Self {
        Self { retry_seconds, ..why.into() }
    }

    /// Names the limit that was reached.
    pub(crate) fn at(self, limit: Limit, most: impl TryInto<u64>) -> Self {
        Self { limit, most: most.try_into().unwrap_or(u64::MAX), ..self }
    }
}

impl From<Why> for Refused {
    fn from(why: Why) -> Self {
        let (limit, role) = (Limit::None, proto::Role::None);
        Self { why, retry_seconds: 0, limit, most: 0, role, barred: false }
    }
}

impl From<Refused> for proto::Refusal {
    fn from(refused: Refused) -> Self {
        Self {
            why: refused.why.into(),
            retry_seconds: refused.retry_seconds,
            limit: refused.limit.into(),
            most: refused.most,
            role: refused.role.into(),
            barred: refused.barred,
        }
    }
}

pub(crate) fn refuse<T>(why: Why) -> Result<T, Refused> {
    Err(why.into())
}

/// The request is larger than `limit` allows, which is `most` bytes.
pub(crate) fn too_large<T>(limit: Limit, most: usize) -> Result<T, Refused> {
    Err(Refused::from(Why::TooLarge).at(limit, most))
}

/// The request needs this role at least.
pub(crate) fn needs<T>(role: proto::Role) -> Result<T, Refused> {
    Err(Refused { role, ..Why::NotAllowed.into() })
}

pub(crate) fn bad_name(_: BadName) -> Refused {
    Why::NameBad.into()
}

/// Entries were not recorded, whatever the reason: the client keeps them and comes again. A record
/// that is damaged in one place must not make it give up what others or a repair can still take.
pub(crate) fn not_recorded(error: &Unrecorded) -> Refused {
    match error {
        Unrecorded::Store(StoreError::OutOfOrder) => tracing::debug!(%error, "not recorded"),
        Unrecorded::Store(error) => log_fault("not recorded", error),
        Unrecorded::Limit(refused) | Unrecorded::Behind(refused) => {
            tracing::debug!(%error, "not recorded");
            return *refused;
        }
    }
    Refused::for_now(Why::Storage, RETRY_SECONDS)
}

/// Why entries were not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unrecorded {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// They were not handed over.
    #[error("the limit {} ({}) was reached", text_setting(.0.limit).unwrap_or("of text"), .0.most)]
    Limit(Refused),
    /// An earlier append of the same line was refused.
    #[error("an earlier append of the same line was refused")]
    Behind(Refused),
}

impl Unrecorded {
    /// The name of the setting whose limit was reached.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Store(_) => None,
            Self::Limit(refused) | Self::Behind(refused) => text_setting(refused.limit),
        }
    }
}

/// The setting of a limit on text.
fn text_setting(limit: Limit) -> Option<&'static str> {
    match limit {
        Limit::TextPerDay => Some("text-per-day-mib"),
        Limit::TextReserve => Some("text-reserve-mib"),
        _ => None,
    }
}

/// A bound, as the wire names it.
fn limit_of(bound: Bound) -> Limit {
    match bound {
        Bound::Rooms => Limit::RoomsPerUser,
        Bound::Memberships => Limit::MembershipsPerUser,
        Bound::Invites => Limit::InvitesPerUser,
        Bound::Devices => Limit::DevicesPerUser,
        Bound::ClassicKeys => Limit::ClassicKeysPerUser,
    }
}

/// What went wrong beneath the store is the operator's to read; the client learns that it is not
/// its fault, and whether it can come again.
pub(crate) fn storage(error: &StoreError) -> Refused {
    if let StoreError::TooMany(bound, most) = error {
        return Refused::from(Why::Limit).at(limit_of(*bound), *most);
    }
    if let StoreError::Damaged(_) = error {
        log_fault("a request found the record damaged", error);
        return Why::Damaged.into();
    }
    log_fault("a request failed", error);
    Refused::for_now(Why::Storage, RETRY_SECONDS)
}
