//! Why a classic connection ended, and the log of its end.

use std::net::SocketAddr;
use std::time::Instant;

use twinlock_core::classic::Closed;
use twinlock_store::StoreError;

use super::line_stream::StreamLost;
use crate::env::Env;
use crate::refusal::Unrecorded;

/// Why a classic connection ended, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClassicEnd {
    #[error("closed by the peer")]
    Bye,
    #[error(transparent)]
    Lost(#[from] StreamLost),
    #[error("no message in time")]
    Late,
    #[error("silence")]
    Silence,
    #[error(transparent)]
    Closed(#[from] Closed),
    #[error("a message could not be decrypted")]
    NotOpened,
    #[error("its key was revoked")]
    Revoked,
    #[error("its user has left the conversation, or the key was revoked")]
    NotAMember,
    #[error("evicted before it authenticated: its connection slot was needed")]
    Wanted,
    #[error("{0}")]
    Record(#[from] StoreError),
    #[error("{0}")]
    NotRecorded(#[from] Unrecorded),
    #[error("the server is shutting down")]
    Shutdown,
}

impl ClassicEnd {
    /// The limit that closed the connection, by its setting or by what it bounds.
    fn limit(&self) -> Option<&'static str> {
        match self {
            Self::Late => Some("time to the first message"),
            Self::Silence => Some("time between messages"),
            Self::NotRecorded(unrecorded) => unrecorded.limit(),
            _ => None,
        }
    }
}

/// Logs a limit by its name, and a message that did not open as an error: a wrong key, or a change
/// in transit. Any peer can cause both at will, so these lines are throttled.
pub(super) fn log_end(env: &Env, peer: SocketAddr, ended: &ClassicEnd) {
    if let Some(limit) = ended.limit() {
        env.throttle.closed_by(limit, peer);
    }
    if matches!(ended, ClassicEnd::Closed(_) | ClassicEnd::NotOpened)
        && let Some(left_out) = env.throttle.pass("classic line not opened", Instant::now())
    {
        tracing::error!(%peer, %ended, left_out, "a message could not be decrypted");
    }
}
