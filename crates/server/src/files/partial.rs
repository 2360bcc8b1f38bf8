//! Partial uploads on the local disk.
//!
//! `DIR/files/partial/<user>/<key>` contains the bytes so far; its length is the offset. The state
//! of its hash is in memory ([`super::upload_table`]). After a restart, or a change of the file by
//! another process, the file is read again, in turn ([`super::hash_turns`]).
//!
//! Each open upload is a lease. Beginning the upload again takes over the previous lease, once a
//! write in progress has ended: two connections never write to one file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::contract::{FilesError, Hash, OpenUpload, UploadId};
use super::directory::Disk;
use super::disk_io::{blocking, io_error, lock, remove};
use super::upload_table::{Lease, OpenPartial, PartialEntry};

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
    } else if table.idle.get(&id.key).is_some_and(|one| one.is_as_left(&path)) {
        return false;
    }
    drop(table);
    fs::symlink_metadata(path).is_ok_and(|meta| meta.len() > 0)
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
    let entry = PartialEntry::new(id.user.clone(), lease.clone());
    let mut table = lock(&disk.table);
    let before = table.by_key.insert(id.key, entry);
    let idle = table.idle.remove(&id.key);
    drop(table);
    let kept = before
        .and_then(|before| lock(&before.lease).take())
        .or_else(|| idle.and_then(|one| one.open(&path)));
    let opened = match kept {
        Some(open) if open.is_as_left(&path) => Ok(open),
        _ => disk
            .make_user(&id.user)
            .and_then(|()| OpenPartial::from_disk(&path).map_err(io_error("write", &path))),
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

    async fn write(&mut self, restart: bool, mut data: Vec<u8>) -> Result<Vec<u8>, FilesError> {
        self.with_file(move |disk, _, path, file| {
            if restart {
                file.clear(path)?;
            }
            if disk.room()?.bytes < data.len() as u64 {
                return Err(FilesError::Full);
            }
            file.write(&data).map_err(io_error("write", path))?;
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
                io_error("write", path)(error)
            })
        })
        .await
    }

    async fn publish(&mut self, hash: &Hash) -> Result<(), FilesError> {
        let hash = *hash;
        self.with_file(move |disk, _, path, file| {
            // Only the sealed file is placed, and no other that has its name by now.
            if !file.is_as_left(path) {
                return Err(FilesError::Taken);
            }
            disk.publish(path, &hash)
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
