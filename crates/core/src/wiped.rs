//! Overwrites the stack that cryptographic code used.
//!
//! Moves and spills leave copies of keys and key schedules on the stack. The key types wipe only
//! the place of their last copy; [`wiped`] overwrites the earlier ones.

use std::hint::black_box;

/// Stack of sealing, opening and key derivation, bytes. 8 KiB is too little in a development build.
pub(crate) const FRAME: usize = 32 * 1024;
/// Stack of ML-KEM, OPAQUE and X25519, bytes.
pub(crate) const HANDSHAKE: usize = 128 * 1024;

/// Runs `work`, then overwrites the `DEPTH` bytes of stack that it ran on.
///
/// The return value must not be a bare secret.
pub(crate) fn wiped<const DEPTH: usize, T>(work: impl FnOnce() -> T) -> T {
    let done = in_own_frame(work);
    overwrite::<DEPTH>();
    done
}

/// Not inlined, so that its stack frame starts where that of [`overwrite`] does.
#[inline(never)]
fn in_own_frame<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const DEPTH: usize>() {
    let mut stack = [0u8; DEPTH];
    black_box(&mut stack);
}
