//! Hashes of content prefixes that were computed before.
//!
//! A download that breaks often asks for the hash of a longer prefix each time. The states of the
//! hash are kept for a while, so that only the new bytes are read. If the file has changed, all of
//! it is read again.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;

use super::contract::Hash;
use super::disk_io::{READ, Stamp, lock, stamp};

/// States that are kept; about 2 KiB each.
const CACHE_SIZE: usize = 64;

struct PrefixState {
    stamp: Stamp,
    length: u64,
    hasher: blake3::Hasher,
}

/// The most recent hash states, of all content.
#[derive(Default)]
pub(super) struct Prefixes(Mutex<VecDeque<PrefixState>>);

impl Prefixes {
    /// BLAKE3 of the first `length` bytes. Blocks.
    pub(super) fn hash(&self, file: &File, length: u64) -> io::Result<Hash> {
        let stamp = stamp(&file.metadata()?);
        let (mut at, mut hasher) = self.nearest(stamp, length);
        let mut buffer = vec![0; READ];
        while at < length {
            let some = usize::try_from(length - at).unwrap_or(READ).min(READ);
            let some = buffer.get_mut(..some).unwrap_or_default();
            file.read_exact_at(some, at)?;
            hasher.update(some);
            at += some.len() as u64;
        }
        let hash = *hasher.finalize().as_bytes();
        self.keep(PrefixState { stamp, length, hasher });
        Ok(hash)
    }

    /// The longest known prefix of a file, of at most `length` bytes.
    fn nearest(&self, stamp: Stamp, length: u64) -> (u64, blake3::Hasher) {
        let states = lock(&self.0);
        let fits = states.iter().filter(|state| state.stamp == stamp && state.length <= length);
        fits.max_by_key(|state| state.length)
            .map_or_else(|| (0, blake3::Hasher::new()), |s| (s.length, s.hasher.clone()))
    }

    fn keep(&self, new: PrefixState) {
        let mut states = lock(&self.0);
        states.retain(|state| (state.stamp, state.length) != (new.stamp, new.length));
        states.push_back(new);
        if states.len() > CACHE_SIZE {
            states.pop_front();
        }
    }
}
