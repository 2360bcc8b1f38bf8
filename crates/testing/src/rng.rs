//! The random generator of all tests. Its seed makes a failure reproducible.

use std::time::{SystemTime, UNIX_EPOCH};

use twinlock_core::Entropy;
use twinlock_transport::OsEntropy;

/// A SplitMix64 generator: random enough for test data and test keys.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Takes the seed from `TWINLOCK_SEED`, else from the clock, and prints it.
    #[must_use]
    pub fn from_env() -> Self {
        let seed = std::env::var("TWINLOCK_SEED").map(|seed| seed.parse().unwrap());
        let seed: u64 = seed.unwrap_or_else(|_| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::try_from(now.as_nanos() & u128::from(u64::MAX)).unwrap()
        });
        eprintln!("TWINLOCK_SEED={seed}");
        Self(seed)
    }

    /// A generator that always returns the same sequence for a seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `from..to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.draw() % (to - from)
    }
}

impl Entropy for Rng {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// File content without repetitions, different for each seed.
#[must_use]
pub fn bytes(size: usize, seed: u64) -> Vec<u8> {
    // Consecutive seeds would give the same sequence, shifted by one draw.
    let mut rng = Rng(Rng(seed).draw());
    let mut bytes = vec![0; size];
    rng.fill(&mut bytes);
    bytes
}

/// Bytes that no other call returns, for ids and secrets.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsEntropy.fill(&mut bytes);
    bytes
}
