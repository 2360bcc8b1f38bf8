#!/usr/bin/env bash
# Sends each line of standard input as the origin's client does, with nothing but bash and openssl.
#   bash origin_client.sh HOST PORT KEYFILE < lines
# KEYFILE is of `twinlock classic add NAME --to ROOM --format origin`. openssl takes keys as arguments,
# which others on this machine can see while it runs.
set -euo pipefail
host=$1 port=$2 key=$(<"$3")
hex() { od -An -v -tx1 | tr -d ' \n'; }
bytes() { printf '%b' "$(sed 's/../\\x&/g')"; }

coproc LINE { exec openssl s_client -quiet -connect "$host:$port" 2>/dev/null; }
server=$LINE_PID from=${LINE[0]} to=${LINE[1]}
trap 'kill "$server" 2>/dev/null || true' EXIT

while IFS= read -r text; do
    iv=$(openssl rand -hex 16)
    message=$({
        printf '%s' "$iv" | bytes
        printf '%s' "$text" | openssl enc -aes-256-cbc -K "$key" -iv "$iv"
    } | openssl base64 -A)
    # A message that is a line has a line for its answer.
    printf '%s\n' "$message" >&"$to"
    IFS= read -r -t 30 answer <&"$from" || { echo 'the server closed the connection' >&2; exit 1; }
    iv=$(printf '%s' "$answer" | openssl base64 -d -A | head -c 16 | hex)
    printf '%s' "$answer" | openssl base64 -d -A | tail -c +17 |
        openssl enc -d -aes-256-cbc -K "$key" -iv "$iv"
    echo
done
