#!/usr/bin/env bash
# Checks the dependencies in Cargo.lock against the RustSec advisory database, and for yanked versions.
# Fails if it cannot check: without cargo-deny, or without the database.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
if ! "$cargo" deny --version >/dev/null 2>&1; then
    echo 'cargo-deny is missing: cargo install --locked cargo-deny' >&2
    exit 2
fi
if ! "$cargo" deny --log-level error fetch db; then
    echo 'NOT CHECKED: the advisory database could not be fetched; this needs the network' >&2
    exit 5
fi
"$cargo" deny check advisories
