//! Why a session ends, and the end of its connection.

use tokio::io::{AsyncRead, AsyncWrite};
use twinlock_core::frame::CloseCode;
use twinlock_core::session::SendError;
use twinlock_store::StoreError;
use twinlock_transport::connection::{Connection, ConnectionError};

use super::super::request_queue::MalformedRequests;
use super::super::transfers::TransferViolation;
use crate::refusal::storage;

/// Why the loop ended.
pub(super) enum SessionEnd {
    /// Send this code and close.
    Close(CloseCode),
    /// The connection can send nothing more, or has sent its last frame.
    Connection(ConnectionError),
    /// The peer has closed the session.
    Bye(CloseCode),
}

impl From<ConnectionError> for SessionEnd {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<MalformedRequests> for SessionEnd {
    fn from(_: MalformedRequests) -> Self {
        Self::Close(CloseCode::Protocol)
    }
}

impl From<TransferViolation> for SessionEnd {
    fn from(_: TransferViolation) -> Self {
        Self::Close(CloseCode::Protocol)
    }
}

/// An item does not fit in a frame, which must not happen to any answer; or the session has ended,
/// which is detected before.
impl From<SendError> for SessionEnd {
    fn from(_: SendError) -> Self {
        Self::Close(CloseCode::Internal)
    }
}

/// The record cannot be read, so the session cannot send what it owes the client.
impl From<StoreError> for SessionEnd {
    fn from(error: StoreError) -> Self {
        storage(&error);
        Self::Close(CloseCode::Internal)
    }
}

/// Ends a connection, with a CLOSE if one is due.
pub(super) async fn send_close<S: AsyncRead + AsyncWrite + Unpin>(
    connection: Connection<S>,
    end: SessionEnd,
) {
    match end {
        SessionEnd::Close(code) => connection.close(code).await,
        SessionEnd::Connection(ConnectionError::Cut(_)) => {}
        SessionEnd::Bye(_) | SessionEnd::Connection(_) => connection.finish().await,
    }
}
