#!/usr/bin/env bash
# Runs all tests and prints how many ran. Arguments such as --locked are passed to cargo.
#
# Uses cargo-nextest if it is installed, which gives each test a process and a time limit
# (.config/nextest.toml). It does not run documentation tests, so cargo runs those. Without it cargo
# runs all tests, one at a time (.cargo/config.toml).
#
# Some tests need libraries of other languages, which scripts/peers.sh installs. If it cannot (no
# Python, no Node, no registry), these tests do not run, and the last lines give the reason. The same
# holds for proxies and balancers, which scripts/middles.sh unpacks; with CI set, a missing one is a
# failure.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

nextest=()
plain=()
without=
if ! why=$(./scripts/peers.sh 2>&1); then
    without=${why##*$'\n'}
    nextest=(-E 'not test(/^classic_peers::/)')
    plain=(-- --skip classic_peers::)
fi

middles=
if ! why=$(./scripts/middles.sh 2>&1); then middles=${why##*$'\n'}; fi

failed=0
# Prints the output of a command and appends it to the log for counting.
counted() { "$@" 2>&1 | tee -a "$log" || failed=$?; }

if "$cargo" nextest --version >/dev/null 2>&1; then
    counted "$cargo" nextest run "$@" --workspace "${nextest[@]}"
    counted "$cargo" test "$@" --workspace --doc
else
    counted "$cargo" test "$@" --workspace --no-fail-fast "${plain[@]}"
fi

# Nextest ends with "Summary [..] 12 tests run: 12 passed, 0 skipped". Cargo prints
# "test result: ok. 12 passed; 0 failed; .." for each binary. Colours are removed first.
sed 's/\x1b\[[0-9;]*m//g' "$log" | awk '
    /^ *Summary \[/ { for (i = 2; i <= NF; i++) if ($i ~ /^passed/) passed += $(i - 1) }
    /^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ /^passed/) passed += $(i - 1)
                      for (i = 2; i <= NF; i++) if ($i ~ /^ignored/) ignored += $(i - 1) }
    END {
        printf "tests: %d passed, %d ignored\n", passed, ignored
        if (passed == 0) exit 1
    }'
if [[ -n $without ]]; then
    echo "NOT RUN: classic connections against libraries of other languages, because: $without"
fi
if [[ -n $middles ]]; then
    echo "NOT RUN: sessions through some proxies and balancers, because of $middles"
    if [[ -n ${CI:-} ]]; then exit 1; fi
fi
exit "$failed"
