#!/usr/bin/env bash
# Measures uploads and downloads over both locks: whole `put` and `get` commands with a temporary
# server on this machine, from memory to memory if /dev/shm exists. Prints MB/s (10^6) and the CPU
# seconds of both ends per GiB.
#
#   bench-files.sh [MIB [ROUNDS]]
#
# TWINLOCK is the program, BENCH_DIR the directory of the files.
set -euo pipefail
cd "$(dirname "$0")/.."

mib=${1:-1024}
rounds=${2:-5}
twinlock=$(realpath "${TWINLOCK:-${CARGO_TARGET_DIR:-target}/release/twinlock}")
below=${BENCH_DIR:-/dev/shm}
if [[ ! -w $below ]]; then below=${TMPDIR:-/tmp}; fi
dir=$(mktemp -d "$below/twinlock-bench.XXXXXX")
server=

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT INT TERM HUP

export TWINLOCK_HOME=$dir/home
mkfifo "$dir/out"
"$twinlock" serve --data "$dir/server" --port 0 >"$dir/out" 2>"$dir/words" &
server=$!
exec 3<"$dir/out"
if ! read -r -t 30 <&3; then
    cat "$dir/words" >&2
    exit 1
fi
"$twinlock" join "$(cat "$dir/server/owner-invite")" --user bench --no-password --quiet >"$dir/joined" 2>&1 || {
    cat "$dir/joined" >&2
    exit 1
}
head -c $((mib * 1024 * 1024)) /dev/urandom >"$dir/file"

# CPU time of the server, in clock ticks.
server_ticks() {
    local fields
    read -r -a fields <"/proc/$server/stat"
    echo $((fields[13] + fields[14]))
}
hertz=$(getconf CLK_TCK)

# Runs a command and prints its throughput and the CPU time of client and server. Uses and frees
# memory first, because a virtual machine may have to get it from its host at the first use.
measure() {
    local what=$1 before after real user sys
    shift
    if [[ $(stat -f -c %T "$dir") == tmpfs ]]; then
        head -c $((mib * 1048576 * 3 / 2)) /dev/zero >"$dir/used"
        rm "$dir/used"
    fi
    before=$(server_ticks)
    TIMEFORMAT='%R %U %S'
    { time "$@" >/dev/null 2>"$dir/words"; } 2>"$dir/time" || {
        cat "$dir/words" >&2
        exit 1
    }
    after=$(server_ticks)
    read -r real user sys <"$dir/time"
    awk -v what="$what" -v mib="$mib" -v real="$real" -v cpu="$user $sys" -v ticks=$((after - before)) -v hz="$hertz" 'BEGIN {
        split(cpu, c, " "); gib = mib / 1024
        printf "%4s %6.0f MB/s  %5.2f s  CPU a GiB: client %.2f s, server %.2f s\n",
            what, mib * 1.048576 / real, real, (c[1] + c[2]) / gib, ticks / hz / gib
    }'
}

printf 'One file of %s MiB in %s, %s rounds; nproc %s\n' "$mib" "$below" "$rounds" "$(nproc)"
for ((n = 1; n <= rounds; n++)); do
    measure put "$twinlock" put --quiet "$dir/file" lobby
    measure get "$twinlock" get --quiet lobby "$n" -o "$dir/got" --force
    cmp "$dir/file" "$dir/got"
    rm "$dir/got"
done
