//! The identity's directory: only this user can read it, and files are replaced atomically
//! ([`private`]).

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::error::IdentityError;
use crate::private::{self, DIR_MODE, FILE_MODE};

/// Far above any certificate chain; a wrong path must not fill the memory.
const MAX_FILE: u64 = 1 << 20;

const OTHERS_MODE: u32 = 0o077;
const WORLD: u32 = 0o007;

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |error| private::failed(doing, path)(error).into()
}

/// The directory, locked so that two concurrent first starts create one identity.
pub(super) struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

impl Folder {
    /// Waits while another process has the lock.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, IdentityError> {
        private::make_directory(path)?;
        private::check_directory(path)?;
        let handle = File::open(path).map_err(failed("read", path))?;
        if !handle.metadata().map_err(failed("read", path))?.is_dir() {
            return Err(failed("use", path)(ErrorKind::NotADirectory.into()));
        }
        // Some network file systems cannot lock a directory. The lock only guards against a race of
        // two first starts; the server's own lock keeps a second server out.
        let _ = handle.lock();
        restrict_mode(&handle, path, DIR_MODE)?;
        // Existing files may be from a start that was killed between a rename and its sync; a
        // record depends on them from now on.
        private::sync_found(&handle, path)?;
        Ok(Self { path: path.to_owned(), _lock: Some(handle) })
    }

    /// The directory as it is, for reading; it need not exist.
    pub(super) fn unlocked(path: &Path) -> Self {
        Self { path: path.to_owned(), _lock: None }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn has(&self, name: &str) -> Result<bool, IdentityError> {
        Ok(private::is_there(&self.path(name))?)
    }

    /// The content of a file, if it exists.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.path(name);
        match open(&path)? {
            Some(mut file) => Ok(Some(std::mem::take(&mut *read(&mut file, &path)?))),
            None => Ok(None),
        }
    }

    /// The same for a secret: wiped after use, and made private on disk.
    pub(super) fn read_secret(
        &self,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        let path = self.path(name);
        let Some(mut file) = open(&path)? else { return Ok(None) };
        restrict_mode(&file, &path, FILE_MODE)?;
        read(&mut file, &path).map(Some)
    }

    /// The content of a secret, whose mode stays as it is.
    pub(super) fn read_private(
        &self,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
        let path = self.path(name);
        let Some(mut file) = open(&path)? else { return Ok(None) };
        read(&mut file, &path).map(Some)
    }

    /// Replaces the content of `name`; returns once the new content survives a power cut.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), IdentityError> {
        Ok(private::write(&self.path(name), content)?)
    }
}

/// Reads the operator's certificate, which only the operator changes.
pub(super) fn read_own(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut file = open_own(path)?;
    Ok(std::mem::take(&mut *read(&mut file, path)?))
}

/// Reads the operator's key. Groups may read it, as certificate tools set it up.
pub(super) fn read_own_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let mut file = open_own(path)?;
    let mode = file.metadata().map_err(failed("read", path))?.permissions().mode();
    if mode & WORLD != 0 {
        tracing::warn!(path = %path.display(), "all users of this machine can read the TLS key");
    }
    read(&mut file, path)
}

/// Opens a regular file. Certificate tools create symlinks, so they are followed.
fn open_own(path: &Path) -> Result<File, IdentityError> {
    private::open_regular(OpenOptions::new().read(true), path, OFlags::empty())
        .map_err(failed("read", path))
}

fn open(path: &Path) -> Result<Option<File>, IdentityError> {
    match private::open(OpenOptions::new().read(true), path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn read(file: &mut File, path: &Path) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let length = file.metadata().map_err(failed("read", path))?.len();
    if length > MAX_FILE {
        return Err(IdentityError::TooLarge { path: path.to_owned() });
    }
    // Allocated at once: a growing vector leaves copies of a secret behind.
    let room = usize::try_from(length).unwrap_or(0).saturating_add(1);
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE).read_to_end(&mut content).map_err(failed("read", path))?;
    Ok(content)
}

/// Removes the permissions of other users, with a warning: they may have read the file already.
fn restrict_mode(file: &File, path: &Path, mode: u32) -> Result<(), IdentityError> {
    let found = file.metadata().map_err(failed("read", path))?.permissions().mode() & 0o7777;
    if found & OTHERS_MODE == 0 {
        return Ok(());
    }
    let found = format!("{found:o}");
    // Secrets that an orchestrator mounts are read-only; refusing to start would not help.
    match file.set_permissions(Permissions::from_mode(mode)) {
        Ok(()) => tracing::warn!(
            path = %path.display(), found,
            "others could read this; its mode is now {mode:o}"
        ),
        Err(error) => tracing::warn!(
            path = %path.display(), found, %error,
            "others can read this, and its mode cannot be changed"
        ),
    }
    Ok(())
}
