//! One line over a stream: lock 1 (TLS 1.3) and what rides on it, without knowledge of rooms or
//! storage.
//!
//! [`tls`] sets up and judges lock 1 on both ends. [`proxy`] reads the header that a configured
//! proxy puts before it. [`login`] carries the handshake of lock 2, [`mod@line`] the session after it.

mod entropy;
pub mod line;
pub mod login;
pub mod pace;
pub mod proxy;
pub mod tls;
pub mod transport;

pub use entropy::OsEntropy;
