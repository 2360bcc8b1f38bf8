#!/usr/bin/env bash
# Runs the fault-injection and attack tests with full rounds: kills, power cuts, a bad network,
# thousands of reconnections and idle connections, TLS interception of a GiB, sessions through real
# proxies and balancers, a full or failing disk, floods and slow peers, secrets, attacking members,
# timing; the last three in a release build. Takes at most three quarters of an hour on two otherwise idle
# cores, because some tests assert times. `make test` runs the same tests with a few rounds and
# wide limits. Arguments are passed to cargo.
#
# TWINLOCK_SEED=N starts with the same random choices as the run that printed N. The scheduling of
# processes, threads and the kernel still differs.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export TWINLOCK_SEED=${TWINLOCK_SEED:-$(($(od -An -N4 -tu4 /dev/urandom)))}
export TWINLOCK_KILLS=${TWINLOCK_KILLS:-200}
export TWINLOCK_CRASHES=${TWINLOCK_CRASHES:-200}
export TWINLOCK_NETWORK=${TWINLOCK_NETWORK:-260}
export TWINLOCK_RETURNS=${TWINLOCK_RETURNS:-5000}
export TWINLOCK_FAULTS=${TWINLOCK_FAULTS:-3}
export TWINLOCK_TORTURE=full
LIMIT=2700

log=$(mktemp)
job=
finish() {
    if [[ -n $job ]]; then kill -- "-$job" 2>/dev/null || true; fi
    rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
began=$SECONDS
failed=()

# part PACKAGE FILTER: runs the matching integration tests one by one, and continues after a failure.
# A part that runs no test fails.
part() {
    local left=$((LIMIT - (SECONDS - began)))
    if ((left <= 0)); then
        failed+=("$2 (no time left)")
    else
        # In a separate process group, which the trap ends with this script.
        timeout "$left" "$cargo" test "${arguments[@]}" "${build[@]}" --package "$1" --test integration -- \
            --nocapture --test-threads=1 "$2" >"$log" 2>&1 &
        job=$!
        if ! wait "$job" || ! grep -q '^test result: ok\. [1-9]' "$log"; then
            cat "$log"
            failed+=("$2")
        fi
        job=
    fi
    # Print its figures; a test's name may precede them.
    sed -n -E 's/^(test .* \.\.\. )?((crash|power|network|return|disk|flood|hostile|attack|secrets|timing|middle): .*)$/\2/p' "$log"
}

arguments=("$@")
build=()
release=(--release)
# Cargo does not accept --release twice.
if [[ " $* " == *" --release "* ]]; then release=(); fi
echo "TWINLOCK_SEED=$TWINLOCK_SEED"
# Without some of them, the test prints which.
./scripts/middles.sh || true
# The build is outside the time limit. One package at a time, or cargo unifies their features and
# builds them again below.
for package in twinlock twinlock-client twinlock-store-embedded; do
    "$cargo" test "${arguments[@]}" --package "$package" --no-run --test integration
done
for package in twinlock twinlock-server; do
    "$cargo" test "${arguments[@]}" "${release[@]}" --package "$package" --no-run --test integration
done
began=$SECONDS
part twinlock kills::kill__under_load
part twinlock-store-embedded record_kill::
part twinlock-store-embedded record_duplicates::
part twinlock-store-embedded convert_kill::
part twinlock power::
part twinlock-client network::
part twinlock disconnects::
part twinlock returns::
part twinlock idle::
part twinlock files_proxy::
part twinlock middles::
part twinlock disk_fails::
part twinlock disk_aimed::
part twinlock torture_flood::
part twinlock torture_hostile::
part twinlock torture_stalled::
# Remains on the stack and timing depend on the build, so test the release build.
build=("${release[@]}")
part twinlock torture_secrets::
part twinlock torture_members::
part twinlock-server torture_timing::
echo "torture: $((SECONDS - began)) s, seed $TWINLOCK_SEED, ${#failed[@]} parts failed ${failed[*]}"
((${#failed[@]} == 0))
