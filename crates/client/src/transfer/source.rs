//! Reads an outgoing file on a thread, slightly ahead of the connection, and hashes it.
//!
//! Hash states at frame boundaries are kept for the last megabytes, because a lost connection
//! resumes there. The server reports how much it has, and its hash is compared without rereading
//! the file. After a kill there are no states, and the file is hashed from its beginning.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use blake3::Hasher;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::error::TransferError;
use crate::disk::DiskError;
use crate::uploads::SourceFile;

/// Number of parts that are read ahead.
const AHEAD: usize = 4;
/// Frames per read: waking a thread for each frame costs more than reading it.
pub(super) const FRAMES: usize = 4;
/// Up to this many bytes, the size of a file without blocks is not trusted. More than any file of
/// `/sys`, and little enough to be copied.
const SMALL: u64 = 64 * 1024;
/// Bytes per read while only hashing.
const HASHED_AT_ONCE: usize = 256 * 1024;
/// Bytes over which hash states are kept: the window, and what is sealed and not written.
const REMEMBERED: u64 = 10 * 1024 * 1024;
/// Minimum number of bytes between two states; one takes about 2 KiB.
const APART: u64 = 128 * 1024;

/// A file that can be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// The name for the recipients; see `FileMeta` for what the server accepts.
    pub name: String,
    /// The directories above it for the recipients, separated by `/`; empty: none.
    pub path: String,
    /// The file, as it was when it was examined.
    pub source: SourceFile,
    /// Permission bits, at most 0777; 0 if there are none to keep.
    pub mode: u32,
    /// Modification time, ms since 1970 UTC; 0 if there is none to keep.
    pub modified_ms: u64,
    /// BLAKE3 of a spooled copy; see [`crate::uploads::UploadOffer`].
    pub hash: Option<[u8; 32]>,
}

/// The kind of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceKind {
    /// A regular file with a reliable size.
    Sized,
    /// A pipe, a device, or a file without blocks on a disk: it ends where reading ends.
    Unsized,
    /// A directory or a socket.
    None(&'static str),
}

/// Determines the kind of the source at `path`; follows symbolic links. Blocks.
///
/// Files in `/proc` have size 0 and those in `/sys` size 4096, whatever they contain. Neither has
/// blocks; nor has an empty file, or one that is a single hole.
pub(super) fn kind(path: &Path) -> Result<SourceKind, TransferError> {
    let found = std::fs::metadata(path).map_err(DiskError::at(path))?;
    let kind = found.file_type();
    Ok(match () {
        () if kind.is_dir() => SourceKind::None("a directory"),
        () if kind.is_socket() => SourceKind::None("a socket"),
        () if !kind.is_file() || found.len() == 0 => SourceKind::Unsized,
        () if found.blocks() == 0 && found.len() <= SMALL => SourceKind::Unsized,
        () => SourceKind::Sized,
    })
}

/// Examines the regular file at `path`; follows symbolic links. Blocks.
///
/// # Errors
/// [`TransferError::NotAFile`] for anything but a regular file, or [`TransferError::Disk`].
pub fn look(path: &Path) -> Result<LocalFile, TransferError> {
    use std::os::unix::fs::PermissionsExt as _;
    let absolute = std::path::absolute(path).map_err(DiskError::at(path))?;
    let found = std::fs::metadata(&absolute).map_err(DiskError::at(path))?;
    if !found.is_file() {
        let what = match kind(&absolute)? {
            SourceKind::None(what) => what,
            _ if found.file_type().is_fifo() => "a pipe",
            _ => "a device",
        };
        return Err(TransferError::NotAFile { path: path.to_path_buf(), what });
    }
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned());
    let source = SourceFile::of(&absolute, &found);
    Ok(LocalFile {
        name: name.unwrap_or_default(),
        path: String::new(),
        mode: found.permissions().mode() & 0o777,
        modified_ms: source.modified_ms(),
        source,
        hash: None,
    })
}

/// Opens the source if it is unchanged. Blocks.
fn open(source: &SourceFile) -> Result<File, TransferError> {
    let at = || DiskError::at(&source.path);
    // Nonblocking: the file may have become a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(&source.path, flags, Mode::empty());
    let file = File::from(file.map_err(|error| at()(error.into()))?);
    if !is_still(&file, source)? {
        return Err(TransferError::Changed(source.path.clone()));
    }
    Ok(file)
}

fn is_still(file: &File, source: &SourceFile) -> Result<bool, TransferError> {
    let now = file.metadata().map_err(DiskError::at(&source.path))?;
    Ok(now.is_file() && SourceFile::of(&source.path, &now) == *source)
}

/// The hash states over the last [`REMEMBERED`] bytes.
#[derive(Debug, Default, Clone)]
pub(super) struct Marks(VecDeque<(u64, Hasher)>);

impl Marks {
    /// Adds the state after the first `offset` bytes.
    pub(super) fn put(&mut self, offset: u64, hasher: Hasher) {
        if self.0.back().is_some_and(|(last, _)| *last + APART > offset) {
            return;
        }
        self.0.push_back((offset, hasher));
        // The oldest state is before the range that must be covered.
        while self.0.get(1).is_some_and(|(second, _)| *second + REMEMBERED <= offset) {
            self.0.pop_front();
        }
    }

    /// The last state at or before `offset`.
    fn before(&self, offset: u64) -> (u64, Hasher) {
        let found = self.0.iter().rev().find(|(at, _)| *at <= offset);
        found.cloned().unwrap_or_else(|| (0, Hasher::new()))
    }
}

/// The hash state after the first `upto` bytes, from the nearest stored state. Blocks.
pub(super) fn prefix(
    source: &SourceFile,
    marks: &Marks,
    upto: u64,
) -> Result<Hasher, TransferError> {
    let (from, mut hasher) = marks.before(upto);
    if from == upto {
        return Ok(hasher);
    }
    let mut file = open(source)?;
    file.seek(SeekFrom::Start(from)).map_err(DiskError::at(&source.path))?;
    let hashed = hash_some(&mut file, &mut hasher, upto - from);
    if hashed.map_err(DiskError::at(&source.path))? < upto - from {
        return Err(TransferError::Changed(source.path.clone()));
    }
    Ok(hasher)
}

/// Hashes up to `most` bytes of `from`; returns how many there were. Blocks.
pub(super) fn hash_some(
    from: &mut impl std::io::Read,
    hasher: &mut Hasher,
    most: u64,
) -> std::io::Result<u64> {
    let mut part = vec![0; HASHED_AT_ONCE];
    let mut left = most;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(HASHED_AT_ONCE).min(HASHED_AT_ONCE);
        let room = part.get_mut(..want).unwrap_or_default();
        match from.read(room) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(room.get(..n).unwrap_or_default());
                left -= n as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(most - left)
}

/// BLAKE3 of the file at `path`. Blocks.
///
/// # Errors
/// [`TransferError::Disk`].
pub fn hash_file(path: &Path) -> Result<[u8; 32], TransferError> {
    let mut hasher = Hasher::new();
    let mut file = File::open(path).map_err(DiskError::at(path))?;
    hash_some(&mut file, &mut hasher, u64::MAX).map_err(DiskError::at(path))?;
    Ok(*hasher.finalize().as_bytes())
}

/// A result of the reader thread.
pub(super) enum SourceRead {
    /// The next bytes, at least one, and the hash state after them.
    Some(Vec<u8>, Box<Hasher>),
    /// The end of the unchanged file, and BLAKE3 of all of it.
    End([u8; 32]),
    /// The file is unreadable or has changed. Nothing follows.
    Failed(TransferError),
}

/// Reads `source` from byte `from` on a thread, in parts of `size` bytes. `hasher` has hashed the
/// bytes before. The thread ends when the receiver is dropped.
pub(super) fn read(
    source: SourceFile,
    from: u64,
    hasher: Hasher,
    size: usize,
) -> mpsc::Receiver<SourceRead> {
    let (reads, taken) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let last = match read_all(&source, from, hasher, size, &reads) {
            Ok(Some(hash)) => SourceRead::End(hash),
            Ok(None) => return,
            Err(error) => SourceRead::Failed(error),
        };
        let _gone = reads.blocking_send(last);
    });
    taken
}

/// Reads the rest; returns its hash, or `None` if the receiver was dropped.
fn read_all(
    source: &SourceFile,
    from: u64,
    mut hasher: Hasher,
    size: usize,
    reads: &mpsc::Sender<SourceRead>,
) -> Result<Option<[u8; 32]>, TransferError> {
    let at = || DiskError::at(&source.path);
    let mut file = open(source)?;
    file.seek(SeekFrom::Start(from)).map_err(at())?;
    let mut left = source.size.saturating_sub(from);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(size).min(size);
        let mut part = vec![0; want];
        file.read_exact(&mut part).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => unlike_its_size(&file, source),
            _ => at()(error).into(),
        })?;
        left -= want as u64;
        hasher.update(&part);
        if reads.blocking_send(SourceRead::Some(part, Box::new(hasher.clone()))).is_err() {
            return Ok(None);
        }
    }
    // Nothing may follow the last byte.
    if hash_some(&mut file, &mut Hasher::new(), 1).map_err(at())? > 0 {
        return Err(unlike_its_size(&file, source));
    }
    if !is_still(&file, source)? {
        return Err(TransferError::Changed(source.path.clone()));
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}

/// The error for more or fewer bytes than the size: the file changed, or its file system is wrong.
fn unlike_its_size(file: &File, source: &SourceFile) -> TransferError {
    match is_still(file, source) {
        Ok(true) => TransferError::Size { path: source.path.clone(), size: source.size },
        Ok(false) => TransferError::Changed(source.path.clone()),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn source__reads_match_content_and_hash_from_any_offset() {
        for size in [0, 1, 999, 1000, 1001, 5000] {
            let all = bytes(size);
            let (_dir, path) = file(&all);
            let found = look(&path).unwrap();
            for from in [0, size / 2, size] {
                let mut before = Hasher::new();
                before.update(&all[..from]);
                let mut reads = read(found.source.clone(), from as u64, before, 1000);
                let mut got = all[..from].to_vec();
                let hash = loop {
                    match reads.recv().await.unwrap() {
                        SourceRead::Some(part, after) => {
                            got.extend(part);
                            assert_eq!(after.finalize(), blake3::hash(&got));
                        }
                        SourceRead::End(hash) => break hash,
                        SourceRead::Failed(error) => panic!("{error}"),
                    }
                };
                assert_eq!((got == all, hash), (true, *blake3::hash(&all).as_bytes()));
            }
        }
    }

    #[tokio::test]
    async fn source__change_is_detected_before_and_during_read() {
        let (_dir, path) = file(&bytes(10_000));
        let found = look(&path).unwrap();
        let mut reads = read(found.source.clone(), 0, Hasher::new(), 1000);
        assert!(matches!(reads.recv().await, Some(SourceRead::Some(..))));
        // Four parts are read ahead, but not the end.
        let mut longer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut longer, b"more").unwrap();
        let last = loop {
            match reads.recv().await.unwrap() {
                SourceRead::Some(..) => {}
                last => break last,
            }
        };
        assert!(matches!(last, SourceRead::Failed(TransferError::Changed(_))));
        let mut reads = read(found.source, 0, Hasher::new(), 1000);
        assert!(matches!(reads.recv().await, Some(SourceRead::Failed(TransferError::Changed(_)))));
    }

    #[test]
    fn source__prefix_hash_uses_stored_states_of_last_megabytes() {
        let frame = 256 * 1024;
        let all = bytes(20 * 1024 * 1024 + 17);
        let (_dir, path) = file(&all);
        let source = look(&path).unwrap().source;
        let (mut marks, mut hasher, mut offset) = (Marks::default(), Hasher::new(), 0);
        for part in all.chunks(frame) {
            hasher.update(part);
            offset += part.len();
            marks.put(offset as u64, hasher.clone());
        }
        assert!(marks.0.len() < 50, "{}", marks.0.len());
        let first = marks.0.front().unwrap().0;
        assert!(first + REMEMBERED <= all.len() as u64);
        for upto in [0, 5, frame, all.len() - 9 * 1024 * 1024, all.len() - frame, all.len()] {
            let hash = prefix(&source, &marks, upto as u64).unwrap().finalize();
            assert_eq!(hash, blake3::hash(&all[..upto]), "{upto}");
        }
        // At a stored state the file is not read.
        std::fs::remove_file(&path).unwrap();
        assert!(prefix(&source, &marks, first).is_ok());
        assert!(prefix(&source, &marks, 5).is_err());
    }

    #[test]
    fn source__size_is_trusted_only_for_nonempty_disk_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "content").unwrap();
        assert_eq!(kind(&file).unwrap(), SourceKind::Sized);
        std::fs::write(&file, "").unwrap();
        assert_eq!(kind(&file).unwrap(), SourceKind::Unsized);
        assert_eq!(kind(Path::new("/dev/null")).unwrap(), SourceKind::Unsized);
        assert_eq!(kind(Path::new("/proc/self/status")).unwrap(), SourceKind::Unsized);
        assert_eq!(kind(dir.path()).unwrap(), SourceKind::None("a directory"));
    }

    #[tokio::test]
    async fn source__content_not_matching_size_is_an_error() {
        let (_dir, path) = file(&bytes(1000));
        for size in [999, 1001] {
            // A file system that reports a wrong size reports the same one again.
            let found = SourceFile { size, ..look(&path).unwrap().source };
            let file = File::open(&path).unwrap();
            let error = unlike_its_size(&file, &found);
            assert_eq!(error, TransferError::Changed(path.clone()));
        }
        let source = look(Path::new("/proc/self/status")).unwrap().source;
        assert_eq!(source.size, 0);
        let mut reads = read(source, 0, Hasher::new(), 1000);
        let last = reads.recv().await.unwrap();
        assert!(matches!(last, SourceRead::Failed(TransferError::Size { size: 0, .. })));
    }

    #[test]
    fn source__only_regular_files_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |path: &Path| match look(path) {
            Err(TransferError::NotAFile { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(dir.path()), "a directory");
        assert_eq!(kind(Path::new("/dev/null")), "a device");
        let socket = dir.path().join("s");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(kind(&socket), "a socket");
        assert!(matches!(look(&dir.path().join("none")), Err(TransferError::Disk(_))));
    }
}
