//! One connection over a stream: TLS 1.3 or WebSocket, and the session inside it.
//!
//! This crate knows nothing about rooms or storage. [`tls`] sets up and verifies TLS on both ends.
//! [`proxy`] reads the header that a configured proxy sends before TLS. [`websocket`] is the byte
//! stream through HTTP proxies, and [`stream`] the choice of transports. [`login`] performs the
//! session's handshake, and [`mod@connection`] runs the session after it.

#![cfg_attr(test, allow(non_snake_case, reason = "tests are named feature__property"))]

pub mod connection;
mod entropy;
pub mod flow_control;
pub mod forward_proxy;
mod hex;
pub mod login;
pub mod proxy;
pub mod stream;
pub mod tls;
pub mod transport;
pub mod websocket;

pub use entropy::OsEntropy;
pub use hex::Hex;

/// An I/O error as text.
///
/// The TLS library's text for a truncated connection ends with a URL of its documentation, which
/// does not help the reader of a message or a log.
#[must_use]
pub fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the other end closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
