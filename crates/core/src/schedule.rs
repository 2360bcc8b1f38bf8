//! Every label of the protocol, and the hashing and key derivation that use them.
//!
//! Labels are ASCII without length or NUL (section "Notation"). No label is a prefix of another
//! label in the same position.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

pub(crate) const PASSWORD: &[u8] = b"tl1 pw";
pub(crate) const WORDS: &[u8] = b"tl1 words";
pub(crate) const HELLO: &[u8] = b"tl1 hello";
pub(crate) const CONTEXT: &[u8] = b"tl1 ctx";
pub(crate) const STEP_UP: &[u8] = b"tl1 step-up";
pub(crate) const TRANSCRIPT: &[u8] = b"tl1 th";
pub(crate) const C2S: &[u8] = b"tl1 c2s";
pub(crate) const S2C: &[u8] = b"tl1 s2c";
pub(crate) const RK: &[u8] = b"tl1 rk";
pub(crate) const SID: &[u8] = b"tl1 sid";
pub(crate) const MESSAGE: &[u8] = b"tl1 msg";
pub(crate) const BULK: &[u8] = b"tl1 bulk";
pub(crate) const REKEY: &[u8] = b"tl1 rekey";
pub(crate) const BODY: &[u8] = b"tl1 body";
pub(crate) const CONVERSATION: &[u8] = b"tl1 conversation";
pub(crate) const ENTRY: &[u8] = b"tl1 entry";
pub(crate) const ROWS: &[u8] = b"tl1 rows";
pub(crate) const CLASSIC_ROOT: &[u8] = b"tl1 classic";
pub(crate) const CLASSIC_KEY: &[u8] = b"tl1 classic key";
pub(crate) const CLASSIC_IMPORT: &[u8] = b"tl1 classic import";
pub(crate) const CLASSIC_LINE: &[u8] = b"tlc1 ";
pub(crate) const ORIGIN: &[u8] = b"tl1 origin";
pub(crate) const ORIGIN_DIRECTION: &[u8] = b"tl1 origin ";

/// Steps of a chain key (section 5).
pub(crate) const STEP_MESSAGE: u8 = 0x01;
pub(crate) const STEP_CHAIN: u8 = 0x02;

/// `H(parts...)`: SHA-256 over the concatenated parts.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut h = Sha256::new();
    for part in parts {
        h.update(part);
    }
    h.finalize().into()
}

/// `HMAC(key, parts...)`.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(hmac_ctx(key, parts).finalize().into_bytes().into())
}

/// Whether `tag` is `HMAC(key, parts...)`, in constant time.
pub(crate) fn hmac_verify(key: &[u8], parts: &[&[u8]], tag: &[u8]) -> bool {
    hmac_ctx(key, parts).verify_slice(tag).is_ok()
}

fn hmac_ctx(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    // HMAC takes a key of any length, so this cannot fail.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// `HMAC-SHA-512(key, parts...)`, for classic connections only.
pub(crate) fn hmac_512(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 64]> {
    Zeroizing::new(hmac_512_ctx(key, parts).finalize().into_bytes().into())
}

/// Whether `tag` is the first half of `HMAC-SHA-512(key, parts...)`, in constant time.
pub(crate) fn hmac_512_verify_half(key: &[u8], parts: &[&[u8]], tag: &[u8; 32]) -> bool {
    hmac_512_ctx(key, parts).verify_truncated_left(tag).is_ok()
}

fn hmac_512_ctx(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha512> {
    // HMAC takes a key of any length, so this cannot fail.
    #[allow(clippy::expect_used)]
    let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// `Extract(salt, ikm)`.
pub(crate) fn extract(salt: &[u8], ikm: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(Hkdf::<Sha256>::extract(Some(salt), ikm).0.into())
}

/// `Expand(prk, info...)` to `N` bytes, `N` at most 255 * 32.
pub(crate) fn expand<const N: usize>(prk: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= 255 * 32) };
    let mut out = Zeroizing::new([0; N]);
    // A 32-byte PRK and this length are always within HKDF's limits.
    #[allow(clippy::expect_used)]
    Hkdf::<Sha256>::from_prk(prk)
        .expect("a PRK of one hash length")
        .expand_multi_info(info, out.as_mut())
        .expect("checked at compile time");
    out
}
