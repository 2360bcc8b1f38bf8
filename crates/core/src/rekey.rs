//! Rekey (section 6): a fresh ML-KEM-768 and X25519 exchange, mixed with the root key.
//!
//! Only the client starts a rekey. REKEY2 is the server's last frame of the old epoch, REKEY3 the
//! client's; each direction switches right after its own. The exchange is hybrid, so that recorded
//! traffic stays secret if either algorithm holds.

use zeroize::Zeroizing;

use crate::frame::{KEM_CT, KEM_EK};
use crate::kem::{self, KemSecret};
use crate::keys::{ChainKey, RootKey};
use crate::legacy_crypto::x25519;
use crate::wiped::{self, wiped};
use crate::{Entropy, schedule};

/// `kem_ek[1184] || x_c[32]`.
pub(crate) const REKEY1: usize = KEM_EK + 32;
/// `kem_ct[1088] || x_s[32]`.
pub(crate) const REKEY2: usize = KEM_CT + 32;

/// The peer's keys are invalid for key agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadRekey;

/// The keys of the next epoch.
pub(crate) struct NextKeys {
    pub(crate) ck_c2s: ChainKey,
    pub(crate) ck_s2c: ChainKey,
    pub(crate) rk: RootKey,
}

/// The client between REKEY1 and REKEY2.
pub(crate) struct AwaitRekey2 {
    kem: KemSecret,
    x: x25519::Secret,
    rekey1: Box<[u8; REKEY1]>,
}

impl AwaitRekey2 {
    /// Starts a rekey. Draws 64 bytes for the KEM and 32 for X25519.
    pub(crate) fn start(entropy: &mut dyn Entropy) -> Self {
        wiped::<{ wiped::HANDSHAKE }, _>(|| Self::draw(entropy))
    }

    fn draw(entropy: &mut dyn Entropy) -> Self {
        let (kem, ek) = kem::generate(entropy);
        let (x, x_c) = x25519::generate(entropy);
        let mut rekey1 = Box::new([0; REKEY1]);
        let (to_ek, to_x) = rekey1.split_at_mut(KEM_EK);
        to_ek.copy_from_slice(&ek);
        to_x.copy_from_slice(&x_c);
        Self { kem, x, rekey1 }
    }

    /// The body of REKEY1.
    pub(crate) fn body(&self) -> &[u8; REKEY1] {
        &self.rekey1
    }

    /// Takes REKEY2 and derives the keys of `epoch`, the next epoch.
    pub(crate) fn finish(
        self,
        rekey2: &[u8; REKEY2],
        epoch: u32,
        rk: &RootKey,
    ) -> Result<NextKeys, BadRekey> {
        let (ct, x_s) = rekey2.split_first_chunk::<KEM_CT>().ok_or(BadRekey)?;
        let x_s = x_s.try_into().map_err(|_| BadRekey)?;
        wiped::<{ wiped::HANDSHAKE }, _>(|| {
            let mlkem_ss = self.kem.decapsulate(ct);
            let x25519_ss = self.x.exchange(x_s).ok_or(BadRekey)?;
            Ok(next_keys(epoch, [self.rekey1.as_slice(), rekey2], rk, &mlkem_ss, &x25519_ss))
        })
    }
}

/// Answers REKEY1: derives the keys of `epoch`, the next epoch, and returns the body of REKEY2.
/// Draws 32 bytes for the KEM and 32 for X25519.
pub(crate) fn answer(
    rekey1: &[u8; REKEY1],
    epoch: u32,
    rk: &RootKey,
    entropy: &mut dyn Entropy,
) -> Result<(NextKeys, Vec<u8>), BadRekey> {
    let (ek, x_c) = rekey1.split_first_chunk::<KEM_EK>().ok_or(BadRekey)?;
    let x_c = x_c.try_into().map_err(|_| BadRekey)?;
    wiped::<{ wiped::HANDSHAKE }, _>(|| {
        let (ct, mlkem_ss) = kem::encapsulate(ek, entropy).map_err(|_| BadRekey)?;
        let (x, x_s) = x25519::generate(entropy);
        let x25519_ss = x.exchange(x_c).ok_or(BadRekey)?;
        let rekey2 = [ct.as_slice(), &x_s].concat();
        let keys = next_keys(epoch, [rekey1, &rekey2], rk, &mlkem_ss, &x25519_ss);
        Ok((keys, rekey2))
    })
}

fn next_keys(
    epoch: u32,
    [rekey1, rekey2]: [&[u8]; 2],
    rk: &RootKey,
    mlkem_ss: &[u8; 32],
    x25519_ss: &[u8; 32],
) -> NextKeys {
    let t = schedule::hash(&[schedule::REKEY, &epoch.to_be_bytes(), rekey1, rekey2]);
    let mut ikm = Zeroizing::new([0; 64]);
    for (to, from) in ikm.iter_mut().zip(mlkem_ss.iter().chain(x25519_ss)) {
        *to = *from;
    }
    let prk = schedule::extract(rk.expose_secret(), ikm.as_slice());
    NextKeys {
        ck_c2s: ChainKey::new(&schedule::expand(&prk, &[schedule::C2S, &t])),
        ck_s2c: ChainKey::new(&schedule::expand(&prk, &[schedule::S2C, &t])),
        rk: RootKey::new(&schedule::expand(&prk, &[schedule::RK, &t])),
    }
}
