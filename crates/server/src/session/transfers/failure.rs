//! What ends a session because of its transfers, and the refusals that failures of files become.

use twinlock_core::proto::RefusalReason;

use crate::files::{Denied, FilesError};
use crate::limits::throttle::log_fault;
use crate::refusal::{RequestRefusal, storage};

/// A BULK frame or an acknowledgement that violates the transfer's terms: CLOSE 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransferViolation;

/// Maps an error of the file store to a refusal; the details go to the log.
pub(super) fn refusal_of(error: FilesError) -> RequestRefusal {
    match error {
        FilesError::Hash => RefusalReason::Hash.into(),
        FilesError::Taken => RequestRefusal::for_now(RefusalReason::Busy, 1),
        FilesError::Record(error) => storage(&error),
        FilesError::Damaged(_) => {
            log_fault("a file is damaged", error);
            RefusalReason::Damaged.into()
        }
        FilesError::Full | FilesError::NoInodes | FilesError::Io { .. } => {
            log_fault("a file was not stored or read", error);
            RequestRefusal::for_now(RefusalReason::Storage, 5)
        }
    }
}

impl From<Denied> for RequestRefusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Refused(why) => why.into(),
            Denied::OverLimit(RefusalReason::Storage, limit, most) => {
                Self::for_now(RefusalReason::Storage, 5).at(limit, most)
            }
            Denied::OverLimit(why, limit, most) => Self::from(why).at(limit, most),
            Denied::Failed(error) => refusal_of(error),
        }
    }
}
