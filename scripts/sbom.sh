#!/usr/bin/env bash
# Writes target/sbom/twinlock.cdx.json: every crate in the program, with version, licence and hash
# (CycloneDX 1.5).
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
if ! "$cargo" cyclonedx --version >/dev/null 2>&1; then
    echo 'cargo-cyclonedx is missing: cargo install --locked cargo-cyclonedx' >&2
    exit 2
fi
mkdir -p target/sbom
# cargo-cyclonedx writes next to each crate's manifest.
"$cargo" cyclonedx --quiet --manifest-path crates/cli/Cargo.toml --format json --spec-version 1.5 \
    --override-filename twinlock.cdx
find crates fuzz -maxdepth 2 -name twinlock.cdx.json ! -path 'crates/cli/*' -delete
mv crates/cli/twinlock.cdx.json target/sbom/
echo 'target/sbom/twinlock.cdx.json'
