//! Uploads on the local disk until they are whole.
//!
//! `DIR/files/partial/<user>/<key>` holds what has come so far; its length is the offset. The hash
//! of it is kept in memory while somebody writes and for a while after, so that a line that was cut
//! goes on at once; after a restart, and if anybody else has touched the file, it is read again.
//!
//! Each open upload is a lease. Beginning an upload anew takes over the lease of the one before,
//! once the write that may be under way has ended: two lines never write to one file.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};

use async_trait::async_trait;
use rustix::fs::OFlags;

use super::disk::{Disk, blocking, io, lock, remove};
use super::{FilesError, Hash, Upload, UploadId};
use crate::private::FILE_MODE;

/// Uploads nobody has open whose hash is remembered. Each costs some 2 KiB and a descriptor.
const REMEMBERED: usize = 64;
/// Read at a time to hash what is there, bytes: it is still in the processor's cache then.
pub(super) const READ: usize = 256 * 1024;

/// The file of an upload as we left it. `None`: somebody else has taken it.
type Lease = Arc<Mutex<Option<Open>>>;

/// Who has what open.
#[derive(Default)]
pub(super) struct Table {
    by_key: HashMap<Hash, Entry>,
    next: u64,
}

struct Entry {
    lease: Lease,
    open: bool,
    /// The order in which they were let go.
    left: u64,
}

impl Entry {
    /// Takes the file, so that what a line that has gone left to do finds none. `false`: it is at
    /// it.
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

    /// Forgets what nobody has open or still writes to. `false`: somebody does.
    pub(super) fn forget(&mut self, key: &Hash) -> bool {
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
            // Or the next time.
            self.forget(&oldest);
        }
    }
}

/// A file that is written, with the hash of all that is in it.
struct Open {
    file: File,
    hasher: blake3::Hasher,
    at: u64,
    stamp: Stamp,
}

/// Tells whether a file is as we left it: device, inode, size, time of the last write.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

pub(super) fn stamp(meta: &fs::Metadata) -> Stamp {
    (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(FILE_MODE);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

impl Open {
    /// Opens or makes the file and reads what is in it.
    fn from_disk(path: &Path) -> std::io::Result<Self> {
        let mut file = options().create(true).truncate(false).open(path)?;
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

    /// Begins with nothing, in another file: this one may have the name of its content as well,
    /// and then is everybody's.
    fn clear(&mut self, path: &Path) -> Result<(), FilesError> {
        remove(path)?;
        self.file = options().create_new(true).open(path).map_err(io("write", path))?;
        self.hasher.reset();
        self.at = 0;
        self.stamp = stamp(&self.file.metadata().map_err(io("read", path))?);
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all_at(data, self.at);
        if let Err(error) = written {
            // A part of it may be there; what is hashed stands.
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

/// An upload that a line has open.
struct Writer {
    disk: Arc<Disk>,
    id: UploadId,
    path: PathBuf,
    lease: Lease,
    found: (u64, Hash),
}

/// Opens an upload. Blocks while another line's last write ends, and while what is there is read.
pub(super) fn begin(disk: Arc<Disk>, id: UploadId) -> Result<Box<dyn Upload>, FilesError> {
    let path = disk.partial(&id.user, &id.key);
    let lease = Lease::default();
    // Held until it is opened: who takes it over meanwhile waits for that.
    let mut mine = lock(&lease);
    let entry = Entry { lease: lease.clone(), open: true, left: 0 };
    let before = lock(&disk.table).by_key.insert(id.key, entry);
    let kept = before.and_then(|before| lock(&before.lease).take());
    let opened = match kept {
        Some(open) if open.is_as_left(&path) => Ok(open),
        _ => disk
            .make_user(&id.user)
            .and_then(|()| Open::from_disk(&path).map_err(io("write", &path))),
    };
    let opened = opened.and_then(|mut open| {
        // Larger than it may be: not ours.
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
    // Lets go of it, if there was an error.
    let writer = Writer { disk, id, path, lease, found };
    result.map(|()| Box::new(writer) as Box<dyn Upload>)
}

impl Writer {
    /// Does something with the file on a thread that may wait for it.
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk, &UploadId, &Path, &mut Open) -> Result<T, FilesError> + Send + 'static,
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
impl Upload for Writer {
    fn found(&self) -> (u64, Hash) {
        self.found
    }

    async fn write(&mut self, anew: bool, mut data: Vec<u8>) -> Result<Vec<u8>, FilesError> {
        self.with_file(move |disk, _, path, file| {
            if anew {
                file.clear(path)?;
            }
            if disk.room()? < data.len() as u64 {
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
                // What could not be written counts as written from now on: a second sync would
                // say so. So all of it has to come again.
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
            // What is placed is what was sealed, and no other file that has its name by now.
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
            // Somebody else's by now.
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
