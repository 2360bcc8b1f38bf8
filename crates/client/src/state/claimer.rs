//! Claimers of outbox messages: one file lock for each process.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use twinlock_core::id::Name;

use super::error::StateError;
use crate::disk::{self, DiskError};
use crate::home::Home;

/// The lock for opening the database and creating claimers.
pub(super) const OPENING: &str = "opening";

/// A process that claims messages, identified by a locked file: the kernel releases the lock when
/// the process dies. A lease with a timeout would make the next process wait after a kill.
#[derive(Debug)]
pub(super) struct Claimer {
    pub(super) name: String,
    path: PathBuf,
    _file: File,
}

impl Claimer {
    pub(super) fn new(home: &Home, profile: &Name) -> Result<Self, StateError> {
        // Excludes a sweep between creating the file and locking it.
        let _opening = home.lock(profile, OPENING)?;
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|error| StateError::Database(error.to_string()))?;
        let name = data_encoding::HEXLOWER.encode(&id);
        let path = Self::path(&home.state(profile), &name);
        let file = disk::open_private(&path)?;
        file.lock().map_err(DiskError::at(&path))?;
        Ok(Self { name, path, _file: file })
    }

    fn path(dir: &Path, name: &str) -> PathBuf {
        dir.join(format!("claim-{name}.lock"))
    }

    /// Removes the files of killed claimers. The caller holds the lock [`OPENING`].
    pub(super) fn sweep(dir: &Path) -> Result<(), DiskError> {
        for entry in fs::read_dir(dir).map_err(DiskError::at(dir))? {
            let file = entry.map_err(DiskError::at(dir))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_prefix("claim-"));
            if let Some(name) = name.and_then(|name| name.strip_suffix(".lock")) {
                Self::is_alive(dir, name);
            }
        }
        Ok(())
    }

    /// Whether the claimer `name` is alive; removes the file of a dead one. In doubt it counts as
    /// dead: a claim saves work and decides nothing.
    pub(super) fn is_alive(dir: &Path, name: &str) -> bool {
        let path = Self::path(dir, name);
        let Ok(file) = File::open(&path) else { return false };
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return true;
        }
        // If the removal fails, the next check repeats it.
        fs::remove_file(&path).ok();
        false
    }
}

impl Drop for Claimer {
    fn drop(&mut self) {
        // As in `is_alive`.
        fs::remove_file(&self.path).ok();
    }
}
