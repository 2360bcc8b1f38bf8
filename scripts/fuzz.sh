#!/usr/bin/env bash
# Lets libFuzzer look for inputs that break a law of fuzz/, beginning with the corpora that `make
# test` replays.
#
#   scripts/fuzz.sh          each target for SECONDS (600), or TARGET alone
#   scripts/fuzz.sh min      puts what was found into the corpora: of the few files that cover it up
#                            to FEW for each target; those that somebody gave a name stay
#
# Needs cargo-fuzz and a C++ compiler. What is found meanwhile is in fuzz/libfuzzer/target/found, an
# input that breaks a law in fuzz/libfuzzer/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
seconds=${SECONDS_EACH:-600}
found=fuzz/libfuzzer/target/found
# Enough for changed copies to begin with; a fuzzer finds the rest again in seconds.
FEW=40

if ! "$cargo" fuzz --version >/dev/null 2>&1; then
    echo 'cargo-fuzz is missing: cargo install --locked cargo-fuzz' >&2
    exit 2
fi
# The instrumentation is of the compiler that is here; it is not stable by name.
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

# Runs a target over directories; the first is written to.
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
        # What is reached counts, and not how often.
        fuzz "$target" "$small" "$corpus" "$found/$target" -- -merge=1 -max_len=4096 \
            -set_cover_merge=1 -use_counters=0
        # Of those, the ones that do most and are still small.
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
