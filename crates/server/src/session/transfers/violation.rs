//! What ends a session because of its transfers.

/// A BULK frame or an acknowledgement that violates what was agreed: CLOSE 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TransferViolation;
