//! ML-KEM-768 (FIPS 203) on byte arrays.

use ml_kem::kem::{Decapsulate as _, KeyExport as _};
use ml_kem::ml_kem_768::{DecapsulationKey, EncapsulationKey};
use zeroize::Zeroizing;

use crate::Entropy;
use crate::frame::{KEM_CT, KEM_EK};

/// The encapsulation key fails the check of FIPS 203, section 7.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadEncapsulationKey;

/// A decapsulation key, used for one exchange.
pub(crate) struct KemSecret(Box<DecapsulationKey>);

/// Generates a key pair. Draws 64 bytes: FIPS 203's d and z.
pub(crate) fn generate(entropy: &mut dyn Entropy) -> (KemSecret, [u8; KEM_EK]) {
    let mut seed = Zeroizing::new([0; 64]);
    entropy.fill(seed.as_mut());
    let secret = Box::new(DecapsulationKey::from_seed((*seed).into()));
    let ek = secret.encapsulation_key().to_bytes().into();
    (KemSecret(secret), ek)
}

/// `(kem_ct, ss) = Encaps(ek)`. Draws 32 bytes: FIPS 203's m.
pub(crate) fn encapsulate(
    ek: &[u8; KEM_EK],
    entropy: &mut dyn Entropy,
) -> Result<([u8; KEM_CT], Zeroizing<[u8; 32]>), BadEncapsulationKey> {
    let ek = EncapsulationKey::new(&(*ek).into()).map_err(|_| BadEncapsulationKey)?;
    let mut m = Zeroizing::new([0; 32]);
    entropy.fill(m.as_mut());
    let (ct, mut ss) = ek.encapsulate_deterministic(&(*m).into());
    let out = Zeroizing::new(ss.into());
    zeroize::Zeroize::zeroize(&mut ss.0);
    Ok((ct.into(), out))
}

/// Whether `ek` passes the check of FIPS 203, section 7.2.
pub(crate) fn check(ek: &[u8; KEM_EK]) -> Result<(), BadEncapsulationKey> {
    EncapsulationKey::new(&(*ek).into()).map(drop).map_err(|_| BadEncapsulationKey)
}

impl KemSecret {
    /// `ss = Decaps(ct)`. A ciphertext made for another key yields an unrelated secret, never an
    /// error (implicit rejection).
    pub(crate) fn decapsulate(&self, ct: &[u8; KEM_CT]) -> Zeroizing<[u8; 32]> {
        let mut ss = self.0.decapsulate(&(*ct).into());
        let out = Zeroizing::new(ss.into());
        zeroize::Zeroize::zeroize(&mut ss.0);
        out
    }
}
