//! Why there is no lock 1, sorted by what the caller does about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
use thiserror::Error as ThisError;
use twinlock_core::id::TlsPin;

/// Why a TLS connection did not come about. No variant carries text from the other end.
#[derive(Debug, ThisError)]
pub enum TlsFault {
    /// The end entity's key is not one of the pinned ones.
    #[error("the server shows another TLS key ({got}) than the pinned one ({})", words(.expected))]
    Pin {
        /// The key that was shown.
        got: TlsPin,
        /// The keys that would have been accepted.
        expected: Vec<TlsPin>,
    },
    /// The certificate, the name in it, or the proof of owning its key is not good.
    #[error("the server's certificate is not trusted: {0}")]
    Untrusted(Distrust),
    /// TLS stands or would stand, but the other end does not speak `twinlock/1`.
    #[error(
        "the other end speaks TLS but not twinlock/1: it is another service, or a proxy ends TLS before the server"
    )]
    Alpn,
    /// What arrived was not TLS at all.
    #[error("the other end does not speak TLS")]
    NotTls,
    /// The name to connect to is neither a DNS name nor an IP address.
    #[error("the server's name can be no name in a certificate")]
    Name,
    /// A root certificate handed in by the caller cannot be used, or there are none at all.
    #[error("{0}")]
    Roots(&'static str),
    /// Any other failure of TLS: an alert, no algorithm in common, a violation.
    #[error("TLS failed: {0}")]
    Tls(Error),
    /// The connection below ended or failed.
    #[error("the connection failed during the TLS handshake: {}", crate::io_words(.0))]
    Io(#[source] io::Error),
}

fn words(pins: &[TlsPin]) -> String {
    if pins.is_empty() {
        return "none".to_owned();
    }
    pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Why a certificate is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum Distrust {
    /// No known authority vouches for it.
    #[error("no trusted authority issued it")]
    UnknownIssuer,
    /// It is for other names than the one connected to.
    #[error("it is for another name")]
    WrongName,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come; or the clock here is wrong.
    #[error("it is not valid yet (or the clock here is wrong)")]
    NotYetValid,
    /// Its issuer took it back.
    #[error("it was revoked")]
    Revoked,
    /// It is not for TLS servers.
    #[error("it is not meant for servers")]
    Purpose,
    /// The other end could not sign with the certificate's key, or a trusted authority's
    /// signature on it is bad.
    #[error("a signature is wrong: its owner or its issuer is another than it says")]
    Signature,
    /// It cannot be read.
    #[error("it cannot be read")]
    Malformed,
    /// Anything else.
    #[error("it breaks a rule for certificates")]
    Other,
}

/// What the pinning verifier leaves inside a [`CertificateError`] for [`TlsFault`] to find.
#[derive(Debug, Clone, ThisError)]
#[error("another key than the pinned one")]
pub(super) struct WrongPin {
    pub(super) got: TlsPin,
    pub(super) expected: Vec<TlsPin>,
}

impl TlsFault {
    /// Whether the fault is about who the server is (exit code 4), not about reaching it.
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

/// tokio-rustls hands rustls' errors on inside I/O errors.
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
            Some(pin) => return TlsFault::Pin { got: pin.got, expected: pin.expected.clone() },
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
