//! The kernel's random generator as an [`Entropy`] of the core.

use twinlock_core::Entropy;

/// Draws from the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    /// # Panics
    /// If the kernel returns no random bytes: no key may be generated then, so no work can
    /// continue.
    fn fill(&mut self, out: &mut [u8]) {
        #[allow(clippy::expect_used)]
        getrandom::fill(out).expect("the kernel's random generator works");
    }
}
