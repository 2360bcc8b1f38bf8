//! Partial uploads on the local disk.
//!
//! `DIR/files/partial/<user>/<key>` contains the bytes so far; its length is the offset. The state
//! of its hash is kept in memory as long as the upload exists, so a resumed upload reads nothing.
//! After a restart, or a change of the file by another process, it is read again, in turn
//! ([`super::HashTurns`]). The state is not kept on disk: an upload is synced only at its end, so
//! after a power cut only a read shows whether the bytes exist.
//!
//! Each open upload is a lease. Beginning the upload again takes over the previous lease, once a
//! write in progress has ended: two connections never write to one file.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};

use async_trait::async_trait;
use twinlock_core::id::Name;

use super::disk::Disk;
use super::disk_io::{READ, Stamp, blocking, io, lock, remove, stamp};
use super::{FilesError, Hash, OpenUpload, UploadId};
use crate::private::{self, FILE_MODE};

/// Uploads without a connection whose file is kept open. Each costs about 2 KiB and a descriptor.
const REMEMBERED: usize = 64;
/// Further uploads whose hash is kept; each costs about 2 KiB. Beyond that, the oldest of the user
/// with the most is dropped; a user has 256 partial uploads by default.
const PUT_AWAY: usize = 4096;

/// The file of an upload as this server left it. `None`: another lease has taken it.
type Lease = Arc<Mutex<Option<OpenPartial>>>;

/// Open and remembered uploads.
#[derive(Default)]
pub(super) struct Table {
    by_key: HashMap<Hash, PartialEntry>,
    put_away: HashMap<Hash, PutAway>,
    next: u64,
}

/// The hash of an upload whose file is closed.
struct PutAway {
    user: Name,
    hasher: blake3::Hasher,
    at: u64,
    stamp: Stamp,
    /// Order of release.
    left: u64,
}

impl PutAway {
    fn is_as_left(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| stamp(&meta) == self.stamp)
    }

    /// Opens the file again. `None`: it is another file, or has changed.
    fn open(self, path: &Path) -> Option<OpenPartial> {
        let Self { hasher, at, stamp: known, .. } = self;
        let file = private::open(options().create(false), path).ok()?;
        let stamp = stamp(&file.metadata().ok()?);
        (stamp == known).then_some(OpenPartial { file, hasher, at, stamp })
    }
}

struct PartialEntry {
    user: Name,
    lease: Lease,
    open: bool,
    /// Order of release.
    left: u64,
}

impl PartialEntry {
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
        self.put_away.remove(key);
        let Some(entry) = self.by_key.get(key) else { return true };
        let forgotten = !entry.open && entry.take();
        if forgotten {
            self.by_key.remove(key);
        }
        forgotten
    }

    fn is_current(&self, key: &Hash, lease: &Lease) -> bool {
        self.by_key.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.lease, lease))
    }

    fn leave(&mut self, key: &Hash, lease: &Lease) {
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
            self.put_away(&oldest);
        }
    }

    /// Closes the file of an upload without a connection, and keeps its hash.
    fn put_away(&mut self, key: &Hash) {
        let Some(entry) = self.by_key.get(key) else { return };
        let open = match entry.lease.try_lock() {
            Ok(mut open) => open.take(),
            Err(TryLockError::Poisoned(open)) => open.into_inner().take(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Some(PartialEntry { user, left, .. }) = self.by_key.remove(key) else { return };
        if let Some(OpenPartial { hasher, at, stamp, .. }) = open {
            self.put_away.insert(*key, PutAway { user, hasher, at, stamp, left });
        }
        if self.put_away.len() > PUT_AWAY {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        let mut of = HashMap::<&Name, usize>::new();
        for one in self.put_away.values() {
            *of.entry(&one.user).or_default() += 1;
        }
        let Some(user) = of.into_iter().max_by_key(|(_, n)| *n).map(|(user, _)| user.clone())
        else {
            return;
        };
        let theirs = self.put_away.iter().filter(|(_, one)| one.user == user);
        if let Some(oldest) = theirs.min_by_key(|(_, one)| one.left).map(|(key, _)| *key) {
            self.put_away.remove(&oldest);
        }
    }
}

/// Whether beginning this upload reads its existing bytes, or waits for another connection that
/// does. Blocks.
pub(super) fn must_be_read(disk: &Disk, id: &UploadId) -> bool {
    let path = disk.partial(&id.user, &id.key);
    let table = lock(&disk.table);
    if let Some(entry) = table.by_key.get(&id.key) {
        match entry.lease.try_lock() {
            Ok(open) if open.as_ref().is_some_and(|open| open.is_as_left(&path)) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    } else if table.put_away.get(&id.key).is_some_and(|one| one.is_as_left(&path)) {
        return false;
    }
    drop(table);
    fs::symlink_metadata(path).is_ok_and(|meta| meta.len() > 0)
}

/// A file that is being written, with the hash of its content.
struct OpenPartial {
    file: File,
    hasher: blake3::Hasher,
    at: u64,
    stamp: Stamp,
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options
}

impl OpenPartial {
    /// Opens or creates the file and reads its content.
    fn from_disk(path: &Path) -> std::io::Result<Self> {
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

    fn is_as_left(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|meta| stamp(&meta) == self.stamp)
    }

    /// Restarts with an empty, new file: the current one may also have the name of its content, and
    /// is then shared.
    fn clear(&mut self, path: &Path) -> Result<(), FilesError> {
        remove(path)?;
        self.file = private::open(options().create_new(true), path).map_err(io("write", path))?;
        self.hasher.reset();
        self.at = 0;
        self.stamp = stamp(&self.file.metadata().map_err(io("read", path))?);
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
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

/// An upload that a connection has open.
struct Writer {
    disk: Arc<Disk>,
    id: UploadId,
    path: PathBuf,
    lease: Lease,
    found: (u64, Hash),
}

/// Opens an upload. Blocks while another connection's last write ends, and while the existing bytes
/// are read.
pub(super) fn begin(disk: Arc<Disk>, id: UploadId) -> Result<Box<dyn OpenUpload>, FilesError> {
    let path = disk.partial(&id.user, &id.key);
    let lease = Lease::default();
    // Locked until the file is open: a connection that takes over the lease waits for that.
    let mut mine = lock(&lease);
    let entry = PartialEntry { user: id.user.clone(), lease: lease.clone(), open: true, left: 0 };
    let mut table = lock(&disk.table);
    let before = table.by_key.insert(id.key, entry);
    let put_away = table.put_away.remove(&id.key);
    drop(table);
    let kept = before
        .and_then(|before| lock(&before.lease).take())
        .or_else(|| put_away.and_then(|one| one.open(&path)));
    let opened = match kept {
        Some(open) if open.is_as_left(&path) => Ok(open),
        _ => disk
            .make_user(&id.user)
            .and_then(|()| OpenPartial::from_disk(&path).map_err(io("write", &path))),
    };
    let opened = opened.and_then(|mut open| {
        // Larger than the offer: not written by this server.
        if open.at > id.size {
            open.clear(&path)?;
        }
        Ok(open)
    });
    let found = match &opened {
        Ok(open) => (open.at, *open.hasher.finalize().as_bytes()),
        Err(_) => (0, [0; 32]),
    };
    let result = opened.map(|open| *mine = Some(open));
    drop(mine);
    // After an error, its drop releases the upload.
    let writer = Writer { disk, id, path, lease, found };
    result.map(|()| Box::new(writer) as Box<dyn OpenUpload>)
}

impl Writer {
    /// Runs `work` with the file, on a thread that may block.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk, &UploadId, &Path, &mut OpenPartial) -> Result<T, FilesError>
        + Send
        + 'static,
    ) -> Result<T, FilesError> {
        let (disk, id, path) = (self.disk.clone(), self.id.clone(), self.path.clone());
        let lease = self.lease.clone();
        blocking(move || {
            let mut file = lock(&lease);
            work(&disk, &id, &path, file.as_mut().ok_or(FilesError::Taken)?)
        })
        .await
    }
}

#[async_trait]
impl OpenUpload for Writer {
    fn found(&self) -> (u64, Hash) {
        self.found
    }

    async fn write(&mut self, anew: bool, mut data: Vec<u8>) -> Result<Vec<u8>, FilesError> {
        self.with_file(move |disk, _, path, file| {
            if anew {
                file.clear(path)?;
            }
            if disk.room()?.bytes < data.len() as u64 {
                return Err(FilesError::Full);
            }
            file.write(&data).map_err(io("write", path))?;
            data.clear();
            Ok(data)
        })
        .await
    }

    async fn seal(&mut self, hash: &Hash) -> Result<(), FilesError> {
        let hash = *hash;
        self.with_file(move |_, id, path, file| {
            if file.at != id.size || file.hasher.finalize() != hash {
                return Err(FilesError::Hash);
            }
            file.file.sync_all().map_err(|error| {
                // The system counts the lost bytes as written, and a second sync would succeed. The
                // client must therefore send all of them again.
                if let Err(error) = file.clear(path) {
                    tracing::error!(%error, path = %path.display(), "an upload that was not synced is still there");
                }
                io("write", path)(error)
            })
        })
        .await
    }

    async fn place(&mut self, hash: &Hash) -> Result<(), FilesError> {
        let hash = *hash;
        self.with_file(move |disk, _, path, file| {
            // Only the sealed file is placed, and no other that has its name by now.
            if !file.is_as_left(path) {
                return Err(FilesError::Taken);
            }
            disk.place(path, &hash)
        })
        .await
    }

    async fn discard(self: Box<Self>) -> Result<(), FilesError> {
        blocking(move || {
            let mut table = lock(&self.disk.table);
            // Another connection has taken it over.
            if !table.is_current(&self.id.key, &self.lease) {
                return Ok(());
            }
            table.by_key.remove(&self.id.key);
            remove(&self.path)
        })
        .await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.disk.table).leave(&self.id.key, &self.lease);
    }
}
