//! What cryptography leaves on the stack: copies of keys that were moved, key schedules that were
//! spilled. What the types wipe is where they lie last; this is for where they lay before.

use std::hint::black_box;

/// Stack of sealing, opening and key derivation, bytes. 8 KiB are too few in a development build.
pub(crate) const FRAME: usize = 32 * 1024;
/// Of ML-KEM, OPAQUE and X25519.
pub(crate) const HANDSHAKE: usize = 128 * 1024;

/// Does the work, and overwrites so many bytes of the stack that it lay on. What it returns must
/// be no bare secret.
pub(crate) fn wiped<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let done = apart(work);
    overwrite::<DEPTH>();
    done
}

/// Begins where [`overwrite`] does.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const DEPTH: usize>() {
    let mut stack = [0u8; DEPTH];
    black_box(&mut stack);
}
