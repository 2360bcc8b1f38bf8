//! The directory of files on the local disk: its layout, its free space, its quarantine.
//!
//! `DIR/files/<2 hex>/<hash>` is content, `DIR/files/partial/<user>/<key>` a partial upload. Files
//! have mode 0600 in directories of 0700. Content gets its name as a second hard link to a synced
//! file, and then the directory is synced. A name therefore implies complete content, and the same
//! content exists once.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use rustix::fs::StatVfs;
use twinlock_core::id::Name;

use super::contract::{DiskRoom, FilesError, Hash, Partial};
use super::disk_io::{io_error, lock, remove};
use super::prefix::Prefixes;
use super::upload_table::Table;
use crate::private;

/// The directory of partial uploads. Directories of content have names of two characters.
const PARTIAL: &str = "partial";
/// The directory of quarantined content.
const QUARANTINE: &str = "unreferenced";

/// The default reserve: the smaller of a number of bytes and a fraction (1/20) of the disk.
const RESERVE: u64 = 1 << 30;
const RESERVE_PART: u64 = 20;
/// Inodes that are reserved for the record, its WAL and the log: the smaller of a number and a
/// fraction (1/100) of all.
const INODES: u64 = 1000;
const INODES_PART: u64 = 100;

/// A directory of files.
pub(super) struct Disk {
    dir: PathBuf,
    reserve: Option<u64>,
    /// Directories that are known to be on disk: one for each user and for each first byte.
    made: Mutex<HashSet<PathBuf>>,
    pub(super) table: Mutex<Table>,
    pub(super) prefixes: Prefixes,
}

impl Disk {
    /// Opens the directory, which is created if missing.
    pub(super) fn open(dir: PathBuf, reserve: Option<u64>) -> Result<Self, private::Failed> {
        // Separately, so that an error names the path at fault.
        private::make_directory(&dir)?;
        private::make_directory(&dir.join(PARTIAL))?;
        private::check_directory(&dir)?;
        private::check_directory(&dir.join(PARTIAL))?;
        let (made, table, prefixes) = Default::default();
        Ok(Self { dir, reserve, made, table, prefixes })
    }

    /// The content whose hash begins with this byte.
    pub(super) fn hashes(&self, first: u8) -> Result<Vec<Hash>, FilesError> {
        let paths = entries(&self.dir.join(HEXLOWER.encode(&[first])))?;
        Ok(paths.iter().filter_map(|(path, _)| hash_of(path)).collect())
    }

    pub(super) fn partial(&self, user: &Name, key: &Hash) -> PathBuf {
        self.user(user).join(HEXLOWER.encode(key))
    }

    /// The directory of a user's partial uploads. The characters of a name are harmless in a path,
    /// and none begins with a dot.
    fn user(&self, user: &Name) -> PathBuf {
        self.dir.join(PARTIAL).join(user.as_str())
    }

    pub(super) fn make_user(&self, user: &Name) -> Result<(), FilesError> {
        self.make(&self.user(user))
    }

    /// Creates a directory. An existing one may not be durable yet, if its creator was killed, so
    /// each is synced once.
    fn make(&self, dir: &Path) -> Result<(), FilesError> {
        if !(lock(&self.made).contains(dir) && dir.is_dir()) {
            private::make_directory(dir)?;
            lock(&self.made).insert(dir.to_owned());
        }
        Ok(())
    }

    pub(super) fn content(&self, hash: &Hash) -> PathBuf {
        let name = HEXLOWER.encode(hash);
        self.dir.join(name.get(..2).unwrap_or_default()).join(&name)
    }

    /// The space that may still be used. Fast enough to call before each write.
    pub(super) fn room(&self) -> Result<DiskRoom, FilesError> {
        let disk =
            rustix::fs::statvfs(&self.dir).map_err(|e| io_error("read", &self.dir)(e.into()))?;
        Ok(room_of(&disk, self.reserve))
    }

    /// Gives a synced file the name of its content. Existing content is replaced: the hash of the
    /// new file was just verified, and the old one may have been damaged since.
    pub(super) fn publish(&self, partial: &Path, hash: &Hash) -> Result<(), FilesError> {
        let path = self.content(hash);
        let dir = path.parent().unwrap_or(&self.dir);
        self.make(dir)?;
        match fs::hard_link(partial, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let mut second = partial.as_os_str().to_owned();
                second.push(".second");
                let second = PathBuf::from(second);
                remove(&second)?;
                fs::hard_link(partial, &second).map_err(io_error("write", &second))?;
                fs::rename(&second, &path).map_err(io_error("write", &path))?;
                // The rename does nothing if both are the same file.
                remove(&second)?;
            }
            // A file system without hard links: a crash before the entry is recorded loses the
            // upload.
            Err(_) => fs::rename(partial, &path).map_err(io_error("write", &path))?,
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("write", dir))
    }

    pub(super) fn partials(&self, user: &Name) -> Result<Vec<Partial>, FilesError> {
        let mut all = Vec::new();
        for (path, meta) in entries(&self.user(user))? {
            let Some(key) = hash_of(&path) else { continue };
            let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let open = lock(&self.table).is_open(&key);
            all.push(Partial { key, bytes: meta.len(), modified, open });
        }
        Ok(all)
    }

    /// Discards an upload that is not in use. `begin` enters the table before it opens the file, so
    /// an upload that is being opened stays.
    pub(super) fn discard(&self, path: &Path, key: &Hash) -> Result<bool, FilesError> {
        let mut table = lock(&self.table);
        if !table.forget(key) {
            return Ok(false);
        }
        remove(path)?;
        Ok(true)
    }

    fn quarantine_path(&self, hash: &Hash) -> PathBuf {
        self.dir.join(QUARANTINE).join(HEXLOWER.encode(hash))
    }

    pub(super) fn quarantine(&self, hash: &Hash) -> Result<(), FilesError> {
        let (from, to) = (self.content(hash), self.quarantine_path(hash));
        self.make(&self.dir.join(QUARANTINE))?;
        // The age in quarantine counts from now on.
        let opened = private::open(OpenOptions::new().write(true), &from);
        let touched = opened.and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(io_error("write", &from))?;
        fs::rename(&from, &to).map_err(io_error("write", &to))
    }

    pub(super) fn restore(&self, hash: &Hash) -> Result<bool, FilesError> {
        let (from, to) = (self.quarantine_path(hash), self.content(hash));
        if let Some(dir) = to.parent() {
            self.make(dir)?;
        }
        match fs::rename(&from, &to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("write", &to)(error)),
        }
    }

    pub(super) fn expire_quarantine(&self, age: Duration) -> Result<usize, FilesError> {
        let now = SystemTime::now();
        let mut removed = 0;
        for (path, meta) in entries(&self.dir.join(QUARANTINE))? {
            if is_older(&meta, now, age) {
                remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(super) fn expire(&self, age: Duration) -> Result<usize, FilesError> {
        let now = SystemTime::now();
        let mut removed = 0;
        for (user, _) in entries(&self.dir.join(PARTIAL))? {
            for (path, meta) in entries(&user)? {
                if !is_older(&meta, now, age) {
                    continue;
                }
                match hash_of(&path) {
                    Some(key) => removed += usize::from(self.discard(&path, &key)?),
                    // Left by a crash between two steps of `publish`.
                    None => remove(&path)?,
                }
            }
        }
        Ok(removed)
    }
}

/// Whether the file was last modified at least `age` before `now`.
fn is_older(meta: &fs::Metadata, now: SystemTime, age: Duration) -> bool {
    meta.modified().is_ok_and(|at| now.duration_since(at).unwrap_or_default() >= age)
}

/// Free bytes and inodes of a disk beyond the reserve.
pub(super) fn room_of(disk: &StatVfs, reserve: Option<u64>) -> DiskRoom {
    let all = disk.f_blocks.saturating_mul(disk.f_frsize);
    let reserve = reserve.unwrap_or_else(|| RESERVE.min(all / RESERVE_PART));
    let bytes = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(reserve);
    // Some file systems create inodes on demand and report none.
    let files = match disk.f_files {
        0 => u64::MAX,
        all => disk.f_favail.saturating_sub(INODES.min(all / INODES_PART)),
    };
    DiskRoom { bytes, files, reserve }
}

/// The files in a directory; empty if it does not exist.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>, FilesError> {
    let mut all = Vec::new();
    let list = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
        list => list.map_err(io_error("read", dir))?,
    };
    for entry in list {
        let entry = entry.map_err(io_error("read", dir))?;
        match entry.metadata() {
            Ok(meta) => all.push((entry.path(), meta)),
            // It was removed since the listing.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("read", &entry.path())(error)),
        }
    }
    Ok(all)
}

fn hash_of(path: &Path) -> Option<Hash> {
    HEXLOWER.decode(path.file_name()?.to_str()?.as_bytes()).ok()?.try_into().ok()
}
