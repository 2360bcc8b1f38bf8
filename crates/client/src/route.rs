//! How connections reach the server.

use std::fmt;
use std::str::FromStr;

use crate::via::Via;
use thiserror::Error;
use twinlock_transport::stream::{Carrier, SessionStream};

/// How connections reach the server. The default finds the way by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// The transport to use.
    pub transport: TransportChoice,
    /// The proxies to go through.
    pub via: Via,
}

/// The transport that a user chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// TLS, and WebSocket inside it if the other end selects HTTP. Never plain.
    #[default]
    Auto,
    /// TLS without WebSocket.
    Tls,
    /// TLS with WebSocket.
    WebSocket,
    /// No TLS. Connects to this machine only, and counts as intercepted.
    Plain,
}

/// A word that names no transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("auto, tls, websocket or plain")]
pub struct NoTransport;

impl FromStr for TransportChoice {
    type Err = NoTransport;

    fn from_str(word: &str) -> Result<Self, NoTransport> {
        match word {
            "auto" => Ok(Self::Auto),
            "tls" => Ok(Self::Tls),
            "websocket" => Ok(Self::WebSocket),
            "plain" => Ok(Self::Plain),
            _ => Err(NoTransport),
        }
    }
}

/// The transport of a connection, as this client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientTransport {
    /// TLS.
    Tls,
    /// WebSocket inside TLS.
    WebSocket,
    /// TCP on this machine.
    Plain,
}

impl ClientTransport {
    pub(crate) fn of<T>(stream: &SessionStream<Carrier<T>>) -> Self {
        match stream {
            SessionStream::WebSocket(_) => Self::WebSocket,
            SessionStream::Direct(Carrier::Tls(_)) => Self::Tls,
            SessionStream::Direct(Carrier::Plain(_)) => Self::Plain,
        }
    }
}

impl fmt::Display for ClientTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
            Self::Plain => "plain",
        })
    }
}
