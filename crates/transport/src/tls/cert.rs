//! A server's certificate chain with a private key that matches it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use thiserror::Error;
use twinlock_core::id::TlsPin;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{pin_of, provider};

const DAY: u64 = 86_400;

/// A certificate chain, end entity first, and its private key.
///
/// Exists only if the certificate parses and the key matches it. [`ServerCert::check_time`] checks
/// the validity period separately, because an expired certificate still serves pinning clients.
#[derive(Clone)]
pub struct ServerCert {
    certified: Arc<CertifiedKey>,
    pin: TlsPin,
    not_before: SystemTime,
    not_after: SystemTime,
    self_issued: bool,
}

/// The reason why a chain and key cannot be used. Never contains a part of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CertFault {
    /// The chain contains no certificate.
    #[error("it contains no certificate")]
    NoCertificate,
    /// The chain is not PEM, or its first certificate is not X.509 v3.
    #[error("the certificate cannot be read")]
    BadCertificate,
    /// There is no private key, or only an encrypted one.
    #[error("it contains no private key, or only one that is encrypted with a passphrase")]
    NoKey,
    /// The key cannot be decoded, or TLS 1.3 does not use its kind.
    #[error("the private key cannot be read or is of an unsupported type")]
    BadKey,
    /// The key does not match the certificate.
    #[error("the private key does not match the certificate")]
    Mismatch,
    /// The validity period has ended.
    #[error("the certificate expired {days} days ago")]
    Expired {
        /// Whole days since then.
        days: u64,
    },
    /// The validity period has not started.
    #[error("the certificate is not valid before {days} days from now")]
    NotYetValid {
        /// Whole days until then.
        days: u64,
    },
}

impl CertFault {
    /// Whether the key is at fault rather than the certificate.
    #[must_use]
    pub fn blames_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::BadKey)
    }
}

impl ServerCert {
    /// Decodes a chain and key in DER.
    ///
    /// # Errors
    /// [`CertFault`], but not for the validity period.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertFault> {
        let first = chain.first().ok_or(CertFault::NoCertificate)?;
        let parsed = ParsedCertificate::try_from(first).map_err(|_| CertFault::BadCertificate)?;
        let spki = parsed.subject_public_key_info();
        let (_, x509) = X509Certificate::from_der(first).map_err(|_| CertFault::BadCertificate)?;
        let not_before = time(x509.validity().not_before.timestamp());
        let not_after = time(x509.validity().not_after.timestamp());
        let self_issued = x509.issuer().as_raw() == x509.subject().as_raw();

        let key = provider().key_provider.load_private_key(key).map_err(|_| CertFault::BadKey)?;
        if key.public_key().ok_or(CertFault::BadKey)? != spki {
            return Err(CertFault::Mismatch);
        }
        let certified = Arc::new(CertifiedKey::new(chain, key));
        Ok(Self { certified, pin: pin_of(&spki), not_before, not_after, self_issued })
    }

    /// Decodes a chain and key in PEM.
    ///
    /// Takes all certificates of `chain` in order and the first private key of `key` (PKCS #8,
    /// PKCS #1 or SEC 1). The caller wipes its own copy of `key`.
    ///
    /// # Errors
    /// As [`ServerCert::from_der`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertFault> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| CertFault::BadCertificate)?;
        if chain.is_empty() {
            return Err(CertFault::NoCertificate);
        }
        Self::from_der(chain, PrivateKeyDer::from_pem_slice(key).map_err(|_| CertFault::NoKey)?)
    }

    /// Checks that `now` is within the validity period.
    ///
    /// # Errors
    /// [`CertFault::Expired`], [`CertFault::NotYetValid`].
    pub fn check_time(&self, now: SystemTime) -> Result<(), CertFault> {
        let days = |d: Duration| d.as_secs() / DAY;
        if let Ok(past) = now.duration_since(self.not_after)
            && !past.is_zero()
        {
            return Err(CertFault::Expired { days: days(past) });
        }
        match self.not_before.duration_since(now) {
            Ok(ahead) if !ahead.is_zero() => Err(CertFault::NotYetValid { days: days(ahead) }),
            _ => Ok(()),
        }
    }

    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    #[must_use]
    pub fn pin(&self) -> TlsPin {
        self.pin
    }

    /// The end of the validity period.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.not_after
    }

    /// Whether issuer and subject are the same: no authority issued it.
    #[must_use]
    pub fn is_self_issued(&self) -> bool {
        self.self_issued
    }

    /// The chain, end entity first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for ServerCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certified: _, pin, not_before, not_after, self_issued } = self;
        f.debug_struct("ServerCert")
            .field("pin", pin)
            .field("not_before", not_before)
            .field("not_after", not_after)
            .field("self_issued", self_issued)
            .finish_non_exhaustive()
    }
}

/// Converts seconds since 1970 to a time; before 1970 counts as 1970.
fn time(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(seconds.try_into().unwrap_or(0));
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}
