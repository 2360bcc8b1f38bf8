//! State of the connection that the driver serves now.

use twinlock_core::proto::request::Op;
use twinlock_transport::connection::Connection;

use super::command::{Recipient, Reply};
use crate::connector::ClientStream;
use crate::error::ClientError;
use crate::model::{Rekeyed, Up};
use crate::request_connection::RequestConnection;

/// Maximum number of unanswered requests on the connection, not counting appends.
const MAX_OUTSTANDING: usize = 128;
/// Bytes sealed and not yet written above which no more frames are sealed.
const BACKLOG: usize = 128 * 1024;

/// State of one connection, dropped with it.
pub(super) struct ServedConnection {
    pub(super) up: Up,
    pub(super) requests: RequestConnection<Recipient>,
    /// Callers that wait for a rekey, with the epoch at their request.
    pub(super) rekeys: Vec<(u32, Reply<Rekeyed>)>,
    /// Number of appends among the outstanding requests.
    pub(super) appends: usize,
}

impl ServedConnection {
    pub(super) fn new(up: Up, connection: Connection<ClientStream>) -> Self {
        Self { up, requests: RequestConnection::new(connection), rekeys: Vec::new(), appends: 0 }
    }

    pub(super) fn queue(&mut self, op: Op, recipient: Recipient) -> Result<(), ClientError> {
        self.appends += usize::from(matches!(recipient, Recipient::Append(_)));
        self.requests.queue(op, recipient).map(drop)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.requests.backlog() >= BACKLOG
    }

    pub(super) fn has_room(&self) -> bool {
        self.requests.outstanding() - self.appends < MAX_OUTSTANDING
    }
}
