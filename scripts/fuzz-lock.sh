#!/usr/bin/env bash
# Keeps fuzz/libfuzzer/Cargo.lock at the versions of Cargo.lock, so that fuzzing tests the shipped code.
#
#   scripts/fuzz-lock.sh          fails if the two differ
#   scripts/fuzz-lock.sh update   regenerates it from Cargo.lock
set -euo pipefail
cd "$(dirname "$0")/.."

lock=fuzz/libfuzzer/Cargo.lock
# Packages that only the fuzzers use.
own='^(arbitrary|libfuzzer-sys|twinlock-libfuzzer) '

if [[ ${1:-} == update ]]; then
    cp Cargo.lock "$lock"
    "${CARGO:-cargo}" metadata --format-version 1 --manifest-path fuzz/libfuzzer/Cargo.toml >/dev/null
    exit
fi
packages() { awk '/^name = /{name=$3} /^version = /{print name, $3}' "$1" | tr -d '"' | sort; }
if other=$(comm -13 <(packages Cargo.lock) <(packages "$lock") | grep -vE "$own"); then
    echo "$lock has versions that Cargo.lock does not have; run scripts/fuzz-lock.sh update:" >&2
    echo "$other" >&2
    exit 1
fi
