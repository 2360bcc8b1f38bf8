//! The two message forms of the origin bridge (section 11).
//!
//! `base64(IV || AES-256-CBC(PKCS#7(text)))` under one shared key, as the origin's own programs use
//! it, and the same with a MAC.
//!
//! The first form has no integrity protection, and anyone who can send to the port learns whether a
//! message opened. Two measures limit this: wrong padding and wrong UTF-8 take the same steps, and
//! the listener slows down guesses.

use data_encoding::BASE64;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _, ConstantTimeGreater as _};
use zeroize::Zeroizing;

use super::ClassicScheme;
use crate::Entropy;
use crate::keys::ClassicSecret;
use crate::schedule;
use crate::seal::{cbc_decrypt_blocks, cbc_encrypt};
use crate::wiped::{self, wiped};

/// Longest message, characters of base64 without its LF.
pub const MAX_MESSAGE: usize = 8192;

const BLOCK: usize = 16;
const TAG: usize = 32;

/// Both directions of a key of one of the two forms, as the server uses them.
#[derive(Debug)]
pub struct Bridge {
    read: BridgeDirection,
    write: BridgeDirection,
}

/// One direction. Without a MAC key it has the plain form, whose directions are identical.
struct BridgeDirection {
    key: ClassicSecret,
    mac_key: Option<ClassicSecret>,
}

impl std::fmt::Debug for BridgeDirection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BridgeDirection(..)")
    }
}

impl Bridge {
    /// Creates the server's end for a key. `None` for a key of JWE lines.
    #[must_use]
    pub fn new(form: ClassicScheme, shared: &ClassicSecret) -> Option<Self> {
        let direction = |dir: &str| match form {
            ClassicScheme::Jwe => None,
            ClassicScheme::Origin => Some(BridgeDirection {
                key: ClassicSecret::new(shared.expose_secret()),
                mac_key: None,
            }),
            ClassicScheme::OriginHmac => {
                Some(wiped::<{ wiped::FRAME }, _>(|| BridgeDirection::with_mac(shared, dir)))
            }
        };
        Some(Self { read: direction("c2s")?, write: direction("s2c")? })
    }

    /// Opens a message without LF and returns its text; `None` on any failure.
    #[must_use]
    pub fn open(&self, message: &[u8]) -> Option<String> {
        wiped::<{ wiped::FRAME }, _>(|| self.read.open(message))
    }

    /// Seals a message of the other direction, without LF. Draws 16 bytes.
    pub fn seal(&self, text: &str, entropy: &mut (impl Entropy + ?Sized)) -> String {
        let mut iv = [0; BLOCK];
        entropy.fill(&mut iv);
        wiped::<{ wiped::FRAME }, _>(|| self.write.seal(&iv, text))
    }

    /// The client's end with the same key. Twinlock itself is always the server.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { read: self.write, write: self.read }
    }
}

impl BridgeDirection {
    /// `key[32] || mac_key[32] = Expand(Extract("tl1 origin", shared), "tl1 origin " || dir, 64)`.
    fn with_mac(shared: &ClassicSecret, dir: &str) -> Self {
        let prk = schedule::extract(schedule::ORIGIN, shared.expose_secret());
        let both = schedule::expand::<64>(&prk, &[schedule::ORIGIN_DIRECTION, dir.as_bytes()]);
        let half = |half: Option<&[u8; 32]>| {
            // 64 bytes have two halves.
            #[allow(clippy::expect_used)]
            ClassicSecret::new(half.expect("a key of 64 bytes"))
        };
        Self { key: half(both.first_chunk()), mac_key: Some(half(both.last_chunk())) }
    }

    fn seal(&self, iv: &[u8; BLOCK], text: &str) -> String {
        let mut bytes = Zeroizing::new(Vec::new());
        bytes.extend_from_slice(iv);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(BLOCK + text.len() / BLOCK * BLOCK + BLOCK, 0);
        if let Some(c) = bytes.get_mut(BLOCK..) {
            cbc_encrypt(self.key.expose_secret(), iv, c, text.len());
        }
        if let Some(mac_key) = &self.mac_key {
            let tag = schedule::hmac(mac_key.expose_secret(), &[&bytes]);
            bytes.extend_from_slice(tag.as_slice());
        }
        BASE64.encode(&bytes)
    }

    fn open(&self, message: &[u8]) -> Option<String> {
        if message.len() > MAX_MESSAGE {
            return None;
        }
        let mut bytes = Zeroizing::new(BASE64.decode(message).ok()?);
        if let Some(mac_key) = &self.mac_key {
            let (sealed, tag) = bytes.split_last_chunk::<TAG>()?;
            if !schedule::hmac_verify(mac_key.expose_secret(), &[sealed], tag) {
                return None;
            }
            let len = sealed.len();
            bytes.truncate(len);
        }
        let (iv, c) = bytes.split_first_chunk_mut::<BLOCK>()?;
        if c.is_empty() || !cbc_decrypt_blocks(self.key.expose_secret(), iv, c) {
            return None;
        }
        text(c)
    }
}

/// The text of decrypted blocks.
///
/// Padding is checked in constant time. UTF-8 is checked whether or not the padding is valid, and
/// in time independent of where it is wrong. Padding is ASCII, so the blocks are UTF-8 if the text
/// is, and the two failures are indistinguishable.
fn text(blocks: &[u8]) -> Option<String> {
    let (good, pad) = padding(blocks);
    if !bool::from(good & is_utf8(blocks)) {
        return None;
    }
    std::str::from_utf8(blocks)
        .ok()?
        .get(..blocks.len().checked_sub(usize::from(pad))?)
        .map(ToOwned::to_owned)
}

/// Whether `bytes` is UTF-8, without a branch or a table lookup that depends on the content.
///
/// The standard library's check stops at the first error. This one follows table 3-7 of the Unicode
/// standard.
fn is_utf8(bytes: &[u8]) -> Choice {
    let within = |byte: u8, from: u8, to: u8| u8::from(byte.wrapping_sub(from) <= to - from);
    let is = |byte: u8, other: u8| within(byte, other, other);
    // `yes` if `which` is 1, `no` if it is 0.
    let pick = |which: u8, yes: u8, no: u8| no ^ ((no ^ yes) & which.wrapping_neg());
    // How many bytes of the character remain, and the range of the next one.
    let (mut more, mut from, mut to) = (0, 0x80, 0xbf);
    let mut bad = 0;
    for &b in bytes {
        let first = is(more, 0);
        let (one, two) = (within(b, 0x00, 0x7f), within(b, 0xc2, 0xdf));
        let (three, four) = (within(b, 0xe0, 0xef), within(b, 0xf0, 0xf4));
        let next = within(b, from, to);
        bad |= 1 ^ pick(first, one | two | three | four, next);
        more = pick(first, two + 2 * three + 3 * four, more.wrapping_sub(1));
        from = 0x80 + first * (0x20 * is(b, 0xe0) + 0x10 * is(b, 0xf0));
        to = 0xbf - first * (0x20 * is(b, 0xed) + 0x30 * is(b, 0xf4));
    }
    bad.ct_eq(&0) & more.ct_eq(&0)
}

/// Whether the last block ends in PKCS#7 padding, and its length, without a branch on the content.
fn padding(blocks: &[u8]) -> (Choice, u8) {
    let Some(block) = blocks.last_chunk::<BLOCK>() else { return (Choice::from(0), 0) };
    let &[.., pad] = block;
    let block_len = BLOCK as u8;
    let mut good = !pad.ct_eq(&0) & !pad.ct_gt(&block_len);
    for (before_end, byte) in block.iter().rev().enumerate() {
        let inside = pad.ct_gt(&(before_end as u8));
        good &= !inside | byte.ct_eq(&pad);
    }
    (good, u8::conditional_select(&0, &pad, good))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_entropy::Zeros;

    #[test]
    fn origin_bridge__padding_check_matches_pkcs7() {
        for pad in 0..=255u8 {
            let mut block = [b'x'; 16];
            for byte in block.iter_mut().rev().take(usize::from(pad)) {
                *byte = pad;
            }
            block[15] = pad;
            let good = (1..=16).contains(&pad);
            assert_eq!(bool::from(padding(&block).0), good, "{pad}");
            if !good {
                continue;
            }
            assert_eq!(padding(&block).1, pad);
            // Each byte of the padding counts, and none before it does.
            for i in 0..15 {
                let mut changed = block;
                changed[i] ^= 0x80;
                let inside = i >= 16 - usize::from(pad);
                assert_eq!(bool::from(padding(&changed).0), !inside, "{pad} {i}");
            }
        }
        assert!(!bool::from(padding(&[1; 15]).0));
    }

    #[test]
    fn origin_bridge__text_before_padding_must_be_utf8() {
        let padded = |text: &[u8]| {
            let pad = 16 - text.len() % 16;
            [text, &vec![pad as u8; pad]].concat()
        };
        for good in ["", "hello", "exactly 16 bytes", "Grüße ☃"] {
            assert_eq!(text(&padded(good.as_bytes())).as_deref(), Some(good));
        }
        for bad in [&b"\xff"[..], b"cut \xe2\x98", b"cut at the end: \xe2", b"\xed\xa0\x80"] {
            assert_eq!(text(&padded(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn origin_bridge__utf8_check_matches_std() {
        let compare = |bytes: &[u8]| {
            assert_eq!(
                bool::from(is_utf8(bytes)),
                std::str::from_utf8(bytes).is_ok(),
                "{bytes:x?}"
            );
        };
        for a in 0..=255 {
            for b in 0..=255 {
                compare(&[a, b]);
                // Bytes at the limits of the range that may follow.
                for c in [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff] {
                    compare(&[a, b, c]);
                    compare(&[b'x', a, b, c, 0x80]);
                    compare(&[a, b, c, 0xbf, b'x']);
                    compare(&[a, b, 0x80, c]);
                }
            }
        }
    }

    #[test]
    fn origin_bridge__message_opens_in_its_own_form_only() {
        let key = ClassicSecret::new(&[9; 32]);
        let bridge = |form| Bridge::new(form, &key).unwrap();
        assert!(Bridge::new(ClassicScheme::Jwe, &key).is_none());
        for (form, other) in [
            (ClassicScheme::Origin, ClassicScheme::OriginHmac),
            (ClassicScheme::OriginHmac, ClassicScheme::Origin),
        ] {
            let message = bridge(form).reversed().seal("Grüße ☃", &mut Zeros);
            assert_eq!(bridge(form).open(message.as_bytes()).as_deref(), Some("Grüße ☃"));
            assert_eq!(bridge(other).open(message.as_bytes()), None);
        }
        // With a MAC, an answer does not pass as a message.
        let answer = bridge(ClassicScheme::OriginHmac).seal("x", &mut Zeros);
        assert_eq!(bridge(ClassicScheme::OriginHmac).open(answer.as_bytes()), None);
    }

    #[test]
    fn origin_bridge__hmac_detects_every_changed_bit() {
        let bridge =
            || Bridge::new(ClassicScheme::OriginHmac, &ClassicSecret::new(&[9; 32])).unwrap();
        let message = bridge().reversed().seal("hello", &mut Zeros);
        let bytes = BASE64.decode(message.as_bytes()).unwrap();
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[i] ^= 1 << bit;
                assert_eq!(bridge().open(BASE64.encode(&changed).as_bytes()), None, "{i} {bit}");
            }
        }
    }

    #[test]
    fn origin_bridge__message_over_8192_characters_is_rejected() {
        let bridge = || Bridge::new(ClassicScheme::Origin, &ClassicSecret::new(&[9; 32])).unwrap();
        let message = |len: usize| bridge().reversed().seal(&"x".repeat(len), &mut Zeros);
        assert_eq!((message(6127).len(), message(6128).len()), (MAX_MESSAGE, MAX_MESSAGE + 24));
        assert!(bridge().open(message(6127).as_bytes()).is_some());
        assert!(bridge().open(message(6128).as_bytes()).is_none());
    }
}
