#!/usr/bin/env bash
# Runs all checks that do not run the program. Arguments are passed to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
scripts=(scripts/*.sh examples/*.sh .ci/run)

"$cargo" fmt --all --check
"$cargo" clippy "$@" --workspace --all-targets -- -D warnings
RUSTDOCFLAGS='-D warnings' "$cargo" doc "$@" --workspace --no-deps --document-private-items --quiet
# The program must not contain the functions that only tests may call: some of them expose keys.
if "$cargo" tree "$@" --package twinlock --edges no-dev --format '{p} {f}' | grep -w test-util; then
    echo 'a build of the program has the feature test-util' >&2
    exit 1
fi
for script in "${scripts[@]}"; do
    bash -n "$script"
done
if command -v shellcheck >/dev/null; then
    shellcheck "${scripts[@]}"
else
    echo 'shellcheck is not installed: scripts were only parsed'
fi
./scripts/fuzz-lock.sh
# Advisories need a database from the network; see `make audit`.
if "$cargo" deny --version >/dev/null 2>&1; then
    "$cargo" deny --log-level error check --hide-inclusion-graph bans licenses sources
else
    echo 'cargo-deny is not installed: bans, licences and sources of dependencies were not checked'
fi
# Documents must not name missing files, headings or tests.
./scripts/documents.sh
./scripts/wording.sh
