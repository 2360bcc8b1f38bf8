//! TLS 1.3 with rustls and aws-lc-rs (docs/protocol.md, section 1).
//!
//! Both ends are set up only here, so that the same choices hold everywhere: no TLS 1.2, no
//! tickets, no resumption, no early data, no certificate compression, no key log, ALPN
//! `twinlock/1` before `http/1.1`. [`ServerTls`] and [`ClientTls`] create connections, [`channel_binding`] returns
//! the value that READY compares, and [`TlsFacts`] lists the negotiated parameters, for `status`.
//!
//! ChaCha20-Poly1305 comes first, and the server insists on it if the client supports it: the
//! session uses AES, and by preference the two layers do not share a cipher. The hybrid key
//! exchange comes first, so that traffic recorded today stays secret from a later quantum computer.
//! The classic groups remain for proxies that support no others.

mod cert;
mod client;
mod facts;
mod fault;
mod server;

use std::sync::{Arc, OnceLock};

use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::ParsedCertificate;
use rustls::{CommonState, ConnectionCommon};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};
use twinlock_core::id::TlsPin;

pub use cert::{CertFault, ServerCert};
pub use client::{Alpn, ClientTls, ServerTrust};
pub use facts::{CertFacts, TlsFacts};
pub use fault::{Distrust, TlsFault};
pub use server::ServerTls;

/// The ALPN name of a session that runs directly over TLS.
pub const ALPN: &[u8] = b"twinlock/1";

/// The ALPN name of HTTP/1.1, and so of a session over WebSocket.
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// RFC 9266, section 4.2.
const BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

const SUITES: &[SupportedCipherSuite] =
    &[cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, cipher_suite::TLS13_AES_256_GCM_SHA384];

const GROUPS: &[&dyn SupportedKxGroup] =
    &[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];

/// The algorithms of TLS, created once.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        Arc::new(CryptoProvider {
            cipher_suites: SUITES.to_vec(),
            kx_groups: GROUPS.to_vec(),
            ..aws_lc_rs::default_provider()
        })
    };
    PROVIDER.get_or_init(make).clone()
}

/// Whether a connection's peers agreed on HTTP/1.1 (`Some(true)`) or on `twinlock/1`; `None` on
/// neither. Takes `stream.get_ref().1`.
#[must_use]
pub fn selected_http(connection: &CommonState) -> Option<bool> {
    match connection.alpn_protocol() {
        Some(ALPN_HTTP) => Some(true),
        Some(ALPN) => Some(false),
        _ => None,
    }
}

/// The tls-exporter value of a connection (RFC 9266), 32 bytes.
///
/// It is the same on both ends if and only if they are the two ends of one TLS connection. Takes
/// `stream.get_ref().1`.
///
/// # Errors
/// [`TlsFault::Tls`] before the handshake is complete; never on a stream from [`ClientTls`] or
/// [`ServerTls`].
pub fn channel_binding<Side>(connection: &ConnectionCommon<Side>) -> Result<[u8; 32], TlsFault> {
    Ok(connection.export_keying_material([0; 32], BINDING_LABEL, Some(&[]))?)
}

/// The pin of a certificate: SHA-256 of its SubjectPublicKeyInfo.
///
/// # Errors
/// [`TlsFault::Untrusted`] with [`Distrust::Malformed`] if it is not an X.509 v3 certificate.
pub fn spki_pin(certificate: &CertificateDer<'_>) -> Result<TlsPin, TlsFault> {
    let parsed = ParsedCertificate::try_from(certificate)
        .map_err(|_| TlsFault::Untrusted(Distrust::Malformed))?;
    Ok(pin_of(&parsed.subject_public_key_info()))
}

fn pin_of(spki: &SubjectPublicKeyInfoDer<'_>) -> TlsPin {
    let mut pin = [0; 32];
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, spki);
    pin.copy_from_slice(digest.as_ref());
    TlsPin(pin)
}
