//! The one JWE format of classic connections: compact serialisation (RFC 7516), `alg` dir, `enc`
//! A256CBC-HS512 (RFC 7518, section 5.2.5).
//!
//! The header is one of two, compared as bytes. Nothing is negotiated, so nothing is parsed: no
//! JSON, no other algorithm, no compression.

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::Closed;
use crate::keys::LineKey;
use crate::schedule;
use crate::seal::{cbc_decrypt, cbc_encrypt};

/// Base64url of `{"alg":"dir","enc":"A256CBC-HS512"}`, which Twinlock sends, and of
/// `{"enc":"A256CBC-HS512","alg":"dir"}`, which other libraries produce.
const HEADERS: [&[u8]; 2] = [
    b"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIn0",
    b"eyJlbmMiOiJBMjU2Q0JDLUhTNTEyIiwiYWxnIjoiZGlyIn0",
];

/// Opens a line without its LF. Verifies the tag before it decrypts anything.
pub(super) fn open(key: &LineKey, line: &[u8]) -> Result<Zeroizing<Vec<u8>>, Closed> {
    let JweParts { header, encrypted_key, iv, mut c, tag } =
        JweParts::parse(line).ok_or(Closed::Form)?;
    if !HEADERS.contains(&header) || !encrypted_key.is_empty() {
        return Err(Closed::Form);
    }
    let len = cbc_hs512_open(key, header, &iv, &mut c, &tag).ok_or(Closed::Tag)?.len();
    c.truncate(len);
    Ok(c)
}

/// Appends the serialisation of `plain` to `out`.
pub(super) fn seal(key: &LineKey, iv: &[u8; 16], plain: &[u8], out: &mut Vec<u8>) {
    let [header, _] = HEADERS;
    let mut c = Zeroizing::new(plain.to_vec());
    c.resize(plain.len() / 16 * 16 + 16, 0);
    let tag = cbc_hs512_seal(key, header, iv, &mut c, plain.len());
    out.extend_from_slice(header);
    out.extend_from_slice(b"..");
    let parts: [&[u8]; 3] = [iv, &c, &tag];
    for (i, part) in parts.into_iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        out.extend_from_slice(BASE64URL_NOPAD.encode(part).as_bytes());
    }
}

/// The five parts of a compact serialisation. All but the header are decoded, because the tag
/// covers the header's encoded bytes.
struct JweParts<'a> {
    header: &'a [u8],
    encrypted_key: &'a [u8],
    iv: [u8; 16],
    /// Whole blocks, at least one.
    c: Zeroizing<Vec<u8>>,
    tag: [u8; 32],
}

impl<'a> JweParts<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.split(|b| *b == b'.');
        let mut next = || parts.next();
        let (header, encrypted_key, iv, c, tag) = (next()?, next()?, next()?, next()?, next()?);
        if parts.next().is_some() {
            return None;
        }
        let decode = |part: &[u8]| BASE64URL_NOPAD.decode(part).ok();
        let c = Zeroizing::new(decode(c)?);
        if c.is_empty() || c.len() % 16 != 0 {
            return None;
        }
        let (iv, tag) = (decode(iv)?.try_into().ok()?, decode(tag)?.try_into().ok()?);
        Some(Self { header, encrypted_key, iv, c, tag })
    }
}

/// `mac_key[32] || enc_key[32] = K`.
fn halves(key: &LineKey) -> (&[u8], &[u8; 32]) {
    let key = key.expose_secret();
    // 64 bytes have two halves.
    #[allow(clippy::expect_used)]
    let enc_key = key.last_chunk().expect("a key of 64 bytes");
    (key.split_at(32).0, enc_key)
}

/// Encrypts `c[..len]` in place with its padding, which must end with `c`, and returns the tag: the
/// first 32 bytes of `HMAC-SHA-512(mac_key, aad || iv || c || bits(aad):u64)`.
fn cbc_hs512_seal(key: &LineKey, aad: &[u8], iv: &[u8; 16], c: &mut [u8], len: usize) -> [u8; 32] {
    let (mac_key, enc_key) = halves(key);
    cbc_encrypt(enc_key, iv, c, len);
    let mac = schedule::hmac_512(mac_key, &[aad, iv, c, &bits(aad)]);
    let mut tag = [0; 32];
    tag.copy_from_slice(mac.split_at(32).0);
    tag
}

/// Decrypts in place if the tag verifies. Also `None` for wrong padding, which only a holder of the
/// key can produce.
fn cbc_hs512_open<'c>(
    key: &LineKey,
    aad: &[u8],
    iv: &[u8; 16],
    c: &'c mut [u8],
    tag: &[u8; 32],
) -> Option<&'c [u8]> {
    let (mac_key, enc_key) = halves(key);
    if !schedule::hmac_512_verify_half(mac_key, &[aad, iv, c, &bits(aad)], tag) {
        return None;
    }
    cbc_decrypt(enc_key, iv, c)
}

fn bits(aad: &[u8]) -> [u8; 8] {
    (aad.len() as u64 * 8).to_be_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use aes::Aes256;
    use aes::cipher::{BlockCipherDecrypt as _, KeyInit as _};
    use serde_json::Value;

    use super::*;
    use crate::vectors::{Case as _, Counts, Tally, is_valid, tests};

    /// RFC 7518, appendix B.3: sealed and opened.
    pub(crate) fn rfc_7518(file: &Value) -> Counts {
        let key = LineKey::new(&file.bytes("K"));
        let (plain, iv, aad) = (file.hex("P"), file.bytes("IV"), file.hex("A"));
        let mut c = plain.clone();
        c.resize(plain.len() / 16 * 16 + 16, 0);
        let tag = cbc_hs512_seal(&key, &aad, &iv, &mut c, plain.len());
        assert_eq!((&c, tag), (&file.hex("E"), file.bytes("T")));
        assert_eq!(cbc_hs512_open(&key, &aad, &iv, &mut c, &tag), Some(&plain[..]));
        vec![("sealed and opened", 1)]
    }

    /// RFC 7516, appendix A: all use other algorithms, so all are refused.
    pub(crate) fn rfc_7516(file: &Value) -> Counts {
        let mut tally = Tally::default();
        for case in file.list("compact") {
            let line = case.text("jwe");
            assert_eq!(line.split('.').count(), 5);
            assert_eq!(open(&LineKey::new(&[0; 64]), line.as_bytes()).err(), Some(Closed::Form));
            tally.add("other algorithms, all refused");
        }
        tally.done()
    }

    /// Wycheproof's vectors for the construction.
    pub(crate) fn a256cbc_hs512(file: &Value) -> Counts {
        let mut tally = Tally::expect(&["valid", "invalid"]);
        for (group, test) in tests(file) {
            assert_eq!(
                (group.num("keySize"), group.num("ivSize"), group.num("tagSize")),
                (512, 128, 256)
            );
            let key = LineKey::new(&test.bytes("key"));
            let (iv, aad, msg) = (test.bytes("iv"), test.hex("aad"), test.hex("msg"));
            let (ct, tag) = (test.hex("ct"), test.bytes("tag"));
            let mut c = ct.clone();
            let opened = cbc_hs512_open(&key, &aad, &iv, &mut c, &tag);
            if is_valid(test) {
                assert_eq!(opened, Some(&msg[..]), "{test}");
                let mut c = msg.clone();
                c.resize(msg.len() / 16 * 16 + 16, 0);
                assert_eq!(cbc_hs512_seal(&key, &aad, &iv, &mut c, msg.len()), tag, "{test}");
                assert_eq!(c, ct, "{test}");
                tally.add("valid");
            } else {
                assert_eq!(opened, None, "{test}");
                tally.add("invalid");
            }
        }
        tally.done()
    }

    /// Wycheproof's vectors for the serialisation.
    ///
    /// None has `alg` dir with our `enc`, so all are refused as lines. If AES-KW wraps the content
    /// key, the test unwraps it; the parser and the construction must then agree with Wycheproof.
    pub(crate) fn json_web_encryption(file: &Value) -> Counts {
        let mut tally = Tally::expect(&["valid", "invalid", "other algorithms, all refused"]);
        for (group, test) in tests(file) {
            let jwe = test["jwe"].as_str().unwrap_or_default().as_bytes();
            assert!(open(&LineKey::new(&[0; 64]), jwe).is_err(), "{test}");
            let private = &group["private"];
            let ours = test["jwe"].as_str().is_some_and(|jwe| {
                let header = BASE64URL_NOPAD.decode(jwe.split('.').next().unwrap().as_bytes());
                let header = String::from_utf8_lossy(&header.unwrap_or_default()).into_owned();
                header.contains(r#""alg":"A256KW""#) && header.contains(r#""enc":"A256CBC-HS512""#)
            });
            if private["alg"] != "A256KW" || !ours {
                tally.add("other algorithms, all refused");
                continue;
            }
            let kek = BASE64URL_NOPAD.decode(private.text("k").as_bytes()).unwrap();
            let opened = open_wrapped(&kek.try_into().unwrap(), jwe);
            if is_valid(test) {
                assert_eq!(opened, Some(test.hex("pt")), "{test}");
                tally.add("valid");
            } else {
                assert_eq!(opened, None, "{test}");
                tally.add("invalid");
            }
        }
        tally.done()
    }

    fn open_wrapped(kek: &[u8; 32], jwe: &[u8]) -> Option<Vec<u8>> {
        let mut parts = JweParts::parse(jwe)?;
        let key = unwrap_key(kek, &BASE64URL_NOPAD.decode(parts.encrypted_key).ok()?)?;
        let key = LineKey::new(&key);
        cbc_hs512_open(&key, parts.header, &parts.iv, &mut parts.c, &parts.tag).map(<[u8]>::to_vec)
    }

    /// RFC 3394, section 2.2.2, for a key of 64 bytes.
    fn unwrap_key(kek: &[u8; 32], wrapped: &[u8]) -> Option<[u8; 64]> {
        let cipher = Aes256::new(kek.into());
        let (head, rest) = wrapped.split_first_chunk::<8>()?;
        let mut a = *head;
        let mut r: [u8; 64] = rest.try_into().ok()?;
        for t in (1..=48u64).rev() {
            let i = ((t - 1) % 8) as usize * 8;
            let mut block = [0; 16];
            block[..8].copy_from_slice(&(u64::from_be_bytes(a) ^ t).to_be_bytes());
            block[8..].copy_from_slice(&r[i..i + 8]);
            let mut block = block.into();
            cipher.decrypt_block(&mut block);
            a.copy_from_slice(&block[..8]);
            r[i..i + 8].copy_from_slice(&block[8..]);
        }
        (a == [0xa6; 8]).then_some(r)
    }

    /// Only a holder of the key can create such a line.
    #[test]
    fn jwe__wrong_padding_under_valid_tag_is_rejected() {
        let (key, iv, [header, _]) = (LineKey::new(&[7; 64]), [9; 16], HEADERS);
        let (mac_key, enc_key) = halves(&key);
        let mut c = [b'x'; 32];
        cbc_encrypt(enc_key, &iv, &mut c, 16);
        let line = |c: &[u8]| {
            let mac = schedule::hmac_512(mac_key, &[header, &iv, c, &bits(header)]);
            let parts = [&iv[..], c, &mac[..32]].map(|part| BASE64URL_NOPAD.encode(part));
            format!("{}..{}", std::str::from_utf8(header).unwrap(), parts.join("."))
        };
        assert_eq!(open(&key, line(&c).as_bytes()).unwrap().as_slice(), [b'x'; 16]);
        // Without its last block, which is padding, the plaintext ends in text.
        assert_eq!(open(&key, line(&c[..16]).as_bytes()).unwrap_err(), Closed::Tag);
    }
}
