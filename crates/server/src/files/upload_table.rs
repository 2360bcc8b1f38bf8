//! The state of partial uploads in memory: their leases, and the hashes of the bytes on disk.
//!
//! The state of a hash is kept as long as the upload exists, so a resumed upload reads nothing. It
//! is not kept on disk: an upload is synced only at its end, so after a power cut only a read shows
//! whether the bytes exist.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};

use twinlock_core::id::Name;

use super::contract::{FilesError, Hash};
use super::disk_io::{READ, Stamp, io_error, remove, stamp};
use crate::private::{self, FILE_MODE};

/// Uploads without a connection whose file is kept open. Each costs about 2 KiB and a descriptor.
const REMEMBERED: usize = 64;
/// Further uploads whose hash is kept; each costs about 2 KiB. Beyond that, the oldest of the user
/// with the most is dropped; a user has 256 partial uploads by default.
const MAX_IDLE: usize = 4096;

/// The file of an upload as this server left it. `None`: another lease has taken it.
pub(super) type Lease = Arc<Mutex<Option<OpenPartial>>>;

/// Open and remembered uploads.
#[derive(Default)]
pub(super) struct Table {
    pub(super) by_key: HashMap<Hash, PartialEntry>,
    pub(super) idle: HashMap<Hash, IdleUpload>,
    next: u64,
}

/// The hash of an upload whose file is closed.
pub(super) struct IdleUpload {
    user: Name,
    hasher: blake3::Hasher,
    at: u64,
    stamp: Stamp,
    /// Order of release.
    left: u64,
}

impl IdleUpload {
    pub(super) fn is_as_left(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| stamp(&meta) == self.stamp)
    }

    /// Opens the file again. `None`: it is another file, or has changed.
    pub(super) fn open(self, path: &Path) -> Option<OpenPartial> {
        let Self { hasher, at, stamp: known, .. } = self;
        let file = private::open(options().create(false), path).ok()?;
        let stamp = stamp(&file.metadata().ok()?);
        (stamp == known).then_some(OpenPartial { file, hasher, at, stamp })
    }
}

/// An upload in the table.
pub(super) struct PartialEntry {
    user: Name,
    pub(super) lease: Lease,
    open: bool,
    /// Order of release.
    left: u64,
}

impl PartialEntry {
    /// An upload that a connection opens.
    pub(super) fn new(user: Name, lease: Lease) -> Self {
        Self { user, lease, open: true, left: 0 }
    }

    /// Takes the file, so that pending work of a closed connection finds none. `false`: the work is
    /// in progress.
    fn take(&self) -> bool {
        match self.lease.try_lock() {
            Ok(mut file) => drop(file.take()),
            Err(TryLockError::Poisoned(file)) => drop(file.into_inner().take()),
            Err(TryLockError::WouldBlock) => return false,
        }
        true
    }
}

impl Table {
    pub(super) fn is_open(&self, key: &Hash) -> bool {
        self.by_key.get(key).is_some_and(|entry| entry.open)
    }

    /// Forgets an upload. `false`: a connection has it open or still writes to it.
    pub(super) fn forget(&mut self, key: &Hash) -> bool {
        self.idle.remove(key);
        let Some(entry) = self.by_key.get(key) else { return true };
        let forgotten = !entry.open && entry.take();
        if forgotten {
            self.by_key.remove(key);
        }
        forgotten
    }

    pub(super) fn is_current(&self, key: &Hash, lease: &Lease) -> bool {
        self.by_key.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.lease, lease))
    }

    pub(super) fn leave(&mut self, key: &Hash, lease: &Lease) {
        if !self.is_current(key, lease) {
            return;
        }
        self.next += 1;
        if let Some(entry) = self.by_key.get_mut(key) {
            (entry.open, entry.left) = (false, self.next);
        }
        let left = || self.by_key.iter().filter(|(_, entry)| !entry.open);
        if left().count() > REMEMBERED
            && let Some(oldest) = left().min_by_key(|(_, e)| e.left).map(|(key, _)| *key)
        {
            // If it is busy, the next release retries.
            self.keep_idle(&oldest);
        }
    }

    /// Closes the file of an upload without a connection, and keeps its hash.
    fn keep_idle(&mut self, key: &Hash) {
        let Some(entry) = self.by_key.get(key) else { return };
        let open = match entry.lease.try_lock() {
            Ok(mut open) => open.take(),
            Err(TryLockError::Poisoned(open)) => open.into_inner().take(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(PartialEntry { user, left, .. }) = self.by_key.remove(key) else { return };
        if let Some(OpenPartial { hasher, at, stamp, .. }) = open {
            self.idle.insert(*key, IdleUpload { user, hasher, at, stamp, left });
        }
        if self.idle.len() > MAX_IDLE {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        let mut of = HashMap::<&Name, usize>::new();
        for one in self.idle.values() {
            *of.entry(&one.user).or_default() += 1;
        }
        let Some(user) = of.into_iter().max_by_key(|(_, n)| *n).map(|(user, _)| user.clone())
        else {
            return;
        };
        let theirs = self.idle.iter().filter(|(_, one)| one.user == user);
        if let Some(oldest) = theirs.min_by_key(|(_, one)| one.left).map(|(key, _)| *key) {
            self.idle.remove(&oldest);
        }
    }
}

/// A file that is being written, with the hash of its content.
pub(super) struct OpenPartial {
    pub(super) file: File,
    pub(super) hasher: blake3::Hasher,
    pub(super) at: u64,
    stamp: Stamp,
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

impl OpenPartial {
    /// Opens or creates the file and reads its content.
    pub(super) fn from_disk(path: &Path) -> std::io::Result<Self> {
        let mut file = private::open(options().create(true).truncate(false), path)?;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        let mut buffer = vec![0; READ];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(buffer.get(..n).unwrap_or_default());
                    at += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let stamp = stamp(&file.metadata()?);
        Ok(Self { file, hasher, at, stamp })
    }

    pub(super) fn is_as_left(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| stamp(&meta) == self.stamp)
    }

    /// Restarts with an empty, new file: the current one may also have the name of its content, and
    /// is then shared.
    pub(super) fn clear(&mut self, path: &Path) -> Result<(), FilesError> {
        remove(path)?;
        self.file =
            private::open(options().create_new(true), path).map_err(io_error("write", path))?;
        self.hasher.reset();
        self.at = 0;
        self.stamp = stamp(&self.file.metadata().map_err(io_error("read", path))?);
        Ok(())
    }

    pub(super) fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all_at(data, self.at);
        if let Err(error) = written {
            // Part of the data may be written; the hashed bytes remain.
            self.file.set_len(self.at)?;
            self.stamp = stamp(&self.file.metadata()?);
            return Err(error);
        }
        self.hasher.update(data);
        self.at += data.len() as u64;
        self.stamp = stamp(&self.file.metadata()?);
        Ok(())
    }
}
