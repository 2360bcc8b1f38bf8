#!/usr/bin/env bash
# Measures one message as a whole command: `twinlock send`, alternating with `mosquitto_pub` over TLS
# with QoS 1, each with a temporary server on the loopback. Without mosquitto it measures only `send`.
# Prints a line for each: name, median wall ms, median CPU ms (user and system of the client).
#
#   bench-send.sh [ROUNDS]
#
# TWINLOCK is the program, BENCH_DIR the directory of the record and the profile.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-51}
target=${CARGO_TARGET_DIR:-target}
twinlock=$(realpath "${TWINLOCK:-$target/release/twinlock}")
dir=$(mktemp -d "$(realpath "${BENCH_DIR:-$target}")/twinlock-bench.XXXXXX")
servers=()

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    for server in "${servers[@]}"; do
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT INT TERM HUP

export TWINLOCK_HOME=$dir/home
mkfifo "$dir/out"
"$twinlock" serve --data "$dir/server" --port 0 >"$dir/out" 2>"$dir/words" &
servers+=($!)
exec 3<"$dir/out"
if ! read -r -t 30 <&3; then
    cat "$dir/words" >&2
    exit 1
fi
"$twinlock" join "$(cat "$dir/server/owner-invite")" --user bench --no-password --quiet >"$dir/joined" 2>&1 || {
    cat "$dir/joined" >&2
    exit 1
}

answers() { (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Starts a broker with a new certificate on a free port and stores the port in $broker. Without
# mosquitto, $broker stays empty.
broker=
start_broker() {
    local n tries server tool
    PATH=$PATH:/usr/sbin:/usr/local/sbin
    for tool in mosquitto mosquitto_pub openssl; do
        if ! command -v "$tool" >/dev/null; then return; fi
    done
    (
        cd "$dir"
        exec >openssl.log 2>&1
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=bench
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out leaf.csr -subj /CN=localhost
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >extensions
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem
    )
    # The broker does not accept port 0: try unused ports.
    for ((n = 0; n < 20; n++)); do
        broker=$((20000 + RANDOM % 10000))
        if answers "$broker"; then continue; fi
        printf 'listener %s 127.0.0.1\nallow_anonymous true\ncertfile %s/cert.pem\nkeyfile %s/key.pem\nuser %s\n' \
            "$broker" "$dir" "$dir" "$(id -un)" >"$dir/mosquitto.conf"
        mosquitto -c "$dir/mosquitto.conf" >"$dir/mosquitto.log" 2>&1 &
        server=$!
        servers+=("$server")
        for ((tries = 0; tries < 100; tries++)); do
            if answers "$broker"; then return; fi
            sleep 0.05
        done
    done
    cat "$dir/mosquitto.log" >&2
    exit 1
}
start_broker

TIMEFORMAT='%R %U %S'
once() {
    local name=$1
    shift
    { time "$@" >/dev/null 2>"$dir/words"; } 2>>"$dir/$name.times" || {
        cat "$dir/words" >&2
        exit 1
    }
}

text=$(printf 'word %.0s' {1..51})
for ((n = 0; n < rounds; n++)); do
    once send "$twinlock" send --quiet lobby "$text"
    if [[ -n $broker ]]; then
        once mosquitto_pub mosquitto_pub -h localhost -p "$broker" --cafile "$dir/ca.pem" -q 1 -t bench -m "$text"
    fi
done

median() { sort -g | awk '{ v[NR] = $1 } END { printf "%.1f", v[int((NR + 1) / 2)] }'; }
for name in send mosquitto_pub; do
    if [[ -s $dir/$name.times ]]; then
        printf '%s %s %s\n' "$name" "$(awk '{ print $1 * 1000 }' "$dir/$name.times" | median)" \
            "$(awk '{ print ($2 + $3) * 1000 }' "$dir/$name.times" | median)"
    fi
done
