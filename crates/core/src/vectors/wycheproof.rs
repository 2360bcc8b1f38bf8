//! Wycheproof's cases through the functions that the protocol calls.
//!
//! Those functions take fixed sizes. Cases of other sizes are skipped, as each test states, and
//! counted.

use serde_json::Value;

use super::{Case, Counts, Script, Tally};
use crate::frame::{KEM_CT, KEM_EK};
use crate::legacy_crypto::x25519 as dh;
use crate::{kem, schedule, seal};

/// All tests of a file, each with its group.
pub(crate) fn tests(file: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let all = file.list("testGroups").iter();
    let tests = all.flat_map(|group| group.list("tests").iter().map(move |test| (group, test)));
    assert_eq!(tests.clone().count() as u64, file.num("numberOfTests"));
    tests
}

pub(crate) fn is_valid(test: &Value) -> bool {
    match test.text("result") {
        "valid" => true,
        "invalid" => false,
        other => panic!("result {other}"),
    }
}

fn once(bytes: Vec<u8>) -> Script {
    let mut script = Script::default();
    script.push("drawn", bytes);
    script
}

/// 256-bit keys only.
pub(super) fn aes_cbc(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["valid", "invalid", "keys of other sizes"]);
    for (group, test) in tests(file) {
        if group.num("keySize") != 256 {
            tally.add("keys of other sizes");
            continue;
        }
        let (key, iv) = (test.bytes("key"), test.bytes("iv"));
        let (msg, ct) = (test.hex("msg"), test.hex("ct"));
        let mut buf = ct.clone();
        let opened = seal::cbc_decrypt(&key, &iv, &mut buf);
        if is_valid(test) {
            assert_eq!(opened, Some(&msg[..]), "{test}");
            let mut buf = msg.clone();
            buf.resize(msg.len() / 16 * 16 + 16, 0);
            seal::cbc_encrypt(&key, &iv, &mut buf, msg.len());
            assert_eq!(buf, ct, "{test}");
            tally.add("valid");
        } else {
            assert_eq!(opened, None, "{test}");
            tally.add("invalid");
        }
    }
    tally.done()
}

/// 256-bit keys, 96-bit nonces, 128-bit tags only.
pub(super) fn aes_gcm(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["valid", "invalid", "keys or nonces of other sizes"]);
    for (group, test) in tests(file) {
        let sizes = (group.num("keySize"), group.num("ivSize"), group.num("tagSize"));
        if sizes != (256, 96, 128) {
            tally.add("keys or nonces of other sizes");
            continue;
        }
        let (key, nonce, aad) = (test.bytes("key"), test.bytes("iv"), test.hex("aad"));
        let (msg, ct, tag) = (test.hex("msg"), test.hex("ct"), test.bytes("tag"));
        let mut buf = ct.clone();
        let opened = seal::gcm_decrypt(&key, &nonce, &aad, &mut buf, &tag);
        assert_eq!(opened, is_valid(test), "{test}");
        if opened {
            assert_eq!(buf, msg, "{test}");
            assert_eq!(seal::gcm_encrypt(&key, &nonce, &aad, &mut buf), tag, "{test}");
            assert_eq!(buf, ct, "{test}");
            tally.add("valid");
        } else {
            tally.add("invalid");
        }
    }
    tally.done()
}

/// `expand` has its length at compile time: tests the lengths that occur. The invalid cases request
/// more than HKDF's maximum, which does not compile here.
pub(super) fn hkdf(file: &Value) -> Counts {
    let mut tally = Tally::default();
    for (_, test) in tests(file) {
        let size = usize::try_from(test.num("size")).unwrap();
        if !is_valid(test) {
            assert!(size > 255 * 32, "{test}");
            tally.add("longer than HKDF goes");
            continue;
        }
        let prk = schedule::extract(&test.hex("salt"), &test.hex("ikm"));
        let info = test.hex("info");
        // The info in one piece and in two, because `expand` concatenates the pieces.
        let (a, b) = info.split_at(info.len() / 2);
        let longest = schedule::expand::<8160>(&prk, &[a, b]);
        assert_eq!(longest[..size], test.hex("okm"), "{test}");
        let okm = test.hex("okm");
        assert_eq!(schedule::expand::<16>(&prk, &[&info])[..16.min(size)], okm[..16.min(size)]);
        assert_eq!(schedule::expand::<80>(&prk, &[&info])[..80.min(size)], okm[..80.min(size)]);
        tally.add("valid");
    }
    tally.done()
}

/// Whole tags only; a truncated tag is always refused.
pub(super) fn hmac(file: &Value) -> Counts {
    let mut tally = Tally::default();
    for (group, test) in tests(file) {
        let (key, msg, tag) = (test.hex("key"), test.hex("msg"), test.hex("tag"));
        let (a, b) = msg.split_at(msg.len() / 2);
        let passes = schedule::hmac_verify(&key, &[a, b], &tag);
        if group.num("tagSize") != 256 {
            assert!(!passes, "{test}");
            tally.add("cut tags, all refused");
            continue;
        }
        assert_eq!(passes, is_valid(test), "{test}");
        assert_eq!(schedule::hmac(&key, &[&msg])[..] == tag, is_valid(test), "{test}");
        tally.add(if passes { "valid" } else { "invalid" });
    }
    tally.done()
}

/// An all-zero shared secret is refused; every other one is as in RFC 7748.
pub(super) fn x25519(file: &Value) -> Counts {
    let mut tally = Tally::default();
    for (_, test) in tests(file) {
        assert!(matches!(test.text("result"), "valid" | "acceptable"));
        let shared: [u8; 32] = test.bytes("shared");
        let (secret, _) = dh::from_bytes(&test.bytes("private"));
        let got = secret.exchange(&test.bytes("public")).map(|ss| *ss);
        let expected = (shared != [0; 32]).then_some(shared);
        assert_eq!(got, expected, "{test}");
        tally.add(if expected.is_some() { "shared" } else { "all zero" });
    }
    tally.done()
}

pub(super) fn mlkem_keygen(file: &Value) -> Counts {
    let mut tally = Tally::default();
    for (_, test) in tests(file) {
        assert!(is_valid(test));
        let (_, ek) = kem::generate(&mut once(test.hex("seed")));
        assert_eq!(ek[..], test.hex("ek"), "{test}");
        tally.add("valid");
    }
    tally.done()
}

/// Encapsulation keys with a coefficient out of range are refused; other lengths do not fit the
/// type.
pub(super) fn mlkem_encaps(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["valid", "invalid"]);
    for (_, test) in tests(file) {
        let valid = is_valid(test);
        let Ok(ek) = <[u8; KEM_EK]>::try_from(test.hex("ek")) else {
            assert!(!valid, "{test}");
            tally.add("invalid");
            continue;
        };
        assert_eq!(kem::check(&ek).is_ok(), valid, "{test}");
        match kem::encapsulate(&ek, &mut once(test.hex("m"))) {
            Ok((ct, ss)) => {
                assert!(valid, "{test}");
                assert_eq!((&ct[..], &ss[..]), (&test.hex("c")[..], &test.hex("K")[..]), "{test}");
                tally.add("valid");
            }
            Err(_) => {
                assert!(!valid, "{test}");
                tally.add("invalid");
            }
        }
    }
    tally.done()
}

/// Seed, key, ciphertext to secret. The types fix the sizes, so a seed or a ciphertext of another
/// size cannot be passed.
pub(super) fn mlkem_decaps(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["valid", "seeds or ciphertexts of other sizes"]);
    for (_, test) in tests(file) {
        let (seed, ct) = (test.hex("seed"), <[u8; KEM_CT]>::try_from(test.hex("c")));
        let (64, Ok(ct)) = (seed.len(), ct) else {
            assert!(!is_valid(test), "{test}");
            tally.add("seeds or ciphertexts of other sizes");
            continue;
        };
        assert!(is_valid(test), "{test}");
        let (secret, ek) = kem::generate(&mut once(seed));
        assert_eq!(ek[..], test.hex("ek"), "{test}");
        assert_eq!(secret.decapsulate(&ct)[..], test.hex("K"), "{test}");
        tally.add("valid");
    }
    tally.done()
}
