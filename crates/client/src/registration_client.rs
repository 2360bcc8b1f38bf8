//! A session for a registration: one request at a time, with a timeout.

use std::time::Duration;

use tokio::time::timeout;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::{RefusalReason, answer::Result as Answered, request::Op};
use twinlock_transport::connection::Connection;

use crate::connector::ClientStream;
use crate::error::{ClientError, closed};
use crate::register::Ask;
use crate::request_connection::RequestConnection;

/// Timeout for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A session by an invite, or by the password.
pub(crate) struct RegistrationClient {
    requests: RequestConnection<()>,
    by_invite: bool,
}

impl RegistrationClient {
    pub(crate) fn new(connection: Connection<ClientStream>) -> Self {
        Self { requests: RequestConnection::new(connection), by_invite: false }
    }

    pub(crate) fn by_invite(connection: Connection<ClientStream>) -> Self {
        Self { by_invite: true, ..Self::new(connection) }
    }

    /// Closes the session.
    pub(crate) async fn close(self) {
        self.requests.into_connection().close(CloseCode::Bye).await;
    }
}

impl Ask for RegistrationClient {
    async fn ask(&mut self, op: Op) -> Result<Answered, ClientError> {
        let late = || ClientError::Lost("the server did not answer in time".to_owned());
        let answered = timeout(ANSWER, self.requests.request(op)).await;
        let answered = answered.unwrap_or_else(|_| Err(late()));
        if self.by_invite { answered.map_err(invite_used) } else { answered }
    }
}

/// Translates an error of a session by an invite: the server revokes it once the invite is used on
/// another connection.
pub(crate) fn invite_used(error: ClientError) -> ClientError {
    if error == closed(CloseCode::Revoked) {
        ClientError::Refused(RefusalReason::AlreadyUsed.into())
    } else {
        error
    }
}
