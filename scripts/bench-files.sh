#!/usr/bin/env bash
# How fast a file goes up and comes down over both locks: whole `put` and `get` commands on a server
# of their own on this machine, from memory to memory where there is /dev/shm. Says MB/s (10^6) and
# the CPU seconds of both ends for a GiB.
#
#   bench-files.sh [MIB [ROUNDS]]
#
# TWINLOCK names the program, BENCH_DIR where the files are.
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

# Ticks of CPU that the server has used.
server_ticks() {
    local fields
    read -r -a fields <"/proc/$server/stat"
    echo $((fields[13] + fields[14]))
}
hertz=$(getconf CLK_TCK)

# Runs a command and says what it took: bytes a second, CPU of the client and of the server. Memory that
# was used a moment before, or a virtual machine's host may have to give it first.
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
