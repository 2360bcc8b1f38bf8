//! Changes of a record's files while no server has them open.

use std::fs;
use std::path::{Path, PathBuf};

use twinlock_core::id::Link;

/// Bytes of an entry in the log before its link: time, message id, kind, flags, two lengths, commit.
const BEFORE_LINK: usize = 8 + 16 + 1 + 1 + 1 + 4 + 32;

/// An entry in the log of a record.
pub struct LoggedEntry {
    segment: PathBuf,
    offset: usize,
}

impl LoggedEntry {
    /// Finds the entry with this link in the data directory of a server.
    ///
    /// # Panics
    /// If it is not in one segment.
    #[must_use]
    pub fn find(data: &Path, link: &Link) -> Self {
        for item in fs::read_dir(data.join("record")).unwrap() {
            let segment = item.unwrap().path();
            if segment.extension().is_some_and(|extension| extension == "log") {
                let bytes = fs::read(&segment).unwrap();
                if let Some(at) = bytes.windows(link.0.len()).position(|window| window == link.0) {
                    return Self { segment, offset: at - BEFORE_LINK };
                }
            }
        }
        panic!("no segment has the link {link}");
    }

    /// Changes the entry from its time on, but no checksum.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn change(&self, change: impl FnOnce(&mut [u8])) {
        let mut bytes = fs::read(&self.segment).unwrap();
        change(&mut bytes[self.offset..]);
        fs::write(&self.segment, bytes).unwrap();
    }
}

/// Offset of the last byte of an entry's time.
pub const TIME_AT: usize = 7;
/// Offset of its message id.
pub const MESSAGE_ID_AT: usize = 8;
/// Offset of its kind.
pub const KIND_AT: usize = 24;
/// Offset of the first byte of its body's length.
pub const LENGTH_AT: usize = 27;
/// Offset of its link.
pub const LINK_AT: usize = BEFORE_LINK;
/// Offset of its sender.
pub const SENDER_AT: usize = BEFORE_LINK + 32;
/// Offset of its body, for a sender of three letters.
pub const BODY_AT: usize = SENDER_AT + 3 + 16;
