//! Why TLS failed, sorted by what the caller does about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use thiserror::Error as ThisError;
use twinlock_core::id::TlsPin;

/// The reason why a TLS connection failed. No variant carries text from the peer.
#[derive(Debug, ThisError)]
pub enum TlsFault {
    /// The end entity's key is not one of the pinned keys.
    #[error(
        "the server's TLS key ({got}) differs from the pinned key ({}), and this system trusts no \
         authority that issued its certificate for this name{}",
        words(.expected), by(.issuer)
    )]
    Pin {
        /// The key that the server showed.
        got: TlsPin,
        /// The pinned keys.
        expected: Vec<TlsPin>,
        /// Who issued the certificate, as it says; empty if it cannot be read.
        issuer: String,
    },
    /// The certificate, the name in it, or the proof of owning its key is invalid.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(Distrust),
    /// The peer speaks TLS but none of the offered protocols.
    #[error(
        "the other end speaks TLS, but neither twinlock/1 nor http/1.1: it is another service, or a proxy that needs another setting"
    )]
    Alpn,
    /// The peer did not send TLS.
    #[error("the other end does not speak TLS")]
    NotTls,
    /// The name to connect to is neither a DNS name nor an IP address.
    #[error("the server's name is not valid in a certificate")]
    Name,
    /// A root certificate from the caller cannot be used, or there are no roots.
    #[error("{0}")]
    Roots(&'static str),
    /// Any other TLS failure: an alert, no common algorithm, a violation.
    #[error("TLS failed: {0}")]
    Tls(Error),
    /// The underlying connection ended or failed.
    #[error("the connection failed during the TLS handshake: {}", crate::io_words(.0))]
    Io(#[source] io::Error),
}

impl From<&WrongPin> for TlsFault {
    fn from(wrong: &WrongPin) -> Self {
        let WrongPin { got, expected, issuer } = wrong.clone();
        Self::Pin { got, expected, issuer }
    }
}

fn by(issuer: &str) -> String {
    if issuer.is_empty() { String::new() } else { format!(" (it names {issuer})") }
}

fn words(pins: &[TlsPin]) -> String {
    if pins.is_empty() {
        return "none".to_owned();
    }
    pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// The reason why a certificate is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum Distrust {
    /// No known authority vouches for it.
    #[error("no trusted authority issued it")]
    UnknownIssuer,
    /// It is for other names than the one connected to.
    #[error("it is issued for another name")]
    WrongName,
    /// The validity period has ended.
    #[error("it has expired")]
    Expired,
    /// The validity period has not started, or the local clock is wrong.
    #[error("it is not yet valid (or the clock of this machine is wrong)")]
    NotYetValid,
    /// Its issuer revoked it.
    #[error("it was revoked")]
    Revoked,
    /// It is not for TLS servers.
    #[error("it is not meant for servers")]
    Purpose,
    /// The peer could not sign with the certificate's key, or a trusted authority's signature on
    /// the certificate is invalid.
    #[error("a signature is invalid: it does not come from the stated owner or issuer")]
    Signature,
    /// It cannot be decoded.
    #[error("it cannot be read")]
    Malformed,
    /// Anything else.
    #[error("it violates a rule for certificates")]
    Other,
}

/// The pinning verifier's error inside a [`CertificateError`], for [`TlsFault`] to extract.
#[derive(Debug, Clone, ThisError)]
#[error("not the pinned key")]
pub(super) struct WrongPin {
    pub(super) got: TlsPin,
    pub(super) expected: Vec<TlsPin>,
    pub(super) issuer: String,
}

impl TlsFault {
    /// Whether the peer supports TLS 1.2 at most.
    #[must_use]
    pub fn is_old_version(&self) -> bool {
        use PeerIncompatible as P;
        matches!(
            self,
            Self::Tls(
                Error::AlertReceived(AlertDescription::ProtocolVersion)
                    | Error::PeerIncompatible(
                        P::ServerDoesNotSupportTls12Or13
                            | P::ServerTlsVersionIsDisabledByOurConfig
                            | P::SupportedVersionsExtensionRequired
                    )
            )
        )
    }

    /// Whether the fault concerns the server's identity (exit code 4) rather than its reachability.
    #[must_use]
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Pin { .. } | Self::Untrusted(_))
    }
}

impl From<Error> for TlsFault {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(why) => certificate(why),
            Error::NoCertificatesPresented => Self::Untrusted(Distrust::Malformed),
            Error::NoApplicationProtocol
            | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::Alpn,
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            other => Self::Tls(other),
        }
    }
}

/// tokio-rustls wraps rustls' errors in I/O errors.
impl From<io::Error> for TlsFault {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(inner) => inner.clone().into(),
            None => Self::Io(error),
        }
    }
}

fn certificate(why: CertificateError) -> TlsFault {
    use CertificateError as C;
    let distrust = match why {
        C::Other(other) => match other.0.downcast_ref::<WrongPin>() {
            Some(pin) => return TlsFault::from(pin),
            None => Distrust::Other,
        },
        C::UnknownIssuer => Distrust::UnknownIssuer,
        C::NotValidForName | C::NotValidForNameContext { .. } => Distrust::WrongName,
        C::Expired | C::ExpiredContext { .. } => Distrust::Expired,
        C::NotValidYet | C::NotValidYetContext { .. } => Distrust::NotYetValid,
        C::Revoked => Distrust::Revoked,
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => Distrust::Purpose,
        C::BadSignature => Distrust::Signature,
        C::BadEncoding => Distrust::Malformed,
        _ => Distrust::Other,
    };
    TlsFault::Untrusted(distrust)
}
