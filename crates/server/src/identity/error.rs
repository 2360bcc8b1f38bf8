//! What can be wrong with an identity. Each error names the file; none carries a part of it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use twinlock_link::tls::CertFault;

use crate::private::Failed;

/// Why the identity cannot be opened, made, renewed or reloaded.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file system said no.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// A verb: read, write, make.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// No such file is as large as this one.
    #[error("{} is too large to be what it should be", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is gone that no crash can have removed.
    #[error(
        "{} is missing, though {} is there: put it back from a backup; or, to begin with a new identity that no client knows, remove the whole directory",
        path.display(),
        found.display()
    )]
    Missing {
        /// The missing file.
        path: PathBuf,
        /// The file that shows that there was one.
        found: PathBuf,
    },
    /// The OPAQUE setup has not the one right length.
    #[error(
        "{} has {got} bytes and should have 128: put it back from a backup, since no password, device or invite works without it",
        path.display()
    )]
    Setup {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        got: usize,
    },
    /// The certificate or the key alone is at fault.
    #[error("{}: {fault}", path.display())]
    Certificate {
        /// The one of the two files.
        path: PathBuf,
        /// Why.
        fault: CertFault,
    },
    /// Certificate and key do not belong together.
    #[error("the private key in {} does not fit the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The key on disk is no longer the one in use, so renewing would change the pin.
    #[error(
        "{} is another key than the one in use: the certificate is not renewed; reload to take the new key over",
        path.display()
    )]
    KeyReplaced {
        /// The key's file.
        path: PathBuf,
    },
    /// A name wanted for the certificate is neither a DNS name nor an IP address.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// Making a key or certificate failed.
    #[error("cannot make a TLS key or certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes: {0}")]
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
