//! A temporary copy of a state on a disk that is not writable.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::TempDir;
use twinlock_core::id::Name;

use super::error::StateError;
use crate::disk::DiskError;
use crate::home::Home;

/// The database and its WAL.
const FILES: [&str; 2] = ["state.db", "state.db-wal"];
/// Maximum number of attempts to copy a database that another process writes.
const COPIES: usize = 20;

/// Whether this process may write the state in `dir`. If it may, a failure has another cause, such
/// as a file of another user, and a copy would hide it.
pub(super) fn may_write(dir: &Path) -> bool {
    let database = rustix::fs::access(dir.join("state.db"), rustix::fs::Access::WRITE_OK);
    may_write_to(dir) && (database.is_ok() || database == Err(rustix::io::Errno::NOENT))
}

pub(super) fn may_write_to(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Copies a state that is not writable into a temporary directory.
pub(super) fn copy_of(dir: &Path, profile: &Name) -> Result<TempDir, StateError> {
    let temporary = std::env::temp_dir();
    let copy = tempfile::tempdir().map_err(DiskError::at(&temporary))?;
    let into = Home::at(copy.path()).make_state(profile)?;
    copy_still(dir, &into, |from, to| fs::copy(from, to))?;
    Ok(copy)
}

/// Copies the database files, and repeats until none changed during the copy. Another process may
/// write them, and a database with the WAL of another time is corrupt.
fn copy_still(
    dir: &Path,
    into: &Path,
    mut copy: impl FnMut(&Path, &Path) -> io::Result<u64>,
) -> Result<(), StateError> {
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let stamp = |name: &str| match fs::metadata(dir.join(name)) {
        Ok(found) => {
            let modified = (found.mtime(), found.mtime_nsec());
            Ok(Some((found.ino(), found.len(), modified)))
        }
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(DiskError::at(&dir.join(name))(error)),
    };
    let stamps = || FILES.into_iter().map(stamp).collect::<Result<Vec<_>, _>>();
    for _ in 0..COPIES {
        let before = stamps()?;
        for name in FILES {
            let (from, to) = (dir.join(name), into.join(name));
            match copy(&from, &to) {
                // Left by an earlier attempt.
                Err(error) if is_missing(&error) => drop(fs::remove_file(&to)),
                copied => _ = copied.map_err(DiskError::at(&from))?,
            }
            // The copy has the mode of the original.
            if to.exists() {
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600))
                    .map_err(DiskError::at(&to))?;
            }
        }
        if stamps()? == before {
            return Ok(());
        }
    }
    Err(StateError::Busy)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn state_copy__is_consistent_or_fails_as_busy() {
        let (dir, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (db, wal) = (dir.path().join("state.db"), dir.path().join("state.db-wal"));
        fs::write(&db, "1").unwrap();
        fs::write(&wal, "1").unwrap();
        // The owner writes during the first two copies, then removes the WAL.
        let mut left = 4;
        let copied = copy_still(dir.path(), into.path(), |from, to| {
            let copied = fs::copy(from, to);
            if left > 0 {
                left -= 1;
                fs::write(&db, "2".repeat(10 - left)).unwrap();
                fs::write(&wal, "2").unwrap();
            } else if wal.exists() {
                fs::remove_file(&wal).unwrap();
            }
            copied
        });
        assert_eq!(copied, Ok(()));
        assert_eq!(fs::read(into.path().join("state.db")).unwrap(), fs::read(&db).unwrap());
        assert!(!into.path().join("state.db-wal").exists());
        let busy = copy_still(dir.path(), into.path(), |from, to| {
            fs::OpenOptions::new().append(true).open(&db)?.write_all(b"3")?;
            fs::copy(from, to)
        });
        assert_eq!(busy, Err(StateError::Busy));
    }

    #[test]
    fn state_copy__write_access_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(may_write(dir.path()));
        fs::write(dir.path().join("state.db"), "").unwrap();
        assert!(may_write(dir.path()));
        assert!(!may_write(&dir.path().join("missing")));
    }
}
