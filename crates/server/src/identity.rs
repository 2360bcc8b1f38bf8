//! The server's identity on disk: `DIR/identity/` with the TLS key, the certificate and the
//! 128-byte OPAQUE setup. It is kept apart from the record, so that a stolen database alone allows
//! no password guess.
//!
//! The first start creates setup, key and certificate, in this order, each atomically. A later file
//! without an earlier one is therefore never the result of a crash: a file was removed, and a new
//! one would silently lock out every client. That is an error.
//!
//! Clients know the server by its key (the pin), so a self-signed certificate is renewed with the
//! same key. Any other certificate, in the operator's own files or put in place of the generated
//! one, is never written to; only its expiry is logged.
//!
//! Everything here blocks on small files; call it at startup or off the async threads.

mod error;
mod files;
mod make;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use twinlock_core::id::TlsPin;
use twinlock_transport::tls::{CertFault, ServerCert};
use zeroize::Zeroizing;

pub use error::IdentityError;
use files::Folder;
use make::DAY;
pub use make::KeyType;

const SETUP: &str = "opaque-setup";
const KEY: &str = "tls-key.pem";
const CERT: &str = "tls-cert.pem";

/// Length of the OPAQUE setup, in bytes (PROTOCOL section 2).
pub const SETUP_LEN: usize = 128;

/// Boxed, so that moving the identity leaves no copies behind.
type Setup = Box<Zeroizing<[u8; SETUP_LEN]>>;

/// A self-signed certificate with less time left than this is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);
/// With less time left than this, the log has a warning: the renewal failed, or is up to the
/// operator.
const WARN_BEFORE: Duration = Duration::from_secs(21 * 86_400);

/// A certificate and key that the operator manages.
#[derive(Debug, Clone)]
pub struct OwnFiles {
    /// PEM, the chain with the server's certificate first.
    pub cert: PathBuf,
    /// PEM: PKCS #8, SEC 1 or PKCS #1, without a passphrase.
    pub key: PathBuf,
}

/// Options of an identity.
#[derive(Debug, Clone, Default)]
pub struct IdentityOptions {
    /// For the key that the first start generates.
    pub key_type: KeyType,
    /// DNS names and IP addresses for the self-signed certificate, without ports, in addition to
    /// `localhost`, `127.0.0.1`, `::1` and the name of this machine.
    pub names: Vec<String>,
    /// Used instead of a generated key and certificate.
    pub own: Option<OwnFiles>,
}

/// The server's identity, as it is on disk.
pub struct Identity {
    dir: PathBuf,
    names: Vec<String>,
    own: Option<OwnFiles>,
    setup: Setup,
    new_setup: bool,
    current: ServerCert,
}

impl Identity {
    /// Opens the identity in `dir`, and creates missing files. Calls `new_setup` only on the
    /// first start.
    ///
    /// A self-signed certificate that expires soon, or lacks one of the names, is renewed. If that
    /// fails, the old one stays in use and the log has an error. If the operator's own certificate
    /// has expired, that is logged and not refused, because pinning clients ignore the expiry.
    ///
    /// # Errors
    /// [`IdentityError`], which names the file.
    pub fn open_or_create(
        dir: &Path,
        options: IdentityOptions,
        now: SystemTime,
        new_setup: impl FnOnce() -> Zeroizing<[u8; SETUP_LEN]>,
    ) -> Result<Self, IdentityError> {
        let IdentityOptions { key_type, names, own } = options;
        let names = make::all_names(&names)?;
        let folder = Folder::open_or_create(dir)?;
        let (setup, is_new) = open_setup(&folder, new_setup)?;
        let current = match &own {
            Some(own) => load_own(own)?,
            None => open_self_made(&folder, key_type, &names, now)?,
        };
        drop(folder);

        let dir = dir.to_owned();
        let mut this = Self { dir, names, own, setup, new_setup: is_new, current };
        if this.is_self_made() && (this.is_due(now) || !make::covers(&this.current, &this.names)) {
            match this.renew(this.current.pin(), now) {
                Ok(cert) => this.current = cert,
                Err(error) => tracing::error!(%error, "the TLS certificate was not renewed"),
            }
        }
        this.warn_if_ending(now);
        Ok(this)
    }

    /// The OPAQUE setup. Wiped when the identity is dropped.
    #[must_use]
    pub fn setup_bytes(&self) -> &[u8; SETUP_LEN] {
        &self.setup
    }

    /// Whether this call of [`Identity::open_or_create`] created the setup. A record that is not
    /// empty then belongs to another setup, and none of its credentials works.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.new_setup
    }

    /// The certificate and key to serve with.
    #[must_use]
    pub fn certificate(&self) -> ServerCert {
        self.current.clone()
    }

    /// The pin by which clients know the server.
    #[must_use]
    pub fn pin(&self) -> TlsPin {
        self.current.pin()
    }

    /// The end of the certificate's validity.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.current.expires_at()
    }

    /// Logs a warning if the certificate has less than 21 days left, and an error if it has
    /// expired.
    pub fn warn_if_ending(&self, now: SystemTime) {
        match self.expires_at().duration_since(now) {
            Ok(left) if left >= WARN_BEFORE => {}
            Ok(left) => {
                let days = left.as_secs() / DAY.as_secs();
                tracing::warn!(days, "the TLS certificate expires soon");
            }
            Err(_) => tracing::error!(
                "the TLS certificate has expired: only clients that pin its key still connect"
            ),
        }
    }

    /// Renews a self-signed certificate that has less than 30 days left, with the same key.
    ///
    /// Call it regularly, and pass the result to [`ServerTls::reload`]. `None`: renewal is not due,
    /// or is up to the operator.
    ///
    /// # Errors
    /// [`IdentityError`]; the old certificate stays, in memory and on disk.
    ///
    /// [`ServerTls::reload`]: twinlock_transport::tls::ServerTls::reload
    pub fn renew_if_due(&mut self, now: SystemTime) -> Result<Option<ServerCert>, IdentityError> {
        if !self.is_self_made() || !self.is_due(now) {
            return Ok(None);
        }
        self.current = self.renew(self.current.pin(), now)?;
        Ok(Some(self.current.clone()))
    }

    /// Reloads certificate and key (SIGHUP). They must be readable, belong together and be valid
    /// now. The setup is not reloaded.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and the reason; the old pair stays in use.
    pub fn reload(&mut self, now: SystemTime) -> Result<ServerCert, IdentityError> {
        let mut loaded = match &self.own {
            Some(own) => load_own(own)?,
            None => load_self_made(&Folder::open_or_create(&self.dir)?)?,
        };
        if self.own.is_none() && loaded.is_self_issued() && is_due(&loaded, now) {
            loaded = self.renew(loaded.pin(), now)?;
        }
        loaded.check_time(now).map_err(|fault| {
            let (cert, key) = self.paths();
            IdentityError::certificate(cert, key, fault)
        })?;
        self.current = loaded.clone();
        self.warn_if_ending(now);
        Ok(loaded)
    }

    fn paths(&self) -> (PathBuf, PathBuf) {
        match &self.own {
            Some(own) => (own.cert.clone(), own.key.clone()),
            None => (self.dir.join(CERT), self.dir.join(KEY)),
        }
    }

    fn is_self_made(&self) -> bool {
        self.own.is_none() && self.current.is_self_issued()
    }

    fn is_due(&self, now: SystemTime) -> bool {
        is_due(&self.current, now)
    }

    /// Writes a new certificate for the key on disk, if that is still the key of `pin`.
    fn renew(&self, pin: TlsPin, now: SystemTime) -> Result<ServerCert, IdentityError> {
        let folder = Folder::open_or_create(&self.dir)?;
        let key = folder.read_secret(KEY)?.ok_or_else(|| missing(&folder, KEY, CERT))?;
        let chain = make::certificate(&key, &self.names, now)?;
        let cert = checked(&folder, &chain, &key)?;
        if cert.pin() != pin {
            return Err(IdentityError::KeyReplaced { path: folder.path(KEY) });
        }
        folder.write(CERT, &chain)?;
        tracing::info!(path = %folder.path(CERT).display(), "renewed the TLS certificate");
        Ok(cert)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, names, own, setup: _, new_setup, current } = self;
        f.debug_struct("Identity")
            .field("dir", dir)
            .field("names", names)
            .field("own", own)
            .field("new_setup", new_setup)
            .field("current", current)
            .finish_non_exhaustive()
    }
}

/// Whether a certificate expires soon, or is not valid yet: then it was made under a wrong clock.
fn is_due(cert: &ServerCert, now: SystemTime) -> bool {
    now.checked_add(RENEW_BEFORE).is_none_or(|then| cert.expires_at() < then)
        || matches!(cert.check_time(now), Err(CertFault::NotYetValid { .. }))
}

fn missing(folder: &Folder, file: &str, found: &str) -> IdentityError {
    IdentityError::Missing { path: folder.path(file), found: folder.path(found) }
}

fn checked(folder: &Folder, chain: &[u8], key: &[u8]) -> Result<ServerCert, IdentityError> {
    ServerCert::from_pem(chain, key)
        .map_err(|fault| IdentityError::certificate(folder.path(CERT), folder.path(KEY), fault))
}

fn open_setup(
    folder: &Folder,
    new: impl FnOnce() -> Zeroizing<[u8; SETUP_LEN]>,
) -> Result<(Setup, bool), IdentityError> {
    let Some(bytes) = folder.read_secret(SETUP)? else {
        for later in [KEY, CERT] {
            if folder.has(later)? {
                return Err(missing(folder, SETUP, later));
            }
        }
        let setup = Box::new(new());
        folder.write(SETUP, setup.as_slice())?;
        return Ok((setup, true));
    };
    let mut setup = Box::new(Zeroizing::new([0; SETUP_LEN]));
    if bytes.len() != SETUP_LEN {
        return Err(IdentityError::Setup { path: folder.path(SETUP), got: bytes.len() });
    }
    setup.copy_from_slice(&bytes);
    Ok((setup, false))
}

fn open_self_made(
    folder: &Folder,
    key_type: KeyType,
    names: &[String],
    now: SystemTime,
) -> Result<ServerCert, IdentityError> {
    let key = match folder.read_secret(KEY)? {
        Some(key) => {
            if key_type == KeyType::Rsa2048 && !make::is_rsa(&key) {
                tracing::warn!(
                    "the server already has a TLS key, which is not an RSA key; it is kept, because clients pin it"
                );
            }
            key
        }
        None if folder.has(CERT)? => return Err(missing(folder, KEY, CERT)),
        None => {
            let key = make::key(key_type)?;
            folder.write(KEY, &key)?;
            key
        }
    };
    let chain = match folder.read(CERT)? {
        Some(chain) => chain,
        None => {
            let chain = make::certificate(&key, names, now)?;
            // Checked before it is written: the files on disk must open at the next start.
            checked(folder, &chain, &key)?;
            folder.write(CERT, &chain)?;
            chain
        }
    };
    checked(folder, &chain, &key)
}

fn load_self_made(folder: &Folder) -> Result<ServerCert, IdentityError> {
    let key = folder.read_secret(KEY)?.ok_or_else(|| missing(folder, KEY, SETUP))?;
    let chain = folder.read(CERT)?.ok_or_else(|| missing(folder, CERT, KEY))?;
    checked(folder, &chain, &key)
}

/// Files that only the server may read.
pub(crate) const SECRETS: [&str; 2] = [SETUP, KEY];

/// Reads the identity in `dir` without creating or changing anything. `None`: no file exists yet.
///
/// # Errors
/// [`IdentityError`], which names the file.
pub(crate) fn read(
    dir: &Path,
    own: Option<&OwnFiles>,
) -> Result<Option<(Setup, ServerCert)>, IdentityError> {
    let folder = Folder::unlocked(dir);
    let Some(setup) = read_setup(dir)? else { return Ok(None) };
    let cert = match own {
        Some(own) => load_own(own)?,
        None => {
            let key = folder.read_private(KEY)?.ok_or_else(|| missing(&folder, KEY, SETUP))?;
            let chain = folder.read(CERT)?.ok_or_else(|| missing(&folder, CERT, KEY))?;
            checked(&folder, &chain, &key)?
        }
    };
    Ok(Some((setup, cert)))
}

/// Reads the setup of the identity in `dir`, as [`read`] does.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_setup(dir: &Path) -> Result<Option<Setup>, IdentityError> {
    let folder = Folder::unlocked(dir);
    let Some(bytes) = folder.read_private(SETUP)? else {
        for later in [KEY, CERT] {
            if folder.has(later)? {
                return Err(missing(&folder, SETUP, later));
            }
        }
        return Ok(None);
    };
    if bytes.len() != SETUP_LEN {
        return Err(IdentityError::Setup { path: folder.path(SETUP), got: bytes.len() });
    }
    let mut setup = Box::new(Zeroizing::new([0; SETUP_LEN]));
    setup.copy_from_slice(&bytes);
    Ok(Some(setup))
}

fn load_own(own: &OwnFiles) -> Result<ServerCert, IdentityError> {
    let chain = files::read_own(&own.cert)?;
    let key = files::read_own_key(&own.key)?;
    ServerCert::from_pem(&chain, &key)
        .map_err(|fault| IdentityError::certificate(own.cert.clone(), own.key.clone(), fault))
}

#[cfg(test)]
mod tests;
