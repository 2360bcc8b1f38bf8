//! One line over a stream: lock 1 (TLS 1.3) and what rides on it, without knowledge of rooms or
//! storage.
//!
//! [`tls`] sets up and judges lock 1 on both ends. [`proxy`] reads the header that a configured
//! proxy puts before it.

pub mod proxy;
pub mod tls;
