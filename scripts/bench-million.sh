#!/usr/bin/env bash
# A million authenticated sessions, each in a room, live at once on this machine: as many connector processes as
# descriptors require, one logic, one job, Redis for routes, Kafka as the bus, and the clients. Held for five minutes with
# heartbeats; at half time a push to all. Prints what `barrage bench idle` prints: memory by kind of process, and how long
# connecting took.
#
#   scripts/bench-million.sh [argument of `barrage bench idle`...]
#
# SESSIONS=1000000   fewer for a try
# SECONDS_HELD=300   how long they are held
# BARRAGE=...        a binary to take instead of building one
#
# A million take about 13 GiB, most of it the kernel's, and 20 minutes on two cores. It ends by itself, and sooner where
# less than 2 GiB are left.
set -euo pipefail
cd "$(dirname "$0")/.."

sessions=${SESSIONS:-1000000}
held=${SECONDS_HELD:-300}
# What a connector needs beside its clients: listeners, epoll, gRPC, Redis, the log.
other_files=200
least_kib=$((2 * 1024 * 1024))
# Rooms of a hundred, and one heartbeat of each session in a minute and a half.
rooms=$(((sessions + 99) / 100))
heartbeat_s=120

die() {
    echo "bench-million: $*" >&2
    exit 1
}

if [ -z "${BARRAGE:-}" ]; then
    cargo build --release --bin barrage
    BARRAGE=$PWD/target/release/barrage
fi
ulimit -n "$(ulimit -Hn)"
a_connector=$(($(ulimit -n) - other_files))
[ "$a_connector" -gt 0 ] || die "a process may have $(ulimit -n) open files: raise the limit"
connectors=$(((sessions + a_connector - 1) / a_connector))

directory=$(mktemp -d)
pids=()
ended() {
    # The connectors first, without the pause in which clients would go elsewhere.
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    scripts/kafka.sh down "$directory/kafka" >/dev/null 2>&1 || true
    scripts/redis.sh down "$directory/redis" >/dev/null 2>&1 || true
    rm -rf "$directory"
}
trap ended EXIT
trap 'exit 130' INT TERM

random() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }
BARRAGE_TOKEN_KEY=$(random)
export BARRAGE_TOKEN_KEY
redis=$(scripts/redis.sh up "$directory/redis")
kafka=$(scripts/kafka.sh up "$directory/kafka")
(umask 077; cat >"$directory/config.toml" <<TOML
[cluster]
secret = "$(random)"
[bus]
kind = "kafka"
[bus.kafka]
brokers = ["$kafka"]
development = true
replication = 1
min_in_sync = 1
[routes]
kind = "redis"
urls = ["$redis"]
[log]
level = "warn"
[admin]
listen = "127.0.0.1:0"
[connector]
listen = ["127.0.0.1:0"]
grpc = "127.0.0.1:0"
cores = 1
[connector.limits]
heartbeat_s = $heartbeat_s
auth_s = 30
[logic]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
[[logic.token.keys]]
kid = "bench"
alg = "HS256"
key = "$BARRAGE_TOKEN_KEY"
TOML
)

# start NAME ROLE: its process ID and what it prints are kept under NAME.
start() {
    (cd "$directory" && TOKIO_WORKER_THREADS=1 exec "$BARRAGE" "$2" --config config.toml \
        >"$directory/$1.out" 2>"$directory/$1.log" </dev/null) &
    pids+=($!)
}

# await NAME: until it is ready.
await() {
    for ((try = 0; try < 600; try++)); do
        grep -q '^ready' "$directory/$1.out" && return
        sleep 0.1
    done
    tail -5 "$directory/$1.log" >&2
    die "$1 is not ready"
}

printed() { awk -v name="$2" '$1 == name { print $2 }' "$directory/$1.out"; }

start logic logic
start job job
await logic
await job
for ((n = 1; n <= connectors; n++)); do start "connector-$n" connector; done
places=""
for ((n = 1; n <= connectors; n++)); do
    await "connector-$n"
    places+="${places:+,}$(printed "connector-$n" clients)"
done
measured=$(IFS=,; echo "${pids[*]}")
measured+=,$(cat "$directory"/redis/*/pid | paste -sd, -),$(cat "$directory"/kafka/*/pid | paste -sd, -)
http=$(printed logic page)
echo "$sessions sessions, $rooms rooms, $connectors connectors" >&2

"$BARRAGE" bench idle --sessions "$sessions" --rooms "$rooms" --seconds "$held" --push-all \
    --connect "$places" --http "${http%/}" --server-pid "$measured" "$@" &
bench=$!
pids+=("$bench")
while kill -0 "$bench" 2>/dev/null; do
    left=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
    if [ "$left" -lt "$least_kib" ]; then
        kill "$bench"
        wait "$bench" 2>/dev/null || true
        die "only $((left / 1024)) MiB of memory are left: take fewer SESSIONS"
    fi
    sleep 1
done
wait "$bench"
