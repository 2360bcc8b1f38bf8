#!/usr/bin/env bash
# Tries Twinlock out on this machine: what `make run`, `make run-server` and `make run-client` do.
#
#   run.sh all      starts a server, joins it as you, opens a chat, and stops the server at the end;
#                   where one of these runs already, only opens a chat on it
#   run.sh server   the server alone with its log on the screen, until Ctrl-C
#   run.sh client   a chat on the server that one of the others started; AS=NAME talks as somebody
#                   else, invited by you
#
# The server logs each message (--log-messages), since this is for trying it out. All state is below .run/ (RUN_DIR moves it). The program is built before; TWINLOCK names it.
set -euo pipefail
cd "$(dirname "$0")/.."

state=${RUN_DIR:-.run}
twinlock=${TWINLOCK:-${CARGO_TARGET_DIR:-target}/debug/twinlock}
port=8443
# A start takes well under a second; a machine that needs longer than this has another problem.
start_seconds=30

server=
chat=
address=

say() { printf '%s\n' "$*" >&2; }

# A name the server takes: what the system calls you, if that is one.
own_name() {
    local name
    name=$(printf '%s' "${USER:-}" | tr '[:upper:]' '[:lower:]')
    if [[ $name =~ ^[a-z0-9]([a-z0-9._-]{0,30}[a-z0-9])?$ ]]; then
        printf '%s' "$name"
    else
        printf 'me'
    fi
}

# shellcheck disable=SC2329 # by the trap
finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    if [[ -n $chat ]]; then
        kill -TERM "$chat" 2>/dev/null || true
        wait "$chat" 2>/dev/null || true
    fi
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        if [[ -n $address ]]; then rm -f "$state/address"; fi
    fi
    exit "$code"
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Starts the server in the background, its words going to the file $1 if there is one, and waits
# until it listens: its address is then in $address and in the file `address`, for `client`.
start_server() {
    local words=${1:-} line='' pipe
    if answers "$port"; then
        say "port $port is in use; taking a free one"
        port=0
    fi
    pipe=$(mktemp -d)
    mkfifo "$pipe/out"
    if [[ -n $words ]]; then exec 4>"$words"; else exec 4>&2; fi
    # In a process group of its own: Ctrl-C ends the chat, and then the script ends the server.
    set -m
    "$twinlock" serve --data "$state/server" --port "$port" --log-messages </dev/null >"$pipe/out" 2>&4 4>&- &
    server=$!
    set +m
    exec 4>&-
    # Held open for as long as the script runs.
    exec 3<"$pipe/out"
    rm -r "$pipe"
    read -r -t "$start_seconds" line <&3 || true
    case $line in
    'listening on '*)
        address=${line#listening on }
        printf '%s\n' "$address" >"$state/address"
        ;;
    *)
        say 'the server did not start:'
        if [[ -n $words ]]; then cat "$words" >&2; fi
        exit 1
        ;;
    esac
}

joined() { [[ -e $1/profiles/default.toml ]]; }

# Joins with the link on standard input: it is a secret, and arguments are not.
join() { "$twinlock" join --no-password --user "$1" --address "$address" -; }

# Whoever comes first owns the server.
join_as_owner() {
    if ! joined "$TWINLOCK_HOME"; then
        join "$(own_name)" <"$state/server/owner-invite"
    fi
}

# In the background, so that a signal to this script alone is not left waiting for the chat.
talk() {
    "$twinlock" chat --address "$address" <&0 &
    chat=$!
    local code=0
    wait "$chat" || code=$?
    chat=
    exit "$code"
}

if [[ ! -x $twinlock ]]; then
    say "$twinlock is not built: make build"
    exit 2
fi
mkdir -p "$state"
chmod 700 "$state"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
# Settings for another server are not for this one.
unset TWINLOCK_PROFILE TWINLOCK_ADDRESS TWINLOCK_CONFIG TWINLOCK_PUBLIC_HOST TWINLOCK_HOST
export TWINLOCK_HOME=$state/me

what=${1:-all}
if [[ $what == all && -f $state/address ]] && answers "$(sed 's/.*://' "$state/address")"; then
    what=client
fi
case $what in
all)
    start_server "$state/server.words"
    say "the server's log, with each message: $state/server/server.log"
    join_as_owner
    talk
    ;;
server)
    trap 'exit 0' INT
    start_server
    say "make run-client, in another terminal, opens a chat; Ctrl-C ends the server"
    code=0
    wait "$server" || code=$?
    server=
    rm -f "$state/address"
    exit "$code"
    ;;
client)
    if [[ ! -f $state/address ]]; then
        say 'no server runs here: make run-server starts one'
        exit 5
    fi
    address=$(<"$state/address")
    join_as_owner
    if [[ -n ${AS:-} ]]; then
        if ! joined "$state/as-$AS"; then
            invite=$("$twinlock" invite --quiet --user "$AS" --address "$address")
            TWINLOCK_HOME=$state/as-$AS join "$AS" <<<"$invite"
        fi
        export TWINLOCK_HOME=$state/as-$AS
    fi
    talk
    ;;
*)
    say "usage: $0 [all|server|client]"
    exit 2
    ;;
esac
