//! File storage on the local disk: work on a directory of files, on threads that may block.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use twinlock_core::id::Name;
use twinlock_store::FileRef;

use super::contract::{Blob, Blobs, DiskRoom, FilesError, Hash, OpenUpload, Partial, UploadId};
use super::directory::Disk;
use super::disk_io::{blocking, io_error, remove};
use super::hash_turns::{HashTurn, HashTurns};
use super::partial;
use crate::private;

/// A shared handle to a directory of files.
pub(crate) struct LocalDisk(pub(super) Arc<Disk>);

impl LocalDisk {
    /// Opens the files below `dir`, which is created if missing. `reserve`: bytes of the disk that
    /// stay free; `None`: the smaller of 1 GiB and 5 %.
    pub(crate) fn open(dir: PathBuf, reserve: Option<u64>) -> Result<Self, private::Failed> {
        Ok(Self(Arc::new(Disk::open(dir, reserve)?)))
    }
}

#[async_trait]
impl Blobs for LocalDisk {
    async fn begin(
        &self,
        id: &UploadId,
        turns: &HashTurns,
    ) -> Result<Box<dyn OpenUpload>, FilesError> {
        let (disk, id) = (self.0.clone(), id.clone());
        let (looked, of) = (disk.clone(), id.clone());
        let turn = match blocking(move || Ok(partial::must_be_read(&looked, &of))).await? {
            true => turns.take(&id.user).await,
            false => None,
        };
        blocking(move || {
            let begun = partial::begin(disk, id);
            drop(turn);
            begun
        })
        .await
    }

    async fn partials(&self, user: &Name) -> Result<Vec<Partial>, FilesError> {
        let (disk, user) = (self.0.clone(), user.clone());
        blocking(move || disk.partials(&user)).await
    }

    async fn discard(&self, user: &Name, partial: &Partial) -> Result<(), FilesError> {
        let (disk, path, key) = (self.0.clone(), self.0.partial(user, &partial.key), partial.key);
        blocking(move || disk.discard(&path, &key).map(|_| ())).await
    }

    async fn expire(&self, age: Duration) -> Result<usize, FilesError> {
        let disk = self.0.clone();
        blocking(move || disk.expire(age)).await
    }

    async fn open(&self, file: &FileRef) -> Result<Box<dyn Blob>, FilesError> {
        let (disk, path, size) = (self.0.clone(), self.0.content(&file.hash), file.size);
        blocking(move || {
            let damaged = |what| FilesError::Damaged(format!("{}: {what}", path.display()));
            let opened = private::open(OpenOptions::new().read(true), &path);
            let file = opened.map_err(|error| match error.kind() {
                ErrorKind::NotFound => damaged("it is missing".to_owned()),
                _ => io_error("read", &path)(error),
            })?;
            let found = file.metadata().map_err(io_error("read", &path))?.len();
            if found != size {
                return Err(damaged(format!("it has {found} bytes of {size}")));
            }
            Ok(Box::new(ContentFile { disk, file: Arc::new(file), path }) as Box<dyn Blob>)
        })
        .await
    }

    async fn remove(&self, hash: &Hash) -> Result<(), FilesError> {
        let path = self.0.content(hash);
        blocking(move || remove(&path)).await
    }

    async fn quarantine(&self, hash: &Hash) -> Result<(), FilesError> {
        let (disk, hash) = (self.0.clone(), *hash);
        blocking(move || disk.quarantine(&hash)).await
    }

    async fn restore(&self, hash: &Hash) -> Result<bool, FilesError> {
        let (disk, hash) = (self.0.clone(), *hash);
        blocking(move || disk.restore(&hash)).await
    }

    async fn expire_quarantine(&self, age: Duration) -> Result<usize, FilesError> {
        let disk = self.0.clone();
        blocking(move || disk.expire_quarantine(age)).await
    }

    async fn hashes(&self, first: u8) -> Result<Vec<Hash>, FilesError> {
        let disk = self.0.clone();
        blocking(move || disk.hashes(first)).await
    }

    async fn room(&self) -> Result<DiskRoom, FilesError> {
        let disk = self.0.clone();
        blocking(move || disk.room()).await
    }
}

/// Open content.
struct ContentFile {
    disk: Arc<Disk>,
    file: Arc<File>,
    path: PathBuf,
}

impl ContentFile {
    async fn with_file<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, FilesError> {
        let (file, path) = (self.file.clone(), self.path.clone());
        blocking(move || {
            work(&file).map_err(|error| FilesError::Damaged(format!("{}: {error}", path.display())))
        })
        .await
    }
}

#[async_trait]
impl Blob for ContentFile {
    async fn prefix_hash(&self, length: u64, turn: Option<HashTurn>) -> Result<Hash, FilesError> {
        let disk = self.disk.clone();
        self.with_file(move |file| {
            let hash = disk.prefixes.hash(file, length);
            drop(turn);
            hash
        })
        .await
    }

    async fn read(
        &self,
        offset: u64,
        length: usize,
        mut buffer: Vec<u8>,
    ) -> Result<Vec<u8>, FilesError> {
        self.with_file(move |file| {
            buffer.resize(length, 0);
            file.read_exact_at(&mut buffer, offset)?;
            Ok(buffer)
        })
        .await
    }
}
