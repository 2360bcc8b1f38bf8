#!/usr/bin/env bash
# Installs the libraries against which classic connections are tested into target/peers: a Python
# environment with joserfc and PyCryptodome, and jose for Node. Versions and hashes are in
# scripts/peers/. Keeps an installation that is up to date. Fails with the reason if one is unavailable.
set -euo pipefail
cd "$(dirname "$0")/.."

peers=${CARGO_TARGET_DIR:-target}/peers
locked=$(cat scripts/peers/requirements.txt scripts/peers/package-lock.json | cksum)
if [[ -f $peers/locked && $(<"$peers/locked") == "$locked" ]]; then exit 0; fi

for tool in python3 node npm; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing" >&2
        exit 2
    fi
done
rm -rf "$peers"
mkdir -p "$peers"
if ! python3 -m venv "$peers/venv" >&2; then
    echo 'python3 has no venv (on Debian: python3-venv)' >&2
    exit 2
fi
"$peers/venv/bin/pip" --quiet --disable-pip-version-check install \
    --require-hashes --only-binary :all: --requirement scripts/peers/requirements.txt >&2
cp scripts/peers/package.json scripts/peers/package-lock.json "$peers/"
npm --prefix "$peers" ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
echo "$locked" >"$peers/locked"
