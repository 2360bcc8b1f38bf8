#!/usr/bin/env bash
# Runs all measurements of `make bench`: starts a server on the loopback, in a new directory on the
# disk to be measured, and runs `twinlock bench` against it for each row of the table. Prints the
# figures next to the goals and writes them, with the machine and the date, to a document.
#
#   bench.sh [DOCUMENT]      default: docs/benchmarks.md
#
# TWINLOCK is the program, BENCH_DIR the directory of the record, BENCH_MEMORY that of the file
# measurement (default /dev/shm), BENCH_ROUNDS the number of rounds (the median counts),
# BENCH_SECONDS their duration, BENCH_LINES the number of idle connections, BENCH_FILE_MIB the file
# size. bench-redis.sh has more. Half an hour, and 10 GiB of the disk.
set -euo pipefail
cd "$(dirname "$0")/.."

document=${1:-docs/benchmarks.md}
target=${CARGO_TARGET_DIR:-target}
twinlock=$(realpath "${TWINLOCK:-$target/release/twinlock}")
rounds=${BENCH_ROUNDS:-3}
seconds=${BENCH_SECONDS:-2.5}
idle=${BENCH_LINES:-10000}
mib=${BENCH_FILE_MIB:-1024}
disk=${BENCH_DIR:-$target}
memory=${BENCH_MEMORY:-/dev/shm}
if [[ ! -w $memory ]]; then memory=${TMPDIR:-/tmp}; fi
per_user=16
dir=$(mktemp -d "$(realpath "$disk")/twinlock-bench.XXXXXX")
# Directory of the file measurement, in memory.
shm=$(mktemp -d "$memory/twinlock-bench.XXXXXX")
server=
busiest=0
each=

stop_server() {
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    stop_server
    rm -rf "$dir" "$shm"
    exit "$code"
}
trap finish EXIT INT TERM HUP

# Starts a new server below $1, with enough sessions for all connections of the one device.
start_server() {
    local below=$1
    stop_server
    rm -rf "${below:?}/server" "${below:?}/home" "${below:?}/out"
    export TWINLOCK_HOME=$below/home
    # Measures the server, not the limits of one user: no rate and no quota of text.
    printf '[limits]\ntext-rate-kib = 0\ntext-per-day-mib = 0\n' >"$below/twinlock.toml"
    # Idle connections are measured with the default and many users.
    if [[ ${2:-} != default ]]; then echo 'sessions-per-device = 256' >>"$below/twinlock.toml"; fi
    mkfifo "$below/out"
    "$twinlock" serve --data "$below/server" --port 0 --config "$below/twinlock.toml" \
        >"$below/out" 2>"$below/words" &
    server=$!
    exec 3<"$below/out"
    if ! read -r -t 30 <&3; then
        cat "$below/words" >&2
        exit 1
    fi
    at_rest=$(resident)
    "$twinlock" join "$(cat "$below/server/owner-invite")" --user bench --no-password --quiet
}

# Resident memory of the server, KiB.
resident() { sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$server/status"; }

# Waits until the server has indexed all messages, at most 30 s.
rests() {
    local before now n
    before=$(ticks)
    for ((n = 0; n < 30; n++)); do
        sleep 1
        now=$(ticks)
        if ((now - before < 3)); then return; fi
        before=$now
    done
}

# CPU time of the server, in ticks of 10 ms.
ticks() { sed 's/.*) //' "/proc/$server/stat" | awk '{ print $12 + $13 }'; }

# Load of all CPUs over one second, in parts of 1000: load by other programs makes figures useless.
busy() {
    local before after
    read -r -a before </proc/stat
    sleep 1
    read -r -a after </proc/stat
    awk -v b="${before[*]:1:8}" -v a="${after[*]:1:8}" 'BEGIN {
        n = split(b, x, " "); split(a, y, " ")
        for (i = 1; i <= n; i++) { d = y[i] - x[i]; all += d; if (i == 4 || i == 5) idle += d }
        printf "%d\n", (all > 0 ? 1000 * (1 - idle / all) : 0)
    }'
}

# The median of the numbers on standard input.
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# A field of the JSON lines in $2; the last one of that name in each line.
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" "$2"; }

# Uses memory and frees it. A virtual machine may get memory from its host at the first use and return
# it some seconds after the last, and writing a file to such memory would wait for the host.
use_memory() {
    if [[ $(stat -f -c %T "$shm") != tmpfs ]]; then return; fi
    head -c $((mib * 1048576 * 3 / 2)) /dev/zero >"$shm/used"
    rm "$shm/used"
}

# Measures one row $2 times into a file of JSON lines, and runs `$each` before each time.
measure() {
    local into=$1 times=$2 now n
    shift 2
    : >"$into"
    for ((n = 0; n < times; n++)); do
        rests
        now=$(busy)
        if ((now > busiest)); then busiest=$now; fi
        "${each:-:}"
        "$twinlock" bench --quiet --json --server-pid "$server" --seconds "$seconds" "$@" >>"$into"
    done
}

# Prints a row of the table: name, figure, goal.
row() { printf '| %s | %s | %s |\n' "$1" "$2" "$3" | tee -a "$dir/rows"; }

calc() { awk "BEGIN { printf \"$1\", $2 }"; }

printf '| what | measured | goal |\n|---|---|---|\n' | tee "$dir/rows"

start_server "$dir" default
measure "$dir/idle" 1 --mode idle --lines "$idle" --users $(((idle + per_user - 1) / per_user))
kib=$(calc '%.1f' "$(field bytes_per_line "$dir/idle") / 1024")
rest=$(calc '%.1f' "$at_rest / 1024")
binary=$(calc '%.1f' "$(stat -c %s "$twinlock") / 1048576")

start_server "$dir"
sync_ms=$({ LC_ALL=C dd if=/dev/zero of="$dir/sync" bs=4k count=500 oflag=dsync 2>&1 || true; } |
    awk '/copied/ { for (i = 2; i <= NF; i++) if ($i ~ /^s,?$/) printf "%.3f\n", $(i - 1) * 1000 / 500 }')
rm -f "$dir/sync"
measure "$dir/16x64" "$rounds" --mode messages --lines 16 --window 64
measure "$dir/64x1" "$rounds" --mode messages --lines 64 --window 1
measure "$dir/1x1" "$rounds" --mode messages --lines 1 --window 1
measure "$dir/fanout" "$rounds" --mode fanout --lines 100 --window 16
measure "$dir/logins" "$rounds" --mode logins --lines 6
row 'acks/s, 16 x 64' "$(calc '%d' "$(field per_second "$dir/16x64" | median)")" '1.1 x Redis, see below'
row 'acks/s, 64 x 1' "$(calc '%d' "$(field per_second "$dir/64x1" | median)")" '1.0 x Redis, see below'
row 'p50, 1 x 1' "$(calc '%.3f ms' "$(field p50 "$dir/1x1" | median) / 1000")" \
    "at most 1.25 x (fdatasync + echo); a synced write of 4 KiB takes ${sync_ms:-?} ms here"
row 'p99, 16 x 64' "$(calc '%.1f ms' "$(field p99 "$dir/16x64" | median) / 1000")" '7 ms'
row 'server CPU per acked message, 16 x 64' \
    "$(calc '%.2f us' "$(field cpu_us_each "$dir/16x64" | median)")" '3.0 us'
row 'deliveries/s, 1 sender to 100 followers' \
    "$(calc '%d' "$(field per_second "$dir/fanout" | median)")" '500 000'
row "memory of an idle connection, with $idle of them" "$kib KiB" '18 KiB'
row 'full login, server CPU' \
    "$(calc '%.2f ms' "$(field cpu_us_each "$dir/logins" | median) / 1000")" '0.40 ms'

stop_server
BENCH_DIR=$disk TWINLOCK=$twinlock ./scripts/bench-send.sh >"$dir/sends"
# Wall or CPU time (column $1) of `send`, and of the alternating `mosquitto_pub`.
whole() {
    awk -v column="$1" '{ ms[$1] = $column } END {
        printf "%s ms (`mosquitto_pub` over TLS in turn: %s)", ms["send"],
            "mosquitto_pub" in ms ? ms["mosquitto_pub"] " ms" : "not installed"
    }' "$dir/sends"
}
row "the whole \`send\` command, one message, wall time" "$(whole 2)" '10 ms'
row 'the same, CPU of the client' "$(whole 3)" '6 ms'

start_server "$shm"
each=use_memory measure "$shm/files" "$rounds" --mode files --file "${mib}M"
grep '"put"' "$shm/files" >"$shm/put"
grep '"get"' "$shm/files" >"$shm/get"
stop_server
rm -rf "$shm/server"
row "upload of a file of $mib MiB on one connection, memory to memory" \
    "$(calc '%d MB/s' "$(field per_second "$shm/put" | median) / 1e6")" '1 200 MB/s'
row "download of the same, memory to memory" \
    "$(calc '%d MB/s' "$(field per_second "$shm/get" | median) / 1e6")" '1 200 MB/s'
BENCH_DIR=$memory TWINLOCK=$twinlock ./scripts/bench-files.sh "$mib" "$rounds" >"$shm/commands"
for way in put get; do
    row "the whole \`$way\` command, $mib MiB" \
        "$(awk -v way=$way '$1 == way { print $2 }' "$shm/commands" | median) MB/s" '1 200 MB/s'
done
timeout --foreground 300 env BENCH_DIR="$disk" BENCH_MEMORY="$memory" TWINLOCK="$twinlock" \
    ./scripts/bench-middles.sh "$rounds" >"$dir/middles"
BENCH_DIR="$disk" TWINLOCK="$twinlock" ./scripts/bench-redis.sh "$rounds" >"$dir/redis"
row 'server at rest, resident' "$rest MiB" '20 MiB'
row 'the binary' "$binary MiB" '25 MiB'

cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
noise=$(calc '%.1f' "$busiest / 10")
{
    printf '# Benchmarks\n\n'
    printf 'Written by %s; do not edit.\n\n' "\`make bench\`"
    printf -- '- **Machine:** %s, %s cores, kernel %s, %s on %s\n' "${cpu:-$(uname -m)}" "$(nproc)" \
        "$(uname -r)" "$(stat -f -c %T "$dir")" "$(df --output=source "$dir" | tail -n 1)"
    printf -- '- **Date:** %s, commit %s\n' "$(date -u +%Y-%m-%dT%H:%MZ)" "$commit"
    printf -- '- **Disk:** a synced write of 4 KiB takes %s ms\n' "${sync_ms:-?}"
    printf -- '- **Quiet?** At most %s %% of the CPU was in use before a measurement%s\n\n' "$noise" \
        "$(if ((busiest > 50)); then echo ': **other programs were running; the figures are unreliable**'; fi)"
    cat "$dir/rows"
    cat <<'WORDS'

**Compare ratios, not figures.** The same figure varies by a third within an hour on one machine, and more with the disk. The
ratio to another program is stable if both are measured alternately on the same machine; some ratios are in
[010](design/010-what-limits-the-speed.md#compared-with-other-programs).

## Through nginx

WORDS
    cat "$dir/middles"
    printf '\n## In turn with Redis\n\n'
    cat "$dir/redis"
    cat <<'WORDS'

## How it is measured

- Client and server are release builds on one machine and use its loopback. The server has a new directory on the measured disk.
  Rate and quota of text are off (`text-rate-kib` and `text-per-day-mib` 0). `sessions-per-device` is raised, except for the idle
  connections, which belong to users with 16 connections each.
- Every figure includes both locks, TLS 1.3 and sealed frames. Every ack is sent after the sync.
- "C x W" is C connections with W messages of 256 bytes outstanding on each; the client sends another message for each ack. One
  client thread drives all connections. After 1 s of warm-up a window is measured; the table shows the median of the rounds.
- The full-text index is updated when the server is idle, mostly after a window. Its cost, about 8 us of CPU a message, is not
  included.
- A latency is the time from sealing a message to opening its ack, in an HDR histogram of three digits.
- A fan-out has at most 16 messages whose deliveries are outstanding, counted over all followers.
- CPU is the server's user and system time from `/proc`, in ticks of 10 ms. Work of the kernel for the disk in other threads is
  not included.
- Memory of a connection is the growth of the server's resident memory divided by the number of connections.
- A login is TCP, TLS, OPAQUE with ML-KEM, READY and CLOSE; six run concurrently.
- Files are generated and discarded in memory, with the server's directory in memory too. The whole commands read and write
  files there. That memory was used and freed just before.
- A whole `send` is a process from start to exit, 51 times alternating with `mosquitto_pub -q 1` over TLS to a local mosquitto,
  where that is installed. Mosquitto writes nothing to disk before it answers.
- Through nginx, each round measures each way once, in the order of the table and with a new server. The ratio is the one to the
  direct connection of the same round; its median is shown. nginx has the files of `contrib/nginx` and a worker for each core, and
  takes CPU from client and server. Its CPU time is that of its workers. `make bench` uses an installed nginx or the one that
  `scripts/middles.sh` unpacks.
- Redis appends each message to a stream over TLS 1.3, with `appendfsync always` and otherwise its defaults; the load is that of
  `redis-benchmark`, where W is the pipeline. Each measurement has a new server, and a round measures both once for each shape. A
  ratio is that of one round; the other figures are medians. Redis has TLS alone, and keeps neither links nor an index of words.

`twinlock bench` measures any server that you have a profile of, and `cargo run --release -p twinlock-store-embedded --example append_rate`
measures the record alone. Both write real data.
WORDS
} >"$document"
printf '\nwritten: %s\n' "$document"
if ((busiest > 50)); then
    printf 'other programs used %s %% of the CPU before a measurement: the machine was not quiet\n' "$noise"
fi
