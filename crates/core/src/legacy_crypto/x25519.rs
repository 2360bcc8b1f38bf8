//! X25519 (RFC 7748) on byte arrays.

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::Entropy;

/// A secret scalar, used for one exchange; wiped when dropped.
pub(crate) struct Secret(StaticSecret);

/// Generates a key pair. Draws 32 bytes.
pub(crate) fn generate(entropy: &mut dyn Entropy) -> (Secret, [u8; 32]) {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy.fill(bytes.as_mut());
    from_bytes(&bytes)
}

/// The key pair of these 32 bytes, clamped as in RFC 7748.
pub(crate) fn from_bytes(bytes: &[u8; 32]) -> (Secret, [u8; 32]) {
    let secret = StaticSecret::from(*bytes);
    let public = PublicKey::from(&secret).to_bytes();
    (Secret(secret), public)
}

impl Secret {
    /// The shared secret with `public`. `None` if it is all zero: `public` is then a point of small
    /// order, and this side would contribute nothing.
    pub(crate) fn exchange(self, public: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.0.diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }
}
