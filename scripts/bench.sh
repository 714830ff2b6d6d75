#!/usr/bin/env bash
# Measures what BENCHMARKS.md says, prints the targets as a table, and writes BENCHMARKS.md and bench/results/ anew. Each
# measurement is a `barrage bench` command, which is kept beside its result.
#
#   scripts/bench.sh [CASE...]     only these (all: see below), the others' results stay as they are
#
# RUNS=5                 of each case of a target, but for 4d, 5a and 5b, which are a single run; of the table of drivers 3,
#                        of `limit` and each sweep one
# BARRAGE=...            a binary to take instead of building one
# BENCH_RESULTS=DIR      where the results go, instead of bench/results (then BENCHMARKS.md goes there, too)
#
# Servers run on the first processor with one event-loop thread, everything else on the others. In the pipelines only the
# connector does, and logic, job and bus are on the others with what they are held against, a sync and Kafka. Kafka and Redis
# are started where they can be had (scripts/kafka.sh, scripts/redis.sh); what needs them is left out where not.
#
# Cases that are compared with each other take turns, so that a machine whose pace changes is as fast for all of them.
#
# It takes about 29 minutes on two cores, and the build. A fan-out's run is its seconds and 8 more (server, entering,
# counters, `limit`): 5 x (5 x 17 s + 4 x 12 s + 7 x 12 s) and the drivers' 9 x 12 s are 20 minutes; the pipelines' 10 x 25 s
# and their stores 4.5; `limit`, sweeps, `storm` and memory 4.5. More RUNS take longer.
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${RUNS:-5}
# Of what is no target.
few=3
results=${BENCH_RESULTS:-bench/results}
document=$([ -n "${BENCH_RESULTS:-}" ] && echo "$results/BENCHMARKS.md" || echo BENCHMARKS.md)
# Seconds that a fan-out sends; chat, of which there are most cases, is shorter; where deliveries a second are the target, it
# is long enough for the last message's way, which is in the time that they are over, to be a hundredth of it.
for_s=4
chat_s=3
long_s=8
# What the connector's targets are about.
direct=(--stand --via connector --viewers 5000 --wire-bytes 123)

. scripts/servers.sh
begin --features connector/glommio
mkdir -p "$results"
results=$(cd "$results" && pwd)
begun=$SECONDS
failed=0

# The first processor that this may use, and the others.
processors=$(taskset -pc $$ | sed 's/.*: //; s/-/ /' | awk -F, '{ for (i = 1; i <= NF; i++) { split($i, r, " "); for (p = r[1]; p <= (r[2] == "" ? r[1] : r[2]); p++) print p } }')
first=$(head -1 <<<"$processors")
others=$(tail -n +2 <<<"$processors" | paste -sd,)
others=${others:-$first}

pin_servers=(taskset -c "$first")
pin_stores=(taskset -c "$others")

say() { printf '%4d s  %s\n' "$((SECONDS - begun))" "$*" >&2; }

# wanted CASE: whether it was asked for.
asked=("$@")
wanted() {
    [ "${#asked[@]}" -eq 0 ] && return
    local one
    for one in "${asked[@]}"; do [ "$one" = "$1" ] && return; done
    return 1
}

# measure CASE TIMES ARGUMENT...: `barrage bench ARGUMENT... --json`, on the clients' processors (or those of `on`), so many
# times; or so many times more, if that case has had a turn. What a run finds wrong with the server is in its result, too:
# the table tells.
declare -A turned
measure() {
    local name=$1 times=$2 run
    shift 2
    say "$name"
    if [ -z "${turned[$name]:-}" ]; then
        turned[$name]=yes
        rm -f "$results/$name".{json,command,svg,hgrm}
        # Where this run's servers and files are is no part of how it is done again.
        echo "barrage bench $*" | sed -E 's# --(svg|hgrm) [^ ]+##g; s# --(connect|http|admin|server-pid|sync|kafka) [^ ]+# --\1 ...#g' \
            >"$results/$name.command"
    fi
    for ((run = 0; run < times; run++)); do
        taskset -c "${on:-$others}" "$BARRAGE" bench "$@" --json >>"$results/$name.json" 2>"$directory/err" ||
            say "$name: $(tail -1 "$directory/err")"
    done
    sed -i "s#$directory#...#g" "$results/$name.json"
}

# fan CASE TIMES ARGUMENT...: a fan-out, if it was asked for; it starts its own server and places itself.
fan() {
    wanted "$1" || return 0
    on=$first,$others measure "$@" --svg "$results/$1.svg"
}

configure services
# barrage run, on embedded stores.
whole() { start whole run services && await whole; }
# A logic and a job on the others' processors, and a connector, on the stores.
cluster() {
    start connector connector services "${on_stores[@]}"
    local pin_servers=(taskset -c "$others") role
    for role in logic job; do start "$role" "$role" services "${on_stores[@]}"; done
    await logic job connector
}
# apart PID: of all threads of a `barrage run` only the connector's stay on the first processor.
apart() {
    local thread processors
    for thread in "/proc/$1/task/"*; do
        case $(cat "$thread/comm") in
        core-* | control) processors=$first ;;
        *) processors=$others ;;
        esac
        # One that has ended meanwhile needs no place.
        taskset -pc "$processors" "${thread##*/}" >/dev/null 2>&1 || true
    done
}

# It places its sender and its readers itself.
wanted limit && on=$first,$others measure limit 1 limit
# So rarely that each message is a write of its own; at 26 a second a machine that stands still for a moment makes one of two.
fan rare "$runs" fanout "${direct[@]}" --seconds "$for_s" --rate 20
# 2 % more than the targets, for that hundredth.
fan direct "$runs" fanout "${direct[@]}" --seconds "$long_s" --deliveries 20.4e6
fan direct-goim "$runs" fanout "${direct[@]}" --seconds "$long_s" --deliveries 20.4e6 --dialect goim
fan whole "$runs" fanout --stand --via http --dialect goim --viewers 5000 --wire-bytes 123 --seconds "$long_s" --deliveries 10.2e6
fan over "$runs" fanout "${direct[@]}" --seconds "$long_s" --deliveries 40e6 --probe
# The same sessions, and the same messages for each, so that only the layout of rooms differs; at 8.5 a second, for after
# 200 ms without one Linux acknowledges the next sixteen one by one, which costs one layout a quarter more, and others nothing.
rooms=(--stand --via connector --wire-bytes 123 --seconds "$for_s")
for ((turn = 0; turn < runs; turn++)); do
    fan one-room 1 fanout "${rooms[@]}" --viewers 15000 --deliveries 127.5e3
    fan many-rooms 1 fanout "${rooms[@]}" --viewers 15000 --rooms 1000 --deliveries 127.5e3
    fan mixed-rooms 1 fanout "${rooms[@]}" --room-sizes 10000,500x10 --rates 8.5,4250
done
fan flooded "$runs" fanout "${rooms[@]}" --room-sizes 10000,500x10 --rates 1000,500
chat=(--stand --via connector --viewers 5000 --chat --seconds "$chat_s" --deliveries 5e6)
for ((turn = 0; turn < runs; turn++)); do
    for dialect in native goim; do
        fan "chat-$dialect" 1 fanout "${chat[@]}" --dialect "$dialect"
        fan "chat-$dialect-deflate" 1 fanout "${chat[@]}" --dialect "$dialect" --compress
    done
    for dialect in bilibili bilibili-zlib bilibili-brotli; do
        fan "chat-$dialect" 1 fanout "${chat[@]}" --dialect "$dialect"
    done
done
for ((turn = 0; turn < few; turn++)); do
    for driver in uring monoio glommio; do
        fan "driver-$driver" 1 fanout "${direct[@]}" --seconds "$for_s" --deliveries 10e6 --set "connector.driver=$driver"
    done
done
growing=(--stand --via connector --wire-bytes 123 --seconds 2 --no-limit)
fan sweep 1 sweep "${growing[@]}" --viewers 5000 --deliveries 2e6 --factor 1.8
fan sweep-rooms 1 sweep "${growing[@]}" --viewers 10000 --deliveries 100e3 --grow rooms --factor 6 --steps 5
fan sweep-sessions 1 sweep "${growing[@]}" --viewers 1000 --rate 1000 --grow viewers --factor 2 --steps 4

if wanted idle-whole || wanted idle-rooms || wanted storm; then
    whole
    at=(--connect "$(printed whole clients)")
    wanted storm && measure storm "$runs" storm --sessions 10000 --rooms 100 "${at[@]}"
    servers_down
    whole
    at=(--connect "$(printed whole clients)")
    wanted idle-whole && measure idle-whole 1 idle --first 2000 --sessions 16000 --rooms 20 --seconds 12 --heartbeat 10 "${at[@]}"
    servers_down
    whole
    wanted idle-rooms && measure idle-rooms 1 idle --first 2000 --sessions 16000 --rooms 100000 --rooms-each 16 --seconds 20 \
        --heartbeat 15 --connect "$(printed whole clients)"
    servers_down
fi
if wanted pipeline-embedded; then
    whole
    apart "${servers[-1]}"
    measure pipeline-embedded "$runs" pipeline --seconds 20 --connect "$(printed whole clients)" \
        --http "http://$(printed whole page)" --admin "$(printed whole admin)" \
        --sync "$directory/whole" --svg "$results/pipeline-embedded.svg" --hgrm "$results/pipeline-embedded.hgrm"
    servers_down
fi
if wanted pipeline-kafka || wanted idle-connector; then
    if ! stores; then
        say "no Kafka or no Redis: what needs them is not measured"
    elif ! cluster; then
        say "a service is not ready on Kafka and Redis: what needs it is not measured"
        failed=1
        servers_down
    else
        wanted pipeline-kafka && measure pipeline-kafka "$runs" pipeline --seconds 20 --connect "$(printed connector clients)" \
            --http "http://$(printed logic page)" --admin "$(printed logic admin),$(printed job admin),$(printed connector admin)" \
            --kafka "$brokers" --svg "$results/pipeline-kafka.svg"
        connector=${servers[0]}
        wanted idle-connector && measure idle-connector 1 idle --first 2000 --sessions 16000 --rooms 20 --seconds 12 --heartbeat 10 \
            --connect "$(printed connector clients)" --server-pid "$connector"
        servers_down
    fi
fi

say "done"
"$BARRAGE" bench report --results "$results" --out "$document"
exit "$failed"
