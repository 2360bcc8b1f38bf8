//! The reserve of text: disk space that text leaves to the record's other data. Revocations,
//! passwords, invites and registrations still work when text is refused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The default reserve: the smaller of a number of bytes and a fraction (1/80) of the disk. Less
/// than the reserve of files, so that files stop first.
const RESERVE: u64 = 256 << 20;
const RESERVE_PART: u64 = 80;
/// How long a measurement of the disk is valid.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between measurements, however much text was written.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Approximate bytes on disk for a byte of text: its row, its WAL, its words.
const COST: u64 = 4;

#[derive(Debug)]
pub(crate) struct TextReserve {
    dir: PathBuf,
    reserve: Option<u64>,
    last: Mutex<DiskMeasurement>,
}

/// The last measurement of the disk.
#[derive(Debug, Default)]
struct DiskMeasurement {
    at: Option<Instant>,
    /// Free space above the reserve, bytes.
    room: u64,
    reserve: u64,
    /// Text since then, bytes.
    written: u64,
}

/// The disk is at its reserve, which is given in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtReserve(pub(crate) u64);

/// Free space of a disk, and the part of it that text leaves free, bytes.
pub(crate) struct DiskSpace {
    pub(crate) free: u64,
    pub(crate) reserve: u64,
}

/// Measures the disk of `dir`; for `reserve` see [`TextReserve::new`].
pub(crate) fn disk_space(dir: &Path, reserve: Option<u64>) -> io::Result<DiskSpace> {
    let disk = rustix::fs::statvfs(dir)?;
    let all = disk.f_blocks.saturating_mul(disk.f_frsize);
    let reserve = reserve.unwrap_or_else(|| RESERVE.min(all / RESERVE_PART));
    Ok(DiskSpace { free: disk.f_bavail.saturating_mul(disk.f_frsize), reserve })
}

impl TextReserve {
    /// For the disk of `dir`. `reserve`: bytes; `None`: the smaller of 256 MiB and 1.25 %.
    pub(crate) fn new(dir: PathBuf, reserve: Option<u64>) -> Self {
        Self { dir, reserve, last: Mutex::default() }
    }

    /// Counts text that is about to be recorded.
    ///
    /// Measures the disk at most once a second, or after enough text to use up the space.
    ///
    /// # Errors
    /// [`AtReserve`]; nothing is counted then.
    pub(crate) fn take(&self, bytes: u64, now: Instant) -> Result<(), AtReserve> {
        if self.reserve == Some(0) {
            return Ok(());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let age = last.at.map(|at| now.saturating_duration_since(at));
        let fits = |last: &DiskMeasurement| {
            last.written.saturating_add(bytes).saturating_mul(COST) <= last.room
        };
        if age.is_none_or(|age| {
            age >= CHECK_INTERVAL || (age >= MIN_CHECK_INTERVAL && !fits(&last) && last.room > 0)
        }) {
            match disk_space(&self.dir, self.reserve) {
                Ok(DiskSpace { free, reserve }) => {
                    *last = DiskMeasurement {
                        at: Some(now),
                        room: free.saturating_sub(reserve),
                        reserve,
                        written: 0,
                    };
                }
                Err(error) => {
                    tracing::warn!(%error, "the free space of the record's disk is not known");
                    *last =
                        DiskMeasurement { at: Some(now), room: u64::MAX, reserve: 0, written: 0 };
                }
            }
        }
        if fits(&last) {
            last.written = last.written.saturating_add(bytes);
            Ok(())
        } else {
            Err(AtReserve(last.reserve))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(room: &TextReserve) -> u64 {
        let disk = rustix::fs::statvfs(&room.dir).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    #[test]
    fn text_room__refused_at_disk_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut room = TextReserve::new(dir.path().to_owned(), Some(u64::MAX));
        assert_eq!(room.take(1, now), Err(AtReserve(u64::MAX)));
        // No new measurement within a second.
        room.reserve = Some(1);
        assert!(room.take(1, now + MIN_CHECK_INTERVAL).is_err());
        room.take(1, now + CHECK_INTERVAL).unwrap();
        // Half of the free space is too much, with the cost of text. The next measurement shows
        // that the space is still free.
        let much = free(&room) / 2;
        assert!(room.take(much, now + CHECK_INTERVAL).is_err());
        room.take(1, now + CHECK_INTERVAL * 2).unwrap();
        let none = TextReserve::new(dir.path().to_owned(), Some(0));
        none.take(u64::MAX, now).unwrap();
    }
}
