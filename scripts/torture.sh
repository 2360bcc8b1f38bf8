#!/usr/bin/env bash
# The tests of what holds under fire, with full rounds: kills, power cuts, a bad network, very many
# lines that come back, a disk that is full or fails, floods and slow peers, secrets, members who
# attack, timing; the last three in a release build. Half an hour at most on two cores, which nothing else should use: some of
# it looks at the clock. `make test` does the same with a few rounds and wide limits. Arguments go
# to cargo.
#
# TWINLOCK_SEED=N begins with the same chance as the run that printed N. What is drawn is then the
# same, but processes, threads and the kernel still take their own time.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export TWINLOCK_SEED=${TWINLOCK_SEED:-$(($(od -An -N4 -tu4 /dev/urandom)))}
export TWINLOCK_KILLS=${TWINLOCK_KILLS:-200}
export TWINLOCK_CRASHES=${TWINLOCK_CRASHES:-200}
export TWINLOCK_WEATHER=${TWINLOCK_WEATHER:-260}
export TWINLOCK_RETURNS=${TWINLOCK_RETURNS:-5000}
export TWINLOCK_FAULTS=${TWINLOCK_FAULTS:-3}
export TWINLOCK_TORTURE=full
LIMIT=1800

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

# part PACKAGE FILTER: the integration tests of that name, one after the other, and each to its end even
# where one has failed. A part that runs no test has failed.
part() {
    local left=$((LIMIT - (SECONDS - began)))
    if ((left <= 0)); then
        failed+=("$2 (no time left)")
    else
        # A process group of its own, which ends with this however it ends.
        timeout "$left" "$cargo" test "${arguments[@]}" "${build[@]}" --package "$1" --test integration -- \
            --nocapture --test-threads=1 "$2" >"$log" 2>&1 &
        job=$!
        if ! wait "$job" || ! grep -q '^test result: ok\. [1-9]' "$log"; then
            cat "$log"
            failed+=("$2")
        fi
        job=
    fi
    # Its figures, which a test's name may stand before.
    sed -n -E 's/^(test .* \.\.\. )?((crash|power|network|return|disk|flood|hostile|attack|secrets|timing): .*)$/\2/p' "$log"
}

arguments=("$@")
build=()
release=(--release)
# Not twice.
if [[ " $* " == *" --release "* ]]; then release=(); fi
echo "TWINLOCK_SEED=$TWINLOCK_SEED"
# Building is not what is limited. Each package by itself, or they are built otherwise than below.
for package in twinlock twinlock-client; do
    "$cargo" test "${arguments[@]}" --package "$package" --no-run --test integration
done
for package in twinlock twinlock-server; do
    "$cargo" test "${arguments[@]}" "${release[@]}" --package "$package" --no-run --test integration
done
began=$SECONDS
part twinlock kills::after_kills
part twinlock power::
part twinlock checkpoints::
part twinlock-client network::
part twinlock returns::
part twinlock disk_fails::
part twinlock torture_flood::
part twinlock torture_hostile::
# What is left on a stack, and what takes how long, is the build's that people run.
build=("${release[@]}")
part twinlock torture_secrets::
part twinlock torture_members::
part twinlock-server torture_timing::
echo "torture: $((SECONDS - began)) s, seed $TWINLOCK_SEED, ${#failed[@]} parts failed ${failed[*]}"
((${#failed[@]} == 0))
