#!/usr/bin/env bash
# Runs Twinlock on this machine for `make run`, `make run-server` and `make run-client`.
#
#   run.sh all      starts a server, joins it as you, opens a chat, and stops the server at the end;
#                   if such a server already runs, only opens a chat on it
#   run.sh server   runs only the server, with its log on the screen, until Ctrl-C
#   run.sh client   opens a chat on the server that one of the others started; AS=NAME chats as
#                   another user, whom you invite
#
# The server logs each message (--log-messages), because this is a trial. All state is below .run/
# (RUN_DIR moves it). The program must be built before; TWINLOCK is its path.
set -euo pipefail
cd "$(dirname "$0")/.."

state=${RUN_DIR:-.run}
twinlock=${TWINLOCK:-${CARGO_TARGET_DIR:-target}/debug/twinlock}
port=8443
# A start takes well under a second; a longer one has another cause.
start_seconds=30

server=
chat=
address=

say() { printf '%s\n' "$*" >&2; }

# Your system user name if it is a valid user name, else `me`.
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

# Starts the server in the background, with standard error in the file $1 if given, and waits until it
# listens. Stores its address in $address, and in the file `address` for `client`.
start_server() {
    local words=${1:-} line='' pipe
    if answers "$port"; then
        say "port $port is in use; taking a free one"
        port=0
    fi
    pipe=$(mktemp -d)
    mkfifo "$pipe/out"
    if [[ -n $words ]]; then exec 4>"$words"; else exec 4>&2; fi
    # In a separate process group: Ctrl-C ends the chat, and then the script ends the server.
    set -m
    "$twinlock" serve --data "$state/server" --port "$port" --log-messages </dev/null >"$pipe/out" 2>&4 4>&- &
    server=$!
    set +m
    exec 4>&-
    # Stays open while the script runs.
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

# Joins with the invite link on standard input: it is a secret, and arguments are public.
join() { "$twinlock" join --no-password --user "$1" --address "$address" -; }

# The first user to join owns the server.
join_as_owner() {
    if ! joined "$TWINLOCK_HOME"; then
        join "$(own_name)" <"$state/server/owner-invite"
    fi
}

# In the background, so that the script handles a signal while the chat runs.
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
# Ignore settings for another server.
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
