//! One line over a stream: lock 1 (TLS 1.3) and what rides on it, without knowledge of rooms or
//! storage.
//!
//! [`tls`] sets up and judges lock 1 on both ends. [`proxy`] reads the header that a configured
//! proxy puts before it. [`login`] carries the handshake of lock 2, [`mod@line`] the session after it.

mod entropy;
mod hex;
pub mod line;
pub mod login;
pub mod pace;
pub mod proxy;
pub mod tls;
pub mod transport;

pub use entropy::OsEntropy;
pub use hex::Hex;

/// An I/O error in words. The TLS library's own words for a cut connection end with an address of its
/// documentation, which helps no reader of a message or a log.
#[must_use]
pub fn io_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the other end closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
