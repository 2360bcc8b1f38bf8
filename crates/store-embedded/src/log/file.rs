//! A file of the log. Opened without following links, created private.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::faults::{Faults, Operation};

/// Bytes that are read or zeroed at a time.
pub(crate) const PIECE: usize = 1024 * 1024;
/// A multiple of the block size of file systems and disks: what O_DIRECT needs.
pub(crate) const PAGE: usize = 4096;

/// An open file.
#[derive(Debug)]
pub(crate) struct LogFile {
    file: File,
    path: PathBuf,
    faults: Faults,
}

impl LogFile {
    /// Opens a regular file for reading.
    pub(crate) fn open(path: &Path, faults: &Faults) -> io::Result<Self> {
        Self::with(OpenOptions::new().read(true), path, faults)
    }

    /// Opens a regular file for reading and writing.
    pub(crate) fn open_writable(path: &Path, faults: &Faults) -> io::Result<Self> {
        Self::with(OpenOptions::new().read(true).write(true), path, faults)
    }

    /// Creates a file in place of the one that has this name.
    pub(crate) fn create(path: &Path, faults: &Faults) -> io::Result<Self> {
        faults.before(Operation::Create(path), |_| Ok(()))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        Self::with(&mut options, path, faults)
    }

    /// Opens the file once more for writes of whole pages past the page cache. Not every file
    /// system has them.
    pub(crate) fn direct(&self) -> io::Result<Self> {
        Self::with_flags(OpenOptions::new().write(true), &self.path, OFlags::DIRECT, &self.faults)
    }

    fn with(options: &mut OpenOptions, path: &Path, faults: &Faults) -> io::Result<Self> {
        Self::with_flags(options, path, OFlags::empty(), faults)
    }

    fn with_flags(
        options: &mut OpenOptions,
        path: &Path,
        flags: OFlags,
        faults: &Faults,
    ) -> io::Result<Self> {
        // Without NONBLOCK, opening a FIFO would block the start.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(plain)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self { file, path: path.to_owned(), faults: faults.clone() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    /// Reads exactly this number of bytes.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let write = |bytes: &[u8]| self.file.write_all_at(bytes, offset);
        self.faults.before(Operation::Write { path: &self.path, offset, bytes }, write)?;
        write(bytes)
    }

    /// Overwrites bytes with zeros.
    pub(crate) fn zero(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(length).unwrap_or(PIECE).min(PIECE) + PAGE];
        // Direct writes need an aligned buffer.
        let aligned = zeros.as_ptr().align_offset(PAGE);
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
            self.write(offset, zeros.get(aligned..aligned + count).unwrap_or_default())?;
            (offset, length) = (offset + count as u64, length - count as u64);
        }
        Ok(())
    }

    /// Waits until everything that was written is on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.faults.before(Operation::Sync(&self.path), |_| Ok(()))?;
        self.file.sync_data()
    }

    /// Fails if the file was moved, removed or replaced: later writes to it would be lost.
    pub(crate) fn check_in_place(&self) -> io::Result<()> {
        let (open, named) = (self.file.metadata()?, fs::symlink_metadata(&self.path)?);
        if (open.dev(), open.ino()) == (named.dev(), named.ino()) {
            return Ok(());
        }
        Err(io::Error::other("another file is in its place: stop the server and put it back"))
    }

    /// Reserves room, so that a full disk is reported before anything is written.
    pub(crate) fn reserve(&self, size: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size) {
            Err(full @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(full.into()),
            // Not every file system can do it.
            _ => Ok(()),
        }
    }

    /// Gives the file another name in its directory.
    pub(crate) fn rename(mut self, to: &Path) -> io::Result<Self> {
        self.faults.before(Operation::Rename(to), |_| Ok(()))?;
        fs::rename(&self.path, to)?;
        to.clone_into(&mut self.path);
        Ok(self)
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path, faults: &Faults) -> io::Result<()> {
    faults.before(Operation::SyncDirectory(directory), |_| Ok(()))?;
    File::open(directory)?.sync_all()
}

fn plain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            io::Error::other("it is a symbolic link, which is not followed here")
        }
        _ => error,
    }
}
