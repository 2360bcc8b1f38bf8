//! WebSocket (RFC 6455) as a byte stream, for both ends (docs/protocol.md, section 12).
//!
//! HTTP proxies and CDNs pass WebSocket connections. [`WebSocket`] sends the bytes of a session as
//! binary messages and concatenates those that it receives: frames of a session need not match
//! messages. [`serve`] answers the HTTP request before it on the server, [`connect`] makes this
//! request on the client.
//!
//! Every buffer has a limit: 8 KiB for the HTTP header, [`MAX_MESSAGE`] for a message, with all its
//! fragments. A ping is answered by a pong, and this end sends no ping: the session has its own.
//! Reasons for the libraries: docs/design/017-transports.md.

pub mod connect;
pub mod forwarded;
mod hyper_io;
pub mod serve;
mod stream;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use data_encoding::BASE64;

pub use stream::{MAX_MESSAGE, WebSocket};

/// Longest HTTP header, bytes, in both directions. Ours has about 200; proxies add some hundreds.
pub const MAX_HTTP_HEADER: usize = 8 * 1024;

/// Most fields of an HTTP header.
const MAX_FIELDS: usize = 64;

/// The value of Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, section 4.2.2).
///
/// SHA-1 protects nothing here. It shows that the peer speaks WebSocket.
fn accept_value(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()).as_ref())
}

/// Whether a comma-separated list contains a token, in any case.
fn lists(value: &[u8], token: &str) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests;
