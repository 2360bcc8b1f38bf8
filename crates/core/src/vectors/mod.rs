//! Runs every file of the project's `vectors/` folder.
//!
//! Each row of the table below is a file and the test that runs it. A file without a row fails
//! [`vectors__listed_files_match_directory`]. Each row states how many cases of which kind ran, so that no case is
//! skipped silently.

mod chain;
mod classic;
mod handshake;
mod invite;
mod rekey;
mod sealed;
mod wycheproof;

pub(crate) use wycheproof::{is_valid, tests};

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::Entropy;
use crate::classic::tests as jwe;
use crate::legacy_crypto::opaque::rfc9807;

/// How many cases of each kind ran, or were skipped and why.
pub(crate) type Counts = Vec<(&'static str, usize)>;

/// `test name: file => function that runs it, expected counts;`
macro_rules! claims {
    ($($test:ident: $file:literal => $run:path, [$($counted:expr),* $(,)?];)*) => {
        const CLAIMED: &[&str] = &[$($file),*];
        $(#[test] fn $test() {
            assert_eq!($run(&load($file)), [$($counted),*]);
        })*
    };
}

claims! {
    handshake_json: "handshake.json" => handshake::run,
        [("registrations", 3), ("accepted", 3), ("client refuses", 3), ("bad HELLO", 13), ("bad header", 6), ("bad PROOF", 1)];
    sealed_json: "sealed.json" => sealed::run_sealed,
        [("frames of runs", 9), ("edges", 18), ("opens", 3), ("drop", 9), ("close", 7), ("CLOSE 1", 16)];
    bulk_json: "bulk.json" => sealed::run_bulk,
        [("frames of the run", 6), ("opens", 1), ("drop", 6), ("close", 3)];
    rekey_json: "rekey.json" => rekey::run, [("sealed", 20), ("events", 18), ("refused", 7)];
    chain_json: "chain.json" => chain::run, [("entries", 10), ("verifies", 3), ("broken", 9)];
    invite_json: "invite.json" => invite::run,
        [("accepted", 8), ("refused", 26), ("fingerprints", 3), ("words", 2048)];
    classic_json: "classic.json" => classic::run,
        [("lines", 7), ("lines refused", 19), ("origin messages", 5), ("origin refused", 9)];

    aes_cbc_pkcs5: "wycheproof/aes_cbc_pkcs5_test.json" => wycheproof::aes_cbc,
        [("valid", 24), ("invalid", 48), ("keys of other sizes", 144)];
    aes_gcm: "wycheproof/aes_gcm_test.json" => wycheproof::aes_gcm,
        [("valid", 39), ("invalid", 27), ("keys or nonces of other sizes", 250)];
    hkdf_sha256: "wycheproof/hkdf_sha256_test.json" => wycheproof::hkdf,
        [("valid", 83), ("longer than HKDF goes", 3)];
    hmac_sha256: "wycheproof/hmac_sha256_test.json" => wycheproof::hmac,
        [("valid", 33), ("invalid", 54), ("cut tags, all refused", 87)];
    x25519: "wycheproof/x25519_test.json" => wycheproof::x25519,
        [("shared", 487), ("all zero", 31)];
    mlkem_768_keygen: "wycheproof/mlkem_768_keygen_seed_test.json" => wycheproof::mlkem_keygen,
        [("valid", 100)];
    mlkem_768_encaps: "wycheproof/mlkem_768_encaps_test.json" => wycheproof::mlkem_encaps,
        [("valid", 133), ("invalid", 132)];
    mlkem_768: "wycheproof/mlkem_768_test.json" => wycheproof::mlkem_decaps,
        [("valid", 153), ("seeds or ciphertexts of other sizes", 40)];

    a256cbc_hs512: "wycheproof/a256cbc_hs512_test.json" => jwe::a256cbc_hs512,
        [("valid", 67), ("invalid", 27)];
    json_web_encryption: "wycheproof/json_web_encryption_test.json" => jwe::json_web_encryption,
        [("valid", 2), ("invalid", 18), ("other algorithms, all refused", 119)];

    rfc_7516: "rfc7516/compact.json" => jwe::rfc_7516, [("other algorithms, all refused", 1)];
    rfc_7518: "rfc7518/b3.json" => jwe::rfc_7518, [("sealed and opened", 1)];
    rfc_9807: "rfc9807/ristretto255_3dh.json" => rfc9807::run, [("real", 2), ("fake", 1)];
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors")
}

fn load(file: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn walk(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.insert(path.strip_prefix(folder()).unwrap().to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn vectors__listed_files_match_directory() {
    let mut found = BTreeSet::new();
    walk(&folder(), &mut found);
    for prose in [
        "README.md",
        "rfc7518/README.md",
        "rfc7516/README.md",
        "rfc9807/README.md",
        "wycheproof/README.md",
        "wycheproof/LICENSE",
    ] {
        assert!(found.remove(prose), "{prose} is missing");
    }
    let claimed: BTreeSet<String> = CLAIMED.iter().map(|&file| file.to_owned()).collect();
    assert_eq!(found, claimed);
}

/// Reads cases; a missing field or one of another type fails the test.
pub(crate) trait Case {
    fn hex(&self, key: &str) -> Vec<u8>;
    fn text(&self, key: &str) -> &str;
    fn num(&self, key: &str) -> u64;
    fn list(&self, key: &str) -> &[Value];
    fn has(&self, key: &str) -> bool;

    fn bytes<const N: usize>(&self, key: &str) -> [u8; N] {
        self.hex(key).try_into().unwrap()
    }
}

impl Case for Value {
    fn hex(&self, key: &str) -> Vec<u8> {
        HEXLOWER.decode(self.text(key).as_bytes()).unwrap()
    }

    fn text(&self, key: &str) -> &str {
        self[key].as_str().unwrap_or_else(|| panic!("no text {key}"))
    }

    fn num(&self, key: &str) -> u64 {
        self[key].as_u64().unwrap_or_else(|| panic!("no number {key}"))
    }

    fn list(&self, key: &str) -> &[Value] {
        self[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
    }

    fn has(&self, key: &str) -> bool {
        !self[key].is_null()
    }
}

/// Counts cases by kind, in the order in which the kinds are first named.
#[derive(Default)]
pub(crate) struct Tally(Counts);

impl Tally {
    pub(crate) fn add(&mut self, kind: &'static str) {
        self.add_many(kind, 1);
    }

    pub(crate) fn add_many(&mut self, kind: &'static str, n: usize) {
        match self.0.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, count)) => *count += n,
            None => self.0.push((kind, n)),
        }
    }

    /// Names kinds before their first case, which fixes their order.
    pub(crate) fn expect(kinds: &[&'static str]) -> Self {
        Self(kinds.iter().map(|&kind| (kind, 0)).collect())
    }

    pub(crate) fn done(self) -> Counts {
        self.0
    }
}

/// Replays random draws in order; a draw of another size, or one too many, fails the test.
#[derive(Default)]
pub(crate) struct Script(VecDeque<(String, Vec<u8>)>);

impl Script {
    /// Reads a list of `{name, bytes}`.
    pub(crate) fn of(draws: &Value) -> Self {
        let draws = draws.as_array().unwrap();
        Self(draws.iter().map(|d| (d.text("name").to_owned(), d.hex("bytes"))).collect())
    }

    pub(crate) fn push(&mut self, name: &str, bytes: Vec<u8>) {
        self.0.push_back((name.to_owned(), bytes));
    }

    /// Asserts that no draws are left.
    pub(crate) fn done(self) {
        assert!(self.0.is_empty(), "{} draws are left", self.0.len());
    }
}

impl Entropy for Script {
    fn fill(&mut self, out: &mut [u8]) {
        let (name, bytes) = self.0.pop_front().expect("a draw the script does not have");
        assert_eq!(bytes.len(), out.len(), "{name}");
        out.copy_from_slice(&bytes);
    }
}
