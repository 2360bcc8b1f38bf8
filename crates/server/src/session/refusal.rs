//! The server's no, in the words of the wire.

use std::time::Duration;

use twinlock_core::id::BadName;
use twinlock_core::proto::{self, Why};
use twinlock_store::StoreError;

/// When a client whose entry could not be recorded is to come again.
pub(crate) const RETRY: Duration = Duration::from_secs(RETRY_SECONDS as u64);
const RETRY_SECONDS: u32 = 5;

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) why: Why,
    pub(crate) retry_seconds: u32,
}

impl From<Why> for Refused {
    fn from(why: Why) -> Self {
        Self { why, retry_seconds: 0 }
    }
}

impl From<Refused> for proto::Refusal {
    fn from(refused: Refused) -> Self {
        Self { why: refused.why.into(), retry_seconds: refused.retry_seconds }
    }
}

pub(crate) fn refuse<T>(why: Why) -> Result<T, Refused> {
    Err(why.into())
}

pub(crate) fn bad_name(_: BadName) -> Refused {
    Why::NameBad.into()
}

/// Entries were not recorded, whatever the reason: the client keeps them and comes again. A record
/// that is damaged in one place must not make it give up what others or a repair can still take.
pub(crate) fn not_recorded(error: &StoreError) -> Refused {
    match error {
        StoreError::OutOfOrder => tracing::debug!(%error, "not recorded"),
        error => tracing::error!(%error, "not recorded"),
    }
    Refused { why: Why::Storage, retry_seconds: RETRY_SECONDS }
}

/// What went wrong beneath the store is the operator's to read; the client learns that it is not
/// its fault, and whether it can come again.
pub(crate) fn storage(error: &StoreError) -> Refused {
    tracing::error!(%error, "the record");
    match error {
        StoreError::Damaged(_) => Why::Damaged.into(),
        _ => Refused { why: Why::Storage, retry_seconds: RETRY_SECONDS },
    }
}
