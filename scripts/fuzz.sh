#!/usr/bin/env bash
# Runs libFuzzer to find inputs that violate an invariant of fuzz/, starting from the corpora that
# `make test` replays.
#
#   scripts/fuzz.sh          runs each target for SECONDS (600), or TARGET alone
#   scripts/fuzz.sh min      merges the findings into the corpora: a minimal set with the same
#                            coverage, at most FEW files for each target; named files stay
#
# Needs cargo-fuzz and a C++ compiler. New inputs are in fuzz/libfuzzer/target/found, inputs that
# violate an invariant in fuzz/libfuzzer/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
seconds=${SECONDS_EACH:-600}
found=fuzz/libfuzzer/target/found
# Enough seeds for mutation; a fuzzer finds the rest again in seconds.
FEW=40

if ! "$cargo" fuzz --version >/dev/null 2>&1; then
    echo 'cargo-fuzz is missing: cargo install --locked cargo-fuzz' >&2
    exit 2
fi
# The stable compiler has the instrumentation, but only behind unstable options.
export RUSTC_BOOTSTRAP=1
./scripts/fuzz-lock.sh

mkdir -p "$found"
scratch=$(mktemp -d "$PWD/$found/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

targets=("${TARGET:-}")
if [[ -z ${targets[0]} ]]; then
    targets=()
    for file in fuzz/libfuzzer/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# Runs a target over directories, and writes to the first.
fuzz() {
    local target=$1
    shift
    TMPDIR=$scratch "$cargo" fuzz run --fuzz-dir fuzz/libfuzzer --sanitizer none "$target" "$@"
}

for target in "${targets[@]}"; do
    corpus=fuzz/corpus/$target
    mkdir -p "$found/$target"
    if [[ ${1:-} == min ]]; then
        small=$scratch/$target
        mkdir "$small"
        hashes=(-regextype egrep -type f -regex '.*/[0-9a-f]{40}')
        find "$corpus" -type f -not \( "${hashes[@]}" \) -exec cp {} "$small" \;
        # Only the covered code counts, not the number of times.
        fuzz "$target" "$small" "$corpus" "$found/$target" -- -merge=1 -max_len=4096 \
            -set_cover_merge=1 -use_counters=0
        # Keep the FEW largest up to 1 KiB: larger inputs cover more.
        find "$small" "${hashes[@]}" -size +1024c -delete
        find "$small" "${hashes[@]}" -printf '%s %p\n' | sort -rn | tail -n "+$((FEW + 1))" |
            cut -d' ' -f2- | xargs -r rm
        rm -rf "$corpus"
        mv "$small" "$corpus"
    else
        echo "$target for $seconds s"
        fuzz "$target" "$found/$target" "$corpus" -- -max_total_time="$seconds" -max_len=4096 \
            -timeout=25 -print_final_stats=1
    fi
done
