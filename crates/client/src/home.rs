//! Locations of a client's files.
//!
//! With `TWINLOCK_HOME=DIR` all files are below `DIR`: `DIR/profiles/NAME.toml` and
//! `DIR/state/NAME/`. Otherwise they are in the XDG directories
//! `$XDG_CONFIG_HOME/twinlock/profiles/` and `$XDG_STATE_HOME/twinlock/NAME/`, whose defaults are
//! `~/.config` and `~/.local/state`. Directories are created with mode 0700 at the first write.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use thiserror::Error;
use twinlock_core::id::Name;

use crate::disk;
pub use crate::disk::DiskError;

/// There is no location for files.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HomeError {
    /// Neither `TWINLOCK_HOME` nor `HOME` is set.
    #[error("no directory for profiles: set TWINLOCK_HOME or HOME to a directory")]
    NoHome,
    /// `TWINLOCK_HOME` is relative and there is no current directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// The directories of one user's client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    config: PathBuf,
    state: PathBuf,
}

impl Home {
    /// Takes the directories from the environment of this process.
    ///
    /// # Errors
    /// [`HomeError`]; nothing is created yet.
    pub fn locate() -> Result<Self, HomeError> {
        Self::locate_in(|name| std::env::var_os(name))
    }

    /// Takes the directories from `env`, which maps a variable's name to its value. An empty value
    /// counts as unset. So does a relative path in an XDG variable, as the XDG specification
    /// requires.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn locate_in(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, HomeError> {
        let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(dir) = set("TWINLOCK_HOME") {
            return Ok(Self::at(&std::path::absolute(&dir).map_err(DiskError::at(&dir))?));
        }
        let xdg = |name, below: &str| {
            set(name)
                .filter(|dir| dir.is_absolute())
                .or_else(|| Some(set("HOME").filter(|dir| dir.is_absolute())?.join(below)))
                .map(|dir| dir.join("twinlock"))
                .ok_or(HomeError::NoHome)
        };
        Ok(Self {
            config: xdg("XDG_CONFIG_HOME", ".config")?,
            state: xdg("XDG_STATE_HOME", ".local/state")?,
        })
    }

    /// All files below one directory, as with `TWINLOCK_HOME`.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { config: dir.to_path_buf(), state: dir.join("state") }
    }

    /// The directory of the profiles. It may not exist yet.
    #[must_use]
    pub fn profiles(&self) -> PathBuf {
        self.config.join("profiles")
    }

    /// The state directory of one profile. It may not exist yet.
    #[must_use]
    pub fn state(&self, profile: &Name) -> PathBuf {
        self.state.join(profile.as_str())
    }

    /// [`Self::profiles`], created with mode 0700.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn make_profiles(&self) -> Result<PathBuf, DiskError> {
        let dir = self.profiles();
        disk::make_dir(&self.config)?;
        disk::make_private_dir(&dir)?;
        Ok(dir)
    }

    /// [`Self::state`], created with mode 0700.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn make_state(&self, profile: &Name) -> Result<PathBuf, DiskError> {
        let dir = self.state(profile);
        disk::make_dir(&self.state)?;
        disk::make_private_dir(&dir)?;
        Ok(dir)
    }

    /// Appends a line to the profile's dead letters (`dead-letters.jsonl` in its state, mode 0600).
    /// It is on disk when this returns the path of that file.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn add_dead_letter(&self, profile: &Name, line: &[u8]) -> Result<PathBuf, DiskError> {
        let path = self.make_state(profile)?.join("dead-letters.jsonl");
        disk::append_private(&path, line)?;
        Ok(path)
    }

    /// Acquires the lock `purpose` of a profile, exclusive among all processes; waits for it. The
    /// system releases it when the holder drops it or dies.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn lock(&self, profile: &Name, purpose: &'static str) -> Result<Lock, DiskError> {
        let path = self.lock_path(profile, purpose)?;
        let file = disk::open_private(&path)?;
        file.lock().map_err(DiskError::at(&path))?;
        Ok(Lock { _file: file })
    }

    /// [`Self::lock`] without waiting; `None` if the lock is taken.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn try_lock(
        &self,
        profile: &Name,
        purpose: &'static str,
    ) -> Result<Option<Lock>, DiskError> {
        let path = self.lock_path(profile, purpose)?;
        let file = disk::open_private(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(DiskError::at(&path)(error)),
        }
    }

    /// The lock file stays after a release: removing it would let two processes hold the lock.
    fn lock_path(&self, profile: &Name, purpose: &'static str) -> Result<PathBuf, DiskError> {
        Ok(self.make_state(profile)?.join(format!("{purpose}.lock")))
    }
}

/// A lock that is held while this value lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}
