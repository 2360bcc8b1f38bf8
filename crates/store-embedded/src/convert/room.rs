//! Whether the file system has room for a second form of the record.

use std::fs;
use std::path::Path;

use crate::file_names::wal;
use crate::open_error::OpenError;

use super::switch::RecordPaths;

const MIB: u64 = 1024 * 1024;
/// What remains free at least, so that a server can run afterwards.
const RESERVE: u64 = 16 * MIB;

/// What a conversion takes, and what there is, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What it takes at most.
    pub needed: u64,
    /// Free bytes.
    pub available: u64,
}

/// Fails if the conversion could run out of space.
pub(super) fn check(paths: &RecordPaths) -> Result<(), OpenError> {
    let Room { needed, available } = room(paths)?;
    enough(paths.parent(), needed, available)
}

pub(super) fn room(paths: &RecordPaths) -> Result<Room, OpenError> {
    let size = |path: &_| fs::symlink_metadata(path).map_or(0, |meta| meta.len());
    let needed = needed(size(&paths.database) + size(&wal(&paths.database)));
    let parent = paths.parent();
    let available =
        available(parent).map_err(|error| OpenError::File { path: parent.to_path_buf(), error })?;
    Ok(Room { needed, available })
}

fn enough(parent: &Path, needed: u64, available: u64) -> Result<(), OpenError> {
    if available < needed {
        return Err(OpenError::NoRoom { path: parent.to_path_buf(), needed, available });
    }
    Ok(())
}

/// Bytes that the conversion of a record of this size takes at most.
///
/// The log and its index are smaller than the rows and indexes that they come from. The last
/// segment may be nearly empty, and the next one is prepared: at most twice 64 MiB, and less for a
/// small record, because segments double from 1 MiB on.
fn needed(size: u64) -> u64 {
    let segments = size.saturating_mul(6).saturating_add(4 * MIB).min(128 * MIB);
    size.saturating_add(size / 8).saturating_add(segments).saturating_add(RESERVE)
}

fn available(path: &Path) -> std::io::Result<u64> {
    let system = rustix::fs::statvfs(path)?;
    Ok(system.f_bavail.saturating_mul(system.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convert__needed_room_grows_with_the_record() {
        assert_eq!(needed(0), 20 * MIB);
        assert_eq!(needed(8 * MIB), (8 + 1 + 52 + 16) * MIB);
        assert_eq!(needed(800 * MIB), (800 + 100 + 128 + 16) * MIB);
    }

    #[test]
    fn convert__lack_of_room_says_how_much_is_needed() {
        let path = Path::new("/data");
        let error = enough(path, 100 * MIB + 1, 7 * MIB + 1).unwrap_err().to_string();
        assert!(error.contains("/data has 7 MiB free"), "{error}");
        assert!(error.contains("up to 101 MiB"), "{error}");
        assert!(enough(path, 5, 5).is_ok());
    }
}
