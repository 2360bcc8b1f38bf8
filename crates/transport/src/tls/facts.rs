//! The parameters that TLS negotiated, for `status`.

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, ProtocolVersion};
use twinlock_core::id::TlsPin;
use twinlock_core::text::Untrusted;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::spki_pin;

/// Maximum length of an issuer's name in characters.
const MAX_ISSUER: usize = 80;

/// The parameters of a TLS connection.
///
/// The names are those of the IANA registries, except for the version. `None` before the handshake
/// is complete, and without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFacts {
    /// `TLS 1.3`.
    pub version: Option<String>,
    /// The key exchange, such as `X25519MLKEM768`.
    pub group: Option<String>,
    /// The cipher suite, such as `TLS13_CHACHA20_POLY1305_SHA256`.
    pub suite: Option<String>,
    /// The pin of the peer's certificate; `None` on the server, because clients show none.
    pub peer_pin: Option<TlsPin>,
    /// Who issued the peer's certificate, as it says, without control characters.
    pub issuer: Option<String>,
    /// The application protocol; `None` if a proxy terminates TLS and negotiates none.
    pub alpn: Option<String>,
}

impl TlsFacts {
    /// Reads them from `stream.get_ref().1`.
    #[must_use]
    pub fn of(connection: &CommonState) -> Self {
        let version = connection.protocol_version().map(|version| match version {
            ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
            other => format!("{other:?}"),
        });
        let name = |alpn: &[u8]| alpn.escape_ascii().to_string();
        Self {
            version,
            group: connection.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name())),
            suite: connection.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite())),
            peer_pin: connection
                .peer_certificates()
                .and_then(|chain| chain.first())
                .and_then(|first| spki_pin(first).ok()),
            issuer: connection
                .peer_certificates()
                .and_then(|chain| chain.first())
                .and_then(issuer_of),
            alpn: connection.alpn_protocol().map(name),
        }
    }
}

/// Parts of a certificate that a peer has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFacts {
    /// The pin of its key.
    pub pin: TlsPin,
    /// Who issued it, as it says, without control characters.
    pub issuer: Option<String>,
    /// Whether issuer and subject are the same: no authority issued it.
    pub is_self_issued: bool,
    /// Start and end of its validity, in seconds since 1970.
    pub valid: (i64, i64),
}

impl CertFacts {
    /// Reads them. `None` if it is not an X.509 v3 certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, x509) = X509Certificate::from_der(certificate).ok()?;
        let validity = x509.validity();
        Some(Self {
            pin: spki_pin(certificate).ok()?,
            issuer: issuer_of(certificate),
            is_self_issued: x509.issuer().as_raw() == x509.subject().as_raw(),
            valid: (validity.not_before.timestamp(), validity.not_after.timestamp()),
        })
    }
}

/// Who issued a certificate, as it says: its common name, else its organization, else all of it.
/// One line without control characters, because the peer wrote it.
pub(super) fn issuer_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    let issuer = x509.issuer();
    let first = issuer.iter_common_name().chain(issuer.iter_organization()).next();
    let name = first.and_then(|name| name.as_str().ok()).map(str::to_owned);
    let name = Untrusted::new(name.unwrap_or_else(|| issuer.to_string())).render_line();
    Some(name.chars().take(MAX_ISSUER).collect()).filter(|name: &String| !name.is_empty())
}
