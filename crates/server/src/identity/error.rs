//! Errors of an identity. Each names the file; none contains a part of it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use twinlock_transport::tls::CertFault;

use crate::private::Failed;

/// Why the identity cannot be opened, created, renewed or reloaded.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file system operation failed.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// Verb for the message: read, write, make.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The file is larger than any valid one.
    #[error("{} is larger than any valid file of this kind", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is missing that no crash can have removed.
    #[error(
        "{} is missing, though {} is there: restore it from a backup; or remove the whole directory to create a new identity, which no client knows",
        path.display(),
        found.display()
    )]
    Missing {
        /// The missing file.
        path: PathBuf,
        /// The file that shows that it existed.
        found: PathBuf,
    },
    /// The OPAQUE setup has the wrong length.
    #[error(
        "{} has {got} bytes instead of 128: restore it from a backup; without it no password, device or invite works",
        path.display()
    )]
    Setup {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        got: usize,
    },
    /// The certificate or the key is invalid.
    #[error("{}: {fault}", path.display())]
    Certificate {
        /// The file at fault.
        path: PathBuf,
        /// The fault.
        fault: CertFault,
    },
    /// The certificate and the key do not belong together.
    #[error("the private key in {} does not match the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The key on disk is no longer the one in use, so renewing would change the pin.
    #[error(
        "{} differs from the key in use: the certificate is not renewed; reload (SIGHUP) to use the new key",
        path.display()
    )]
    KeyReplaced {
        /// The key's file.
        path: PathBuf,
    },
    /// A name for the certificate is neither a DNS name nor an IP address.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// Generating a key or certificate failed.
    #[error("cannot make a TLS key or certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The system provides no random bytes.
    #[error("the system's random generator failed: {0}")]
    Random(#[from] getrandom::Error),
}

impl From<Failed> for IdentityError {
    fn from(Failed { doing, path, error }: Failed) -> Self {
        Self::Io { doing, path, error }
    }
}

impl IdentityError {
    pub(super) fn certificate(cert: PathBuf, key: PathBuf, fault: CertFault) -> Self {
        match fault {
            CertFault::Mismatch => Self::Mismatch { cert, key },
            _ => Self::Certificate { path: if fault.blames_key() { key } else { cert }, fault },
        }
    }
}
