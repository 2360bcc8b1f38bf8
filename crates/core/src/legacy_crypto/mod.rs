//! Adapters for an older generation of crates (opaque-ke 4.0, x25519-dalek 2, rand_core 0.6).
//!
//! The functions take and return byte arrays; none of the crates' types leaves this folder.
//!
//! opaque-ke's `deserialize` accepts trailing bytes, and its stretching is optional with a silent
//! default. Here every length is in the type, and every call names its stretching.

pub mod opaque;
pub(crate) mod x25519;

use crate::Entropy;

/// Adapts an [`Entropy`] to crates that need a `rand_core` 0.6 generator.
pub(crate) struct RngAdapter<'a>(pub(crate) &'a mut dyn Entropy);

impl rand_core_06::RngCore for RngAdapter<'_> {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill(dest);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), rand_core_06::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

impl rand_core_06::CryptoRng for RngAdapter<'_> {}
