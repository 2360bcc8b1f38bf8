#!/usr/bin/env bash
# Measures messages (16 connections with 64 messages outstanding on each) and files through nginx,
# with the configurations of contrib/nginx, in turn with a direct connection. Everything is on the
# loopback of this machine. Prints a Markdown table, or one line if nginx or openssl is missing.
#
#   bench-middles.sh [ROUNDS]
#
# Uses the nginx in PATH, else the one that scripts/middles.sh has unpacked. TWINLOCK is the program,
# BENCH_DIR the directory of the record, BENCH_MEMORY that of the files (default /dev/shm),
# BENCH_SECONDS the duration of a window, BENCH_FILE_MIB the file size (0: no files), BENCH_WAYS the
# rows, such as "tls stream-to-tls"; "tls" must be the first. BENCH_ROWS=yes prints each round's
# figures on standard error.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-3}
target=${CARGO_TARGET_DIR:-target}
twinlock=$(realpath "${TWINLOCK:-$target/release/twinlock}")
seconds=${BENCH_SECONDS:-2}
mib=${BENCH_FILE_MIB:-256}
disk=${BENCH_DIR:-$target}
memory=${BENCH_MEMORY:-/dev/shm}
if [[ ! -w $memory ]]; then memory=${TMPDIR:-/tmp}; fi
ways=${BENCH_WAYS:-tls stream-to-plain stream-to-tls websocket websocket-to-plain websocket-to-tls}

# Sets nginx, module and, for an unpacked nginx, libraries. Fails if nginx or its module is missing.
find_nginx() {
    local name value root=
    PATH=$PATH:/usr/sbin:/sbin
    module=/usr/lib/nginx/modules/ngx_stream_module.so
    if nginx=$(command -v nginx) && [[ -e $module ]]; then return; fi
    nginx=
    if [[ ! -e $target/middles/env ]]; then return 1; fi
    while read -r name value; do
        case $name in
            nginx) nginx=$value ;;
            libraries) libraries=$value ;;
            root) root=$value ;;
        esac
    done <"$target/middles/env"
    module=$root$module
    [[ -x $nginx && -e $module ]]
}
libraries=
if ! command -v openssl >/dev/null; then
    echo 'Not measured: the certificate for nginx needs openssl.'
    exit 0
elif ! find_nginx; then
    echo "Not measured: nginx with its stream module is not installed; \`scripts/middles.sh\` unpacks it."
    exit 0
fi

dir=$(mktemp -d "$(realpath "$disk")/twinlock-bench.XXXXXX")
shm=$(mktemp -d "$memory/twinlock-bench.XXXXXX")
server=
middles=()

end() {
    kill -TERM "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

stop_server() {
    if [[ -n $server ]]; then end "$server"; fi
    server=
}

finish() {
    local code=$? middle
    trap - EXIT INT TERM HUP
    for middle in "${middles[@]}"; do end "$middle"; done
    stop_server
    rm -rf "$dir" "$shm"
    exit "$code"
}
trap finish EXIT INT TERM HUP

# Starts a new server below $1. The first one selects its ports, the next ones use the same.
port=0
plain=0
start_server() {
    local below=$1 line
    stop_server
    rm -rf "${below:?}/server" "${below:?}/home" "${below:?}/out"
    export TWINLOCK_HOME=$below/home
    printf '%s\n' '[limits]' 'text-rate-kib = 0' 'text-per-day-mib = 0' 'sessions-per-device = 256' >"$below/twinlock.toml"
    mkfifo "$below/out"
    "$twinlock" serve --data "$below/server" --port "$port" --plain-port "$plain" --forwarded-from 127.0.0.1 \
        --config "$below/twinlock.toml" >"$below/out" 2>"$below/words" &
    server=$!
    exec 3<"$below/out"
    while read -r -t 30 line <&3; do
        case $line in
            'listening on '*) port=${line##*:} ;;
            'without TLS on '*) plain=${line##*:} && break ;;
        esac
    done
    if [[ ${line-} != 'without TLS on '* ]]; then
        cat "$below/words" >&2
        exit 1
    fi
    "$twinlock" join "$(cat "$below/server/owner-invite")" --user bench --no-password --quiet >"$below/joined" 2>&1 || {
        cat "$below/joined" >&2
        exit 1
    }
}

make_certificate() {
    (
        cd "$dir"
        exec >openssl.log 2>&1
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=bench
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out leaf.csr -subj /CN=localhost
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >extensions
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem
    )
}

answers() { (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Starts nginx with the file $1 of contrib/nginx and the main part of Debian's configuration. Stores
# its port and process.
declare -A at process
start_nginx() {
    local name=$1 prefix=$dir/$1 n tries middle listen site
    mkdir "$prefix"
    for ((n = 0; n < 20; n++)); do
        # nginx does not report the port that it got for port 0: try unused ports.
        listen=$((20000 + RANDOM % 10000))
        if answers "$listen"; then continue; fi
        # The substitutions of contrib/README.md.
        site=$(sed -e "s|0\.0\.0\.0:443|127.0.0.1:$listen|" -e "s|127\.0\.0\.1:8443|127.0.0.1:$port|" \
            -e "s|127\.0\.0\.1:8080|127.0.0.1:$plain|" -e "s|/etc/ssl/chat.example.org.pem|$dir/cert.pem|" \
            -e "s|/etc/ssl/private/chat.example.org.key|$dir/key.pem|" -e 's|chat\.example\.org|localhost|' \
            "contrib/nginx/$name.conf")
        if [[ $site != *'stream {'* ]]; then
            site="http { access_log off; $(printf "%s_temp_path $prefix/%s; " \
                client_body{,} proxy{,} fastcgi{,} uwsgi{,} scgi{,}) $site }"
        fi
        printf '%s\n' 'daemon off;' 'worker_processes auto;' "user $(id -un) $(id -gn);" "pid $prefix/pid;" \
            "load_module $module;" 'events { worker_connections 768; }' "$site" >"$prefix/conf"
        LD_LIBRARY_PATH=$libraries "$nginx" -p "$prefix" -e "$prefix/log" -c "$prefix/conf" 2>"$prefix/words" &
        middle=$!
        middles+=("$middle")
        for ((tries = 0; tries < 100; tries++)); do
            if answers "$listen"; then
                at[$name]=$listen
                process[$name]=$middle
                return
            fi
            if ! kill -0 "$middle" 2>/dev/null; then break; fi
            sleep 0.05
        done
    done
    cat "$prefix/words" "$prefix/log" >&2
    exit 1
}

# CPU time of the workers of the nginx master $1, in ticks; 0 without an argument.
ticks() {
    if [[ -z $1 ]]; then echo 0 && return; fi
    # Other processes may end between the list of the files and the reading.
    { cat /proc/[0-9]*/stat 2>/dev/null || true; } | sed 's/.*) //' |
        awk -v of="$1" '$2 == of { sum += $12 + $13 } END { print sum + 0 }'
}

# Load of all CPUs over one second, in percent.
busy() {
    local before after
    read -r -a before </proc/stat
    sleep 1
    read -r -a after </proc/stat
    awk -v b="${before[*]:1:8}" -v a="${after[*]:1:8}" 'BEGIN {
        n = split(b, x, " "); split(a, y, " ")
        for (i = 1; i <= n; i++) { d = y[i] - x[i]; all += d; if (i == 4 || i == 5) idle += d }
        printf "%.1f\n", (all > 0 ? 100 * (1 - idle / all) : 0)
    }'
}

# A field of a JSON line; the last one of that name.
field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"; }

# Runs `twinlock bench` the way $1.
run() {
    local way=$1
    shift
    local transport=tls
    if [[ $way == websocket* ]]; then transport=websocket; fi
    # A middle that terminates TLS is reported on standard error each time.
    if ! timeout --foreground 60 "$twinlock" bench --quiet --json --server-pid "$server" --transport "$transport" \
        --address "127.0.0.1:${at[$way]}" "$@" 2>"$dir/words"; then
        cat "$dir/words" >&2
        return 1
    fi
}

# Measures messages the way $1 with a new server, because a server indexes texts after the load.
messages() {
    local way=$1 middle=${process[$1]-} used json
    start_server "$dir"
    used=$(ticks "$middle")
    json=$(run "$way" --mode messages --lines 16 --window 64 --seconds "$seconds")
    used=$(($(ticks "$middle") - used))
    printf '%s %s %s %s %s\n' "$way" "$(field per_second "$json")" "$(field client_cpu_us_each "$json")" \
        "$(field cpu_us_each "$json")" "$(awk "BEGIN { print $used / $hertz * 1e6 / $(field total "$json") }")" >>"$dir/messages"
}

# Uses memory and frees it before: a virtual machine may get it from its host at the first use.
files() {
    local way=$1 json
    start_server "$shm"
    if [[ $(stat -f -c %T "$shm") == tmpfs ]]; then
        head -c $((mib * 1048576 * 3 / 2)) /dev/zero >"$shm/used"
        rm "$shm/used"
    fi
    json=$(run "$way" --mode files --file "${mib}M")
    printf '%s %s %s\n' "$way" "$(field per_second "$(grep '"put"' <<<"$json")")" \
        "$(field per_second "$(grep '"get"' <<<"$json")")" >>"$dir/files"
}

# The median of column $2 of the rows $1 in the file $3.
median() { awk -v way="$1" -v column="$2" '$1 == way { print $column }' "$3" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# The median over the rounds of column $2 of $1 in proportion to the direct connection, in the file $3.
ratio() {
    awk -v way="$1" -v column="$2" '
        $1 == "tls" { direct = $column }
        $1 == way && direct > 0 { print $column / direct }' "$3" >"$dir/ratios"
    sort -g "$dir/ratios" | awk '{ v[NR] = $1 } END { if (NR) printf "%.0f %%", v[int((NR + 1) / 2)] * 100; else print "?" }'
}

declare -A words=(
    [tls]='direct, TLS'
    [stream-to-plain]="nginx \`stream\` to the plain port"
    [stream-to-tls]="nginx \`stream\` to the TLS port"
    [websocket]='direct, WebSocket in TLS'
    [websocket-to-plain]="nginx \`http\`, WebSocket to the plain port"
    [websocket-to-tls]="nginx \`http\`, WebSocket to the TLS port"
)
declare -A goal=([stream-to-plain]='70 %' [stream-to-tls]='60 %')

hertz=$(getconf CLK_TCK)
export SSL_CERT_FILE=$dir/ca.pem
make_certificate
start_server "$dir"
at[tls]=$port
at[websocket]=$port
for way in $ways; do
    if [[ -z ${at[$way]-} ]]; then start_nginx "$way"; fi
done

busiest=0
touch "$dir/messages" "$dir/files"
for ((round = 0; round < rounds; round++)); do
    stop_server
    now=$(busy)
    busiest=$(awk "BEGIN { print ($now > $busiest ? $now : $busiest) }")
    for way in $ways; do messages "$way"; done
done
if ((mib > 0)); then
    for ((round = 0; round < rounds; round++)); do
        for way in $ways; do files "$way"; done
    done
fi
if [[ -n ${BENCH_ROWS-} ]]; then cat "$dir/messages" "$dir/files" >&2; fi

commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
version=$(LD_LIBRARY_PATH=$libraries "$nginx" -v 2>&1 | sed 's/.*: //')
printf 'Measured %s, commit %s, with %s in %s rounds. At most %s %% of the CPU was in use before a round%s.\n\n' \
    "$(date -u +%Y-%m-%dT%H:%MZ)" "$commit" "$version" "$rounds" "$busiest" \
    "$(awk "BEGIN { if ($busiest > 5) print \": **other programs were running; the figures are unreliable**\" }")"
printf '| way | acks/s, 16 x 64 | of direct | goal | CPU of an ack: client, server, nginx | upload, download of %s MiB | of direct |\n' "$mib"
printf '|---|---|---|---|---|---|---|\n'
for way in $ways; do
    cpu=
    for column in 3 4 5; do cpu+=${cpu:+, }$(printf '%.2f' "$(median "$way" "$column" "$dir/messages")"); done
    moved=-
    share=-
    if ((mib > 0)); then
        moved=$(awk "BEGIN { printf \"%d, %d MB/s\", $(median "$way" 2 "$dir/files") / 1e6, $(median "$way" 3 "$dir/files") / 1e6 }")
        share="$(ratio "$way" 2 "$dir/files"), $(ratio "$way" 3 "$dir/files")"
    fi
    printf '| %s | %.0f | %s | %s | %s us | %s | %s |\n' "${words[$way]}" "$(median "$way" 2 "$dir/messages")" \
        "$(ratio "$way" 2 "$dir/messages")" "${goal[$way]-}" "$cpu" "$moved" "$share"
done
