#!/usr/bin/env bash
# Measures acknowledged messages in turn with Redis, which appends each to a stream over TLS 1.3 and
# answers after the sync (`appendfsync always`). Each measurement has a new server of its own on the
# disk, and everything is on the loopback of this machine. Prints a Markdown table, or one line if
# redis-server, redis-benchmark or openssl is missing.
#
#   bench-redis.sh [ROUNDS]
#
# TWINLOCK is the program, BENCH_DIR the directory of the records, BENCH_REDIS_SECONDS the duration of
# a window, BENCH_SHAPES the rows, such as "16x64 1x1". BENCH_ROWS=yes prints each round's figures on
# standard error.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
target=${CARGO_TARGET_DIR:-target}
twinlock=$(realpath "${TWINLOCK:-$target/release/twinlock}")
seconds=${BENCH_REDIS_SECONDS:-60}
disk=${BENCH_DIR:-$target}
shapes=${BENCH_SHAPES:-16x64 64x1 1x1}

PATH=$PATH:/usr/sbin:/usr/local/sbin
for tool in redis-server redis-benchmark openssl; do
    if ! command -v "$tool" >/dev/null; then
        echo "Not measured: $tool is not installed."
        exit 0
    fi
done

dir=$(mktemp -d "$(realpath "$disk")/twinlock-bench.XXXXXX")
server=

stop_server() {
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
    rm -rf "${dir:?}"/{server,home,redis,out}
}

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    stop_server
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT INT TERM HUP

printf '%s\n' '[limits]' 'text-rate-kib = 0' 'text-per-day-mib = 0' 'sessions-per-device = 256' >"$dir/twinlock.toml"
export TWINLOCK_HOME=$dir/home
(
    cd "$dir"
    exec >openssl.log 2>&1
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=bench
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out leaf.csr -subj /CN=localhost
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >extensions
    openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem
)

# CPU time of the server, in ticks of 10 ms.
ticks() { sed 's/.*) //' "/proc/$server/stat" | awk '{ print $12 + $13 }'; }

# The median of the numbers on standard input.
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# A field of a JSON line; the last one of that name.
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"; }

# Prints rate, p50 and p99 in ms, and CPU of the server for each message in us.
measure_twinlock() {
    local json
    mkfifo "$dir/out"
    "$twinlock" serve --data "$dir/server" --port 0 --config "$dir/twinlock.toml" >"$dir/out" 2>"$dir/words" &
    server=$!
    exec 3<"$dir/out"
    if ! read -r -t 30 <&3 ||
        ! "$twinlock" join "$(cat "$dir/server/owner-invite")" --user bench --no-password --quiet >"$dir/joined" 2>&1; then
        cat "$dir/words" "$dir/joined" >&2
        exit 1
    fi
    json=$("$twinlock" bench --quiet --json --server-pid "$server" --seconds "$seconds" --mode messages \
        --lines "$1" --window "$2" 2>"$dir/words")
    printf '%s %s %s %s\n' "$(field per_second "$json")" "$(awk "BEGIN { print $(field p50 "$json") / 1000 }")" \
        "$(awk "BEGIN { print $(field p99 "$json") / 1000 }")" "$(field cpu_us_each "$json")"
}

answers() { (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_redis() {
    local n tries
    for ((n = 0; n < 20; n++)); do
        # Redis does not report a port that it has selected: try unused ports.
        port=$((20000 + RANDOM % 10000))
        if answers "$port"; then continue; fi
        rm -rf "$dir/redis" && mkdir "$dir/redis"
        redis-server --bind 127.0.0.1 --port 0 --tls-port "$port" --tls-cert-file "$dir/cert.pem" \
            --tls-key-file "$dir/key.pem" --tls-ca-cert-file "$dir/ca.pem" --tls-auth-clients no \
            --tls-protocols TLSv1.3 --dir "$dir/redis" --appendonly yes --appendfsync always --save '' \
            >"$dir/redis.log" 2>&1 &
        server=$!
        for ((tries = 0; tries < 100; tries++)); do
            if answers "$port"; then return; fi
            if ! kill -0 "$server" 2>/dev/null; then break; fi
            sleep 0.05
        done
    done
    cat "$dir/redis.log" >&2
    exit 1
}

# Appends $3 messages, and prints rate, p50 and p99 in ms.
append_to_redis() {
    redis-benchmark -h 127.0.0.1 -p "$port" --tls --cacert "$dir/ca.pem" --sni localhost --csv --precision 3 \
        -c "$1" -P "$2" -n "$3" XADD stream '*' body "$text" 2>"$dir/words" |
        awk '{ line = $0 } END { gsub(/"/, "", line); split(line, f, ","); print f[2], f[5], f[7] }'
}

# As measure_twinlock. redis-benchmark takes a number of messages instead of a time.
text=$(printf 'x%.0s' {1..256})
measure_redis() {
    local rate result before after count
    start_redis
    read -r rate _ < <(append_to_redis "$1" "$2" $(($1 * $2 * 50)))
    count=$(awk "BEGIN { printf \"%d\", $rate * $seconds + 1 }")
    before=$(ticks)
    result=$(append_to_redis "$1" "$2" "$count")
    after=$(ticks)
    printf '%s %s\n' "$result" "$(awk "BEGIN { print ($after - $before) * 10000 / $count }")"
}

for ((n = 0; n < rounds; n++)); do
    for shape in $shapes; do
        for program in twinlock redis; do
            "measure_$program" "${shape%x*}" "${shape#*x}" >"$dir/measured"
            stop_server
            read -r -a figures <"$dir/measured"
            if ((${#figures[@]} != 4)); then
                echo "no figures of $program: $(cat "$dir/measured" "$dir/words")" >&2
                exit 1
            fi
            echo "$program ${figures[*]}" >>"$dir/$shape"
            if [[ -n ${BENCH_ROWS-} ]]; then echo "$shape $program ${figures[*]}" >&2; fi
        done
    done
done

# The median of column $2 of the program $1.
of() { awk -v program="$1" -v column="$2" '$1 == program { print $column }' "$dir/$shape" | median; }

printf 'Measured %s with %s, %s rounds of %s s.\n\n' "$(date -u +%Y-%m-%dT%H:%MZ)" \
    "$(redis-server --version | sed 's/ sha.*//')" "$rounds" "$seconds"
printf '| shape | acks/s: Twinlock, Redis | ratio of each round | p50 | p99 | CPU of the server for an ack |\n'
printf '|---|---|---|---|---|---|\n'
for shape in $shapes; do
    ratios=$(awk '$1 == "twinlock" { ours = $2 } $1 == "redis" { printf "%s%.2f", sep, ours / $2; sep = ", " }' "$dir/$shape")
    printf '| %s | %.0f, %.0f | %s | %.2f, %.2f ms | %.2f, %.2f ms | %.2f, %.2f us |\n' "${shape/x/ x }" \
        "$(of twinlock 2)" "$(of redis 2)" "$ratios" "$(of twinlock 3)" "$(of redis 3)" \
        "$(of twinlock 4)" "$(of redis 4)" "$(of twinlock 5)" "$(of redis 5)"
done
