//! The log file: rotated by size, reopened after it was moved.
//!
//! Several processes can write to one file (the commands of one profile), so a file that another
//! process rotated counts as moved. A log that cannot be written stops nothing; opening it is
//! retried after a second.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Maximum size of a file, bytes.
const FILE_BYTES: u64 = 10 * 1024 * 1024;
/// Number of rotated files that are kept.
const FILES: usize = 5;
/// How often to check whether the path still names the open file.
const LOOK: Duration = Duration::from_secs(1);

/// Requests that the file is reopened before the next line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reopen(Arc<AtomicBool>);

impl Reopen {
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file that is written to, mode 0600.
pub(crate) struct LogFile {
    path: PathBuf,
    most: u64,
    /// `None` while it cannot be opened.
    open: Option<OpenLog>,
    looked: Instant,
    reopen: Reopen,
}

struct OpenLog {
    file: File,
    /// Device and inode.
    id: (u64, u64),
}

impl OpenLog {
    /// Does not follow a symbolic link, so that a log never overwrites the link's target.
    fn new(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        // Opening a pipe without a reader would block.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = options.custom_flags(flags.bits().cast_signed()).open(path).map_err(plain)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Self { file, id: (meta.dev(), meta.ino()) })
    }

    /// Whether `length` more bytes exceed `most`. Other processes may have written to the file.
    fn is_full(&self, length: u64, most: u64) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() > 0 && meta.len() + length > most)
    }
}

fn plain(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return io::Error::other("it is a symbolic link, which is not followed here");
    }
    error
}

impl LogFile {
    /// Opens or creates it.
    ///
    /// # Errors
    /// The system's error, or the path is a symbolic link or not a regular file.
    pub(crate) fn open(path: &Path, reopen: Reopen) -> io::Result<Self> {
        let open = Some(OpenLog::new(path)?);
        let looked = Instant::now();
        Ok(Self { path: path.to_owned(), most: FILE_BYTES, open, looked, reopen })
    }

    /// Reopens the path if it names another file now.
    fn look(&mut self) {
        let now = Instant::now();
        let told = self.reopen.0.swap(false, Ordering::Relaxed);
        if !told && now.duration_since(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        let there = fs::symlink_metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if there.is_none() || there != self.open.as_ref().map(|open| open.id) {
            self.open = OpenLog::new(&self.path).ok();
        }
    }

    /// Renames the file and the older ones to the next number each, and creates a new one.
    fn rotate(&mut self) {
        let numbered = |n: usize| {
            let mut path = self.path.as_os_str().to_owned();
            path.push(format!(".{n}"));
            PathBuf::from(path)
        };
        for n in (1..FILES).rev() {
            fs::rename(numbered(n), numbered(n + 1)).ok();
        }
        // If the rename fails, keep writing to the same file.
        if fs::rename(&self.path, numbered(1)).is_ok() {
            self.open = OpenLog::new(&self.path).ok();
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.look();
        let (length, most) = (line.len() as u64, self.most);
        let is_full =
            |open: &Option<OpenLog>| open.as_ref().is_some_and(|o| o.is_full(length, most));
        if is_full(&self.open) {
            // Another process may have rotated it.
            self.reopen.now();
            self.look();
            if is_full(&self.open) {
                self.rotate();
            }
        }
        if let Some(open) = &mut self.open {
            open.file.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> LogFile {
        LogFile { most: 100, ..LogFile::open(path, Reopen::default()).unwrap() }
    }

    #[test]
    fn log_file__is_rotated_before_size_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let (mut log, mut other) = (open(&path), open(&path));
        for n in 0..20 {
            let log = if n % 2 == 0 { &mut log } else { &mut other };
            log.write_all(format!("{n:049}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["x.log", "x.log.1", "x.log.2", "x.log.3", "x.log.4", "x.log.5"]);
        let all: Vec<_> = (0..6)
            .rev()
            .map(|n| if n == 0 { path.clone() } else { dir.path().join(format!("x.log.{n}")) })
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        assert!(all.iter().all(|text| text.len() <= 100));
        let numbers: Vec<usize> = all.concat().lines().map(|line| line.parse().unwrap()).collect();
        // With two writers a file may be shorter, but no line is duplicated or out of order.
        assert!(numbers.is_sorted() && numbers.last() == Some(&19), "{numbers:?}");
    }

    #[test]
    fn log_file__is_reopened_after_move_or_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("x.log"), dir.path().join("moved"));
        let mut log = open(&path);
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        log.reopen.clone().now();
        log.write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        // Without a signal, after `LOOK`.
        fs::remove_file(&path).unwrap();
        log.looked = Instant::now().checked_sub(LOOK).unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn log_file__symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("x.log"), dir.path().join("target"));
        for content in [None, Some("kept")] {
            if let Some(content) = content {
                fs::write(&target, content).unwrap();
            }
            fs::remove_file(&path).ok();
            std::os::unix::fs::symlink(&target, &path).unwrap();
            let refused = LogFile::open(&path, Reopen::default()).err().unwrap();
            assert!(refused.to_string().contains("symbolic link"), "{refused}");
            assert_eq!(fs::read_to_string(&target).ok().as_deref(), content);
        }
        // A symbolic link that is created later is not followed either.
        fs::remove_file(&path).unwrap();
        let mut log = open(&path);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        log.reopen.clone().now();
        log.write_all(b"x").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
