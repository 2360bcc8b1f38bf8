//! The kernel's random generator, as the core wants it.

use twinlock_core::Entropy;

/// Draws from the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    /// # Panics
    /// If the kernel has no random bytes to give: then no key may be made, and nothing sensible
    /// can go on.
    fn fill(&mut self, out: &mut [u8]) {
        #[allow(clippy::expect_used)]
        getrandom::fill(out).expect("the kernel's random generator works");
    }
}
