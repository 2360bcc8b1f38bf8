//! The file under construction, `.NAME.part`, renamed when its hash matches.
//!
//! The received part is kept, and the next attempt resumes after it; first the server compares its
//! hash.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions, TryLockError};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use blake3::Hasher;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::destination::Destination;
use super::error::TransferError;
use super::source::hash_some;
use crate::disk::DiskError;

/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;
/// Only the owner has access to an incomplete file.
const PART_MODE: u32 = 0o600;
/// Attempts to open the part file while other processes rename or remove it.
const TRIES: usize = 5;

/// Properties of the complete file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FinalAttributes {
    /// The sender's mode; 0 if unknown.
    pub(super) mode: u32,
    /// Modification time, ms since 1970 UTC; 0 if unknown.
    pub(super) modified_ms: u64,
    /// Whether this user sent it.
    pub(super) own: bool,
}

/// A part file.
#[derive(Debug)]
pub(super) struct PartFile {
    dir: File,
    name: OsString,
    path: PathBuf,
    file: File,
    place: Destination,
    written: u64,
    hasher: Hasher,
}

impl PartFile {
    /// Creates the part file, or opens and hashes that of an earlier attempt. Discards the part if
    /// it has more than `size` bytes. Blocks.
    pub(super) fn open(place: Destination, size: u64) -> Result<Self, TransferError> {
        place.check()?;
        let dir = place.open_dir()?;
        let name = part_name(&place.name);
        let path = place.dir_path().join(&name);
        let file = open_part(&dir, &name, &path)?;
        let mut part = Self { dir, name, path, file, place, written: 0, hasher: Hasher::new() };
        part.measure(size)?;
        Ok(part)
    }

    fn measure(&mut self, size: u64) -> Result<(), TransferError> {
        let at = || DiskError::at(&self.path);
        let there = self.file.metadata().map_err(at())?.len();
        if there > size {
            return self.rewind();
        }
        self.written = hash_some(&mut self.file, &mut self.hasher, there).map_err(at())?;
        Ok(())
    }

    /// Number of bytes in the part.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// BLAKE3 hash of the part.
    pub(super) fn hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }

    /// Discards the bytes of the part.
    pub(super) fn rewind(&mut self) -> Result<(), TransferError> {
        let at = || DiskError::at(&self.path);
        self.file.set_len(0).map_err(at())?;
        self.file.seek(SeekFrom::Start(0)).map_err(at())?;
        self.written = 0;
        self.hasher = Hasher::new();
        Ok(())
    }

    /// Appends to the part. Blocks.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        self.file.write_all(bytes).map_err(DiskError::at(&self.path))?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Gives the complete file its mode, its time and its name; it is on disk when this returns.
    /// Blocks.
    pub(super) fn finish(self, finish: FinalAttributes) -> Result<PathBuf, TransferError> {
        let at = || DiskError::at(&self.path);
        let mode = final_mode(finish, self.place.keep_mode, umask());
        self.file.set_permissions(Permissions::from_mode(mode)).map_err(at())?;
        if finish.modified_ms > 0 {
            let modified =
                SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(finish.modified_ms));
            if let Some(modified) = modified {
                self.file.set_modified(modified).map_err(at())?;
            }
        }
        self.file.sync_all().map_err(at())?;
        let renamed = if self.place.force {
            // Another process may have created something else there since the check.
            let there = rustix::fs::statat(&self.dir, &self.place.name, AtFlags::SYMLINK_NOFOLLOW);
            let kind = there.map(|there| rustix::fs::FileType::from_raw_mode(there.st_mode));
            if kind.is_ok_and(|kind| !kind.is_file()) {
                self.place.check()?;
            }
            rustix::fs::renameat(&self.dir, &self.name, &self.dir, &self.place.name)
        } else {
            rename_new(&self.dir, &self.name, &self.place.name)
        };
        let path = self.place.path();
        match renamed {
            Ok(()) => {}
            // The file was created during the download.
            Err(Errno::EXIST) => return Err(TransferError::Exists(path)),
            Err(error) => return Err(DiskError::at(&path)(error.into()).into()),
        }
        self.dir.sync_all().map_err(|error| DiskError::at(&self.place.dir_path())(error))?;
        Ok(path)
    }

    /// Removes the part file.
    pub(super) fn discard(self) {
        // If the removal fails, the next attempt finds a wrong hash and restarts.
        let _left = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }

    /// Keeps the part for the next attempt, unless it is empty.
    pub(super) fn leave(self) {
        if self.written == 0 {
            self.discard();
        }
    }
}

/// Opens or creates the part file, locks it, and checks that it is this user's own regular file.
fn open_part(dir: &File, name: &OsStr, path: &Path) -> Result<File, TransferError> {
    let in_the_way = |what| TransferError::InTheWay { path: path.to_path_buf(), what };
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut gone = false;
    for _ in 0..TRIES {
        let new = rustix::fs::openat(
            dir,
            name,
            flags | OFlags::CREATE | OFlags::EXCL,
            Mode::from_raw_mode(PART_MODE),
        );
        let opened = match new {
            Err(Errno::EXIST) => rustix::fs::openat(dir, name, flags, Mode::empty()),
            new => new,
        };
        let file = match opened {
            Ok(file) => File::from(file),
            // Another process removed the part; or no file can be created here, as in /proc.
            Err(Errno::NOENT) => {
                gone = true;
                continue;
            }
            Err(Errno::LOOP) => return Err(in_the_way("a symbolic link")),
            Err(Errno::ISDIR) => return Err(in_the_way("a directory")),
            Err(error) => return Err(DiskError::at(path)(error.into()).into()),
        };
        gone = false;
        let found = file.metadata().map_err(DiskError::at(path))?;
        if !found.is_file() {
            return Err(in_the_way("no plain file"));
        }
        if found.uid() != rustix::process::geteuid().as_raw() || found.nlink() > 1 {
            return Err(in_the_way("a file of another user, or a link to another file"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TransferError::Taken(path.to_path_buf())),
            Err(TryLockError::Error(error)) => return Err(DiskError::at(path)(error).into()),
        }
        // The previous holder of the lock may have renamed the file.
        let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| there.st_ino == found.ino() && there.st_dev == found.dev()) {
            file.set_permissions(Permissions::from_mode(PART_MODE)).map_err(DiskError::at(path))?;
            return Ok(file);
        }
    }
    if gone {
        return Err(DiskError::at(path)(Errno::NOENT.into()).into());
    }
    Err(TransferError::Taken(path.to_path_buf()))
}

/// Renames unless the new name exists.
fn rename_new(dir: &File, old: &OsStr, new: &OsStr) -> Result<(), Errno> {
    match rustix::fs::renameat_with(dir, old, dir, new, RenameFlags::NOREPLACE) {
        // Not every file system supports this; a hard link and an unlink do the same.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            rustix::fs::linkat(dir, old, dir, new, AtFlags::empty())?;
            rustix::fs::unlinkat(dir, old, AtFlags::empty())
        }
        renamed => renamed,
    }
}

/// `.NAME.part`; a name that is too long is truncated, and its hash makes it unique.
fn part_name(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let whole = [b".", bytes, b".part"].concat();
    if whole.len() <= MAX_NAME {
        return OsString::from_vec(whole);
    }
    let hash = blake3::hash(bytes).to_hex();
    let mark = hash.get(..16).unwrap_or_default();
    let kept = MAX_NAME - ".~.part".len() - mark.len();
    // At a character boundary, for file systems that accept only UTF-8.
    let text = String::from_utf8_lossy(bytes);
    let stem = text.get(..text.floor_char_boundary(kept)).unwrap_or_default();
    format!(".{stem}~{mark}.part").into()
}

/// The sender's mode without the bits of the umask. Execute bits remain only for an own file or
/// with `keep_mode`. Never set-uid, set-gid or sticky.
fn final_mode(finish: FinalAttributes, keep_mode: bool, umask: u32) -> u32 {
    let most = if finish.own || keep_mode { 0o777 } else { 0o666 };
    let sent = if finish.mode == 0 { 0o666 } else { finish.mode };
    sent & most & !umask
}

/// This process's umask. POSIX cannot read it without changing it for all threads, so this reads
/// `/proc` on Linux. Elsewhere only the owner gets access to files.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o077)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn place(dir: &Path) -> Destination {
        let (dir, below) = (dir.to_path_buf(), Vec::new());
        Destination { dir, below, name: "f.txt".into(), force: false, keep_mode: false }
    }

    fn finish() -> FinalAttributes {
        FinalAttributes { mode: 0o644, modified_ms: 1_000_000_000_123, own: true }
    }

    #[test]
    fn part_file__resumes_and_gets_name_mode_and_time_at_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = PartFile::open(place(dir.path()), 10).unwrap();
        part.write(b"hello").unwrap();
        let hidden = dir.path().join(".f.txt.part");
        assert_eq!(std::fs::metadata(&hidden).unwrap().mode() & 0o777, 0o600);
        part.leave();
        let mut part = PartFile::open(place(dir.path()), 10).unwrap();
        assert_eq!((part.written(), part.hash()), (5, *blake3::hash(b"hello").as_bytes()));
        part.write(b"world").unwrap();
        assert_eq!(part.hash(), *blake3::hash(b"helloworld").as_bytes());
        let path = part.finish(finish()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"helloworld");
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o644 & !umask());
        let modified = found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(modified.unwrap().as_millis(), 1_000_000_000_123);
        assert!(!hidden.exists());
    }

    #[test]
    fn part_file__existing_file_is_replaced_only_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = PartFile::open(place(dir.path()), 3).unwrap();
        part.write(b"new").unwrap();
        std::fs::write(dir.path().join("f.txt"), "old").unwrap();
        assert!(matches!(part.finish(finish()), Err(TransferError::Exists(_))));
        assert!(matches!(PartFile::open(place(dir.path()), 3), Err(TransferError::Exists(_))));
        assert_eq!(std::fs::read(dir.path().join("f.txt")).unwrap(), b"old");
        let part = PartFile::open(Destination { force: true, ..place(dir.path()) }, 3).unwrap();
        assert_eq!(part.written(), 3, "what had come is still there");
        part.finish(finish()).unwrap();
        assert_eq!(std::fs::read(dir.path().join("f.txt")).unwrap(), b"new");
    }

    #[test]
    fn part_file__links_are_not_followed_and_targets_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let part = dir.path().join(".f.txt.part");
        let refused = |what: &str| match PartFile::open(place(dir.path()), 100) {
            Err(TransferError::InTheWay { .. }) => {}
            other => panic!("{what}: {other:?}"),
        };
        symlink(&victim, &part).unwrap();
        refused("a symbolic link");
        std::fs::remove_file(&part).unwrap();
        symlink(dir.path().join("nothing"), &part).unwrap();
        refused("a dangling link");
        std::fs::remove_file(&part).unwrap();
        std::fs::hard_link(&victim, &part).unwrap();
        refused("a hard link");
        std::fs::remove_file(&part).unwrap();
        std::fs::create_dir(&part).unwrap();
        refused("a directory");
        std::fs::remove_dir(&part).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        // At the final name, a link counts as an existing file, dangling or not; `force` replaces
        // the link itself.
        symlink(&victim, dir.path().join("f.txt")).unwrap();
        assert!(matches!(PartFile::open(place(dir.path()), 3), Err(TransferError::Exists(_))));
        let mut part = PartFile::open(Destination { force: true, ..place(dir.path()) }, 3).unwrap();
        part.write(b"new").unwrap();
        part.finish(finish()).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(!std::fs::symlink_metadata(dir.path().join("f.txt")).unwrap().is_symlink());
    }

    #[test]
    fn part_file__link_to_device_or_pipe_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let link = dir.path().join("f.txt");
        let own = std::path::PathBuf::from("/proc/self/exe");
        let targets = [pipe, "/dev/null".into(), dir.path().to_path_buf(), own, "f.txt".into()];
        let begun = |force| PartFile::open(Destination { force, ..place(dir.path()) }, 3);
        for target in &targets {
            symlink(target, &link).unwrap();
            for force in [false, true] {
                let opened = begun(force);
                assert!(matches!(opened, Err(TransferError::InTheWay { .. })), "{target:?}");
            }
            std::fs::remove_file(&link).unwrap();
            // A link that is created during the download.
            let mut part = begun(true).unwrap();
            part.write(b"new").unwrap();
            symlink(target, &link).unwrap();
            let finished = part.finish(finish());
            assert!(matches!(finished, Err(TransferError::InTheWay { .. })), "{target:?}");
            assert_eq!(&std::fs::read_link(&link).unwrap(), target);
            std::fs::remove_file(&link).unwrap();
            std::fs::remove_file(dir.path().join(".f.txt.part")).unwrap();
        }
    }

    #[test]
    fn part_file__second_writer_is_refused_and_oversize_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = PartFile::open(place(dir.path()), 5).unwrap();
        assert!(matches!(PartFile::open(place(dir.path()), 5), Err(TransferError::Taken(_))));
        part.write(b"hello").unwrap();
        part.leave();
        let part = PartFile::open(place(dir.path()), 4).unwrap();
        assert_eq!(part.written(), 0);
        part.leave();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "an empty part is left");
    }

    #[test]
    fn part_file__longest_names_get_distinct_part_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["é".repeat(127), "x".repeat(255), "x".repeat(254) + "y", "x".repeat(249)] {
            let place = Destination { name: name.into(), ..place(dir.path()) };
            let mut part = PartFile::open(place.clone(), 3).unwrap();
            assert_eq!(part.written(), 0);
            part.write(b"abc").unwrap();
            part.finish(finish()).unwrap();
            assert!(place.path().exists());
        }
        assert_ne!(
            part_name(OsStr::new(&"x".repeat(255))),
            part_name(OsStr::new(&"x".repeat(254)))
        );
    }

    #[test]
    fn part_file__final_mode_drops_setuid_and_foreign_exec() {
        let mode = |mode, own, keep| {
            final_mode(FinalAttributes { mode, modified_ms: 0, own }, keep, 0o022)
        };
        assert_eq!(mode(0o755, true, false), 0o755);
        assert_eq!(mode(0o755, false, false), 0o644);
        assert_eq!(mode(0o755, false, true), 0o755);
        assert_eq!(mode(0o6777, true, true), 0o755, "neither set-uid nor set-gid");
        assert_eq!(mode(0o600, false, false), 0o600);
        assert_eq!(mode(0, false, false), 0o644);
        assert_eq!(mode(0o666, true, false), 0o644);
    }
}
