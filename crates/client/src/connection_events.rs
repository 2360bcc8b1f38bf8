//! The changes of a client's connection, for every part of a program that wants them.

use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::error::ClientError;
use crate::model::Up;

/// A change of the connection to the server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The session is ready.
    Up(Box<Up>),
    /// The connection was lost, or could not be established.
    Down {
        /// The cause.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// The server cannot record now; the client continues to retry.
    Held {
        /// The server's refusal.
        error: ClientError,
        /// Time until the next attempt.
        retry: Duration,
    },
    /// The client has ended, by [`crate::Client::close`] or by this error.
    Ended(Option<ClientError>),
}

/// The changes of a connection; see [`crate::Client::connection_events`].
#[derive(Debug)]
pub struct ConnectionEvents {
    current: Option<ConnectionEvent>,
    later: broadcast::Receiver<ConnectionEvent>,
    has_ended: bool,
}

impl ConnectionEvents {
    pub(crate) fn new(
        current: Option<ConnectionEvent>,
        later: broadcast::Receiver<ConnectionEvent>,
    ) -> Self {
        Self { current, later, has_ended: false }
    }

    /// Waits for the next change; the first call returns the current state, if there is one. `None`
    /// after [`ConnectionEvent::Ended`]. Cancel-safe.
    ///
    /// A reader that is far behind misses the oldest changes.
    pub async fn next(&mut self) -> Option<ConnectionEvent> {
        if self.has_ended {
            return None;
        }
        if let Some(current) = self.current.take() {
            self.has_ended = matches!(current, ConnectionEvent::Ended(_));
            return Some(current);
        }
        loop {
            match self.later.recv().await {
                Ok(event) => {
                    self.has_ended = matches!(event, ConnectionEvent::Ended(_));
                    return Some(event);
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
