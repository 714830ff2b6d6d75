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
# A whole million's result goes to bench/results/ (BENCH_RESULTS=DIR: there) and into BENCHMARKS.md, as JSON; that of fewer is
# printed as a table.
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

. scripts/servers.sh
begin
a_connector=$(($(ulimit -n) - other_files))
[ "$a_connector" -gt 0 ] || die "a process may have $(ulimit -n) open files: raise the limit"
connectors=$(((sessions + a_connector - 1) / a_connector))

# Without the pause in which clients would go elsewhere.
end_with=KILL
configure services "$heartbeat_s"
stores || die "a million want Kafka and Redis"
start logic logic services "${on_stores[@]}"
start job job services "${on_stores[@]}"
await logic job
names=()
for ((n = 1; n <= connectors; n++)); do
    names+=("connector-$n")
    start "connector-$n" connector services "${on_stores[@]}"
done
await "${names[@]}"
places=$(for name in "${names[@]}"; do printed "$name" clients; done | paste -sd, -)
measured=$(IFS=,; echo "${servers[*]}")
measured+=,$(cat "$directory"/redis/*/pid | paste -sd, -),$(cat "$directory"/kafka/*/pid | paste -sd, -)
echo "$sessions sessions, $rooms rooms, $connectors connectors" >&2

bench=(bench idle --sessions "$sessions" --rooms "$rooms" --seconds "$held" --push-all "$@")
results=""
at=(--connect "$places" --http "http://$(printed logic page)" --server-pid "$measured")
if [ "$sessions" -ge 1000000 ]; then
    results=${BENCH_RESULTS:-bench/results}
    document=$([ -n "${BENCH_RESULTS:-}" ] && echo "$results/BENCHMARKS.md" || echo BENCHMARKS.md)
    mkdir -p "$results"
    echo "barrage ${bench[*]} --connect ... --http ... --server-pid ..." >"$results/million.command"
    "$BARRAGE" "${bench[@]}" "${at[@]}" --json >"$results/million.json" &
else
    "$BARRAGE" "${bench[@]}" "${at[@]}" &
fi
client=$!
servers+=("$client")
failed=0
while kill -0 "$client" 2>/dev/null; do
    left=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
    if [ "$left" -lt "$least_kib" ]; then
        kill "$client"
        wait "$client" 2>/dev/null || true
        die "only $((left / 1024)) MiB of memory are left: take fewer SESSIONS"
    fi
    sleep 1
done
wait "$client" || failed=$?
[ -z "$results" ] || "$BARRAGE" bench report --results "$results" --out "$document"
exit "$failed"
