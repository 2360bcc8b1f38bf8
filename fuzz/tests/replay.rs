//! Runs every target over its corpus and over randomly mutated copies.
//!
//! An input that a fuzzer found becomes a file of the corpus, so that it is tested from then on.
//! The random generator has a fixed seed, so that a failure points to a change and not to chance;
//! `TWINLOCK_SEED` sets another.
#![allow(
    non_snake_case,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use twinlock_fuzz::{TARGETS, for_each_target, run};
use twinlock_testing::Rng;

/// Mutated copies for each target, and the time after which fewer are enough: a busy machine tries
/// fewer, but at least a tenth.
const COPIES: usize = 2000;
const ENOUGH: Duration = Duration::from_secs(10);

/// Longest mutated copy, bytes.
const LONGEST: usize = 4096;

/// Size limit of all corpora together, bytes: enough to keep what was found, small enough to store.
const MOST: usize = 1024 * 1024;

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )*};
}
for_each_target!(tests);

fn here(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Name and content of each file, in order.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = here("corpus").join(target);
    let read = |name: String| (name.clone(), fs::read(dir.join(name)).unwrap());
    let corpus: Vec<_> = names(&dir).into_iter().map(read).collect();
    assert!(!corpus.is_empty(), "{target} has an empty corpus");
    corpus
}

fn replay(target: &str) {
    let corpus = corpus(target);
    for (name, input) in &corpus {
        try_on(target, input, || format!("corpus/{target}/{name}"));
    }
    let seed = match std::env::var("TWINLOCK_SEED") {
        Ok(seed) => seed.parse().expect("TWINLOCK_SEED is a number"),
        Err(_) => 1,
    };
    let mut rng = Rng::from_seed(seed);
    let began = Instant::now();
    let mut tried = 0;
    while tried < COPIES && (tried < COPIES / 10 || began.elapsed() < ENOUGH) {
        let input = changed(&corpus, &mut rng);
        tried += 1;
        try_on(target, &input, || format!("copy {tried} with TWINLOCK_SEED={seed}"));
    }
    eprintln!("{target}: {} files, {tried} copies, TWINLOCK_SEED={seed}", corpus.len());
}

/// Runs a target and reports a failing input, so that it can be kept.
fn try_on(target: &str, input: &[u8], what: impl FnOnce() -> String) {
    if catch_unwind(AssertUnwindSafe(|| run(target, input))).is_err() {
        panic!("{target} breaks its law on {}: {}", what(), input.escape_ascii());
    }
}

/// A file of the corpus with parts changed, duplicated, dropped or copied from another file.
fn changed(corpus: &[(String, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let mut pick = |n: usize| (rng.draw() % n.max(1) as u64) as usize;
    let mut input = corpus[pick(corpus.len())].1.clone();
    for _ in 0..=pick(6) {
        let at = pick(input.len() + 1);
        let len = pick(32).min(input.len() - at);
        match pick(7) {
            0 | 1 if len > 0 => input[at] = pick(256) as u8,
            2 if len > 0 => input[at] ^= 1 << pick(8),
            3 => drop(input.drain(at..at + len)),
            4 => {
                let copy = input[at..at + len].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let other = &corpus[pick(corpus.len())].1;
                let from = pick(other.len());
                input.splice(at..at, other[from..].iter().take(64).copied());
            }
            _ => input.insert(at, [0, 1, 0x7f, 0x80, 0xff][pick(5)]),
        }
    }
    input.truncate(LONGEST);
    input
}

#[test]
fn every_target_has_a_corpus_and_a_fuzzer_and_nothing_else_has() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|target| target.0.to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    assert_eq!(names(&here("corpus")), targets);
    let fuzzers = names(&here("libfuzzer/fuzz_targets"));
    let expected = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(fuzzers, expected);
    let manifest = fs::read_to_string(here("libfuzzer/Cargo.toml")).unwrap();
    for target in &targets {
        let text = fs::read_to_string(here("libfuzzer/fuzz_targets").join(format!("{target}.rs")));
        assert!(text.unwrap().contains(&format!("run(\"{target}\", ")), "{target}.rs runs another");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
    }
    let files = targets.iter().flat_map(|target| corpus(target));
    let bytes: usize = files.map(|(_, input)| input.len()).sum();
    assert!(bytes <= MOST, "{bytes} bytes of corpora: `make fuzz-min` makes them smaller");
}
