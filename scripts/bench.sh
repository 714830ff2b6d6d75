#!/usr/bin/env bash
# The first bench: `barrage run` with one event-loop thread in an empty directory, loaded by `barrage bench fanout`.
# What it prints goes to standard output; arguments go to `barrage bench fanout` instead of the two standard runs.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --bin barrage
barrage=$PWD/target/release/barrage
directory=$(mktemp -d)
ulimit -n "$(ulimit -Hn)"
# The limit of messages a second of a room is for chat; a bench is no chat.
(cd "$directory" && exec "$barrage" run --set connector.cores=1 --set 'connector.listen=["127.0.0.1:0"]' \
    --set connector.grpc=127.0.0.1:0 --set logic.http=127.0.0.1:0 --set logic.grpc=127.0.0.1:0 \
    --set admin.listen=127.0.0.1:0 --set connector.drain_s=1 --set log.level=warn \
    >"$directory/out" 2>"$directory/log") &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$directory"' EXIT
for _ in $(seq 300); do
    grep -q '^ready' "$directory/out" 2>/dev/null && break
    kill -0 "$server" 2>/dev/null || { cat "$directory/log"; exit 1; }
    sleep 0.1
done
http=$(awk '$1 == "page" { print $2 }' "$directory/out")
clients=$(awk '$1 == "clients" { print $2 }' "$directory/out")
fanout() { "$barrage" bench fanout --http "${http%/}" --connect "$clients" "$@"; }

if [ $# -gt 0 ]; then
    fanout "$@"
else
    for dialect in native goim; do
        fanout --dialect "$dialect" --viewers 1000 --rate 50
        fanout --dialect "$dialect" --viewers 5000 --rate 400
    done
fi
