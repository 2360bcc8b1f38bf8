//! Refusals of requests, and their mapping to the protocol.

use std::time::Duration;

use twinlock_core::id::BadName;
use twinlock_core::proto::{self, Limit, RefusalReason};
use twinlock_store::{Bound, StoreError, UserRole};

use crate::convert;
use crate::limits::throttle::log_fault;

/// When a client should retry an entry that could not be recorded.
pub(crate) const RETRY: Duration = Duration::from_secs(RETRY_SECONDS as u64);
const RETRY_SECONDS: u32 = 5;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestRefusal {
    pub(crate) why: RefusalReason,
    pub(crate) retry_seconds: u32,
    /// The limit that was reached, and its value.
    pub(crate) limit: Limit,
    pub(crate) most: u64,
    /// The lowest role that is allowed.
    pub(crate) role: proto::Role,
    /// The revocation holds until a restart and is not recorded.
    pub(crate) barred: bool,
}

impl RequestRefusal {
    /// A temporary refusal.
    pub(crate) fn for_now(why: RefusalReason, retry_seconds: u32) -> Self {
        Self { retry_seconds, ..why.into() }
    }

    /// Names the limit that was reached.
    pub(crate) fn at(self, limit: Limit, most: impl TryInto<u64>) -> Self {
        Self { limit, most: most.try_into().unwrap_or(u64::MAX), ..self }
    }
}

impl From<RefusalReason> for RequestRefusal {
    fn from(why: RefusalReason) -> Self {
        let (limit, role) = (Limit::None, proto::Role::None);
        Self { why, retry_seconds: 0, limit, most: 0, role, barred: false }
    }
}

impl From<RequestRefusal> for proto::Refusal {
    fn from(refused: RequestRefusal) -> Self {
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

pub(crate) fn refuse<T>(why: RefusalReason) -> Result<T, RequestRefusal> {
    Err(why.into())
}

/// Refuses a request that exceeds `limit`, which is `most` bytes.
pub(crate) fn too_large<T>(limit: Limit, most: usize) -> Result<T, RequestRefusal> {
    Err(RequestRefusal::from(RefusalReason::TooLarge).at(limit, most))
}

/// Refuses a request that needs this role, or one with more rights.
pub(crate) fn needs<T>(role: UserRole) -> Result<T, RequestRefusal> {
    let role = convert::role(role);
    Err(RequestRefusal { role, ..RefusalReason::NotAllowed.into() })
}

pub(crate) fn bad_name(_: BadName) -> RequestRefusal {
    RefusalReason::NameBad.into()
}

/// The refusal for entries that were not recorded. The client keeps them and retries, whatever the
/// reason: damage in one place of the record must not make it give up entries that other
/// conversations or a repaired record can still take.
pub(crate) fn not_recorded(error: &Unrecorded) -> RequestRefusal {
    match error {
        Unrecorded::Store(StoreError::OutOfOrder) => tracing::debug!(%error, "not recorded"),
        Unrecorded::Store(error) => log_fault("not recorded", error),
        Unrecorded::Limit(refused) | Unrecorded::Behind(refused) => {
            tracing::debug!(%error, "not recorded");
            return *refused;
        }
    }
    RequestRefusal::for_now(RefusalReason::Storage, RETRY_SECONDS)
}

/// Why entries were not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unrecorded {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// They were not handed over because of a limit.
    #[error("the limit {} ({}) was reached", text_setting(.0.limit).unwrap_or("of text"), .0.most)]
    Limit(RequestRefusal),
    /// An earlier append of the same connection was refused.
    #[error("an earlier append of this connection was refused")]
    Behind(RequestRefusal),
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

/// The protocol's name of a bound.
fn limit_of(bound: Bound) -> Limit {
    match bound {
        Bound::Rooms => Limit::RoomsPerUser,
        Bound::Memberships => Limit::MembershipsPerUser,
        Bound::Invites => Limit::InvitesPerUser,
        Bound::Devices => Limit::DevicesPerUser,
        Bound::ClassicKeys => Limit::ClassicKeysPerUser,
    }
}

/// Maps an error of the store. The log has the details; the client learns that the fault is the
/// server's, and whether it can retry.
pub(crate) fn storage(error: &StoreError) -> RequestRefusal {
    if let StoreError::TooMany(bound, most) = error {
        return RequestRefusal::from(RefusalReason::Limit).at(limit_of(*bound), *most);
    }
    if let StoreError::Damaged(_) = error {
        log_fault("a request found the record damaged", error);
        return RefusalReason::Damaged.into();
    }
    log_fault("a request failed", error);
    RequestRefusal::for_now(RefusalReason::Storage, RETRY_SECONDS)
}
