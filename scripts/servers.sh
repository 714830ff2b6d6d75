# The servers of a measurement: scripts/bench.sh and scripts/bench-million.sh source this from the top of the tree. Everything
# lies in a directory of its own, and ends with the script.
#
#   begin [ARGUMENT of cargo build...]     builds barrage, unless BARRAGE names one; raises the limit of open files
#   configure NAME [HEARTBEAT_S]           a configuration on free loopback ports, with one event-loop thread
#   stores                                 starts Kafka and Redis: `brokers`, and `on_stores` for the services' arguments
#   start NAME ROLE CONFIGURATION [ARGUMENT...], await NAME, printed NAME WHAT
#   servers_down                           ends the services, not the stores
#
# `pin_servers` and `pin_stores`, arrays: what is put before their commands (taskset), nothing if they are not set.

directory=$(mktemp -d)
servers=()
pin_servers=()
pin_stores=()
# The signal that ends a service.
end_with=TERM
trap 'ended' EXIT
trap 'exit 130' INT TERM

random() { od -An -tx1 -N32 /dev/urandom | tr -d ' \n'; }
cluster_secret=$(random)
BARRAGE_TOKEN_KEY=$(random)
export BARRAGE_TOKEN_KEY

begin() {
    if [ -z "${BARRAGE:-}" ]; then
        cargo build --release --bin barrage "$@"
        BARRAGE=$(realpath "${CARGO_TARGET_DIR:-target}")/release/barrage
    fi
    ulimit -n "$(ulimit -Hn)"
}

servers_down() {
    local pid
    for pid in "${servers[@]}"; do kill -"$end_with" "$pid" 2>/dev/null || true; done
    for pid in "${servers[@]}"; do wait "$pid" 2>/dev/null || true; done
    servers=()
}

ended() {
    servers_down
    scripts/kafka.sh down "$directory/kafka" >/dev/null 2>&1 || true
    scripts/redis.sh down "$directory/redis" >/dev/null 2>&1 || true
    rm -rf "$directory"
}

# Sessions are guests, or show a token of the bench's.
configure() {
    (umask 077; cat >"$directory/$1.toml" <<TOML
[cluster]
secret = "$cluster_secret"
[log]
level = "warn"
[admin]
listen = "127.0.0.1:0"
[connector]
listen = ["127.0.0.1:0"]
grpc = "127.0.0.1:0"
cores = 1
drain_s = 1
[connector.buffers]
drain_delay_ms = 100
[connector.limits]
heartbeat_s = ${2:-60}
auth_s = 30
[logic]
guests = "send"
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
[[logic.token.keys]]
kid = "bench"
alg = "HS256"
key = "$BARRAGE_TOKEN_KEY"
TOML
    )
}

stores() {
    local redis
    brokers=$("${pin_stores[@]}" scripts/kafka.sh up "$directory/kafka") || return 1
    redis=$("${pin_stores[@]}" scripts/redis.sh up "$directory/redis") || return 1
    on_stores=(--set bus.kind=kafka --set "bus.kafka.brokers=[\"$brokers\"]" --set bus.kafka.development=true
        --set bus.kafka.replication=1 --set bus.kafka.min_in_sync=1 --set routes.kind=redis --set "routes.urls=[\"$redis\"]")
}

start() {
    local name=$1 role=$2 configuration=$3
    shift 3
    mkdir -p "$directory/$name"
    # What an earlier one of that name printed is not this one's.
    : >"$directory/$name/out"
    (cd "$directory/$name" && TOKIO_WORKER_THREADS=1 exec "${pin_servers[@]}" "$BARRAGE" "$role" \
        --config "$directory/$configuration.toml" "$@" >out 2>log </dev/null) &
    servers+=($!)
}

# await NAME...: until they are ready.
await() {
    local name try
    for name in "$@"; do
        for ((try = 0; try < 600; try++)); do
            grep -q '^ready' "$directory/$name/out" 2>/dev/null && continue 2
            sleep 0.1
        done
        tail -5 "$directory/$name/log" >&2
        echo "$name is not ready" >&2
        return 1
    done
}

printed() { awk -v name="$2" '$1 == name { print $2 }' "$directory/$1/out" | sed 's#^http://##; s#/$##'; }
