#!/usr/bin/env bash
# Redis on loopback for development and tests: Debian's redis-server, nothing kept on disk.
#
#   scripts/redis.sh up DIR [--cluster [--replicas]] [--port PORT]
#                                                       starts it unless it runs, waits until it serves, prints its URLs
#                                                       with commas between; --cluster: three masters, random ports;
#                                                       --replicas: and three more that take over from them
#   scripts/redis.sh down DIR                           ends it
#   scripts/redis.sh urls DIR                           prints the URLs of what runs, or fails
#
# REDIS_WITH=PID    ends it when that process is gone, however it ends
#
# DIR has a folder for each server with its pid, port and log. Exit status 3: Redis is not installed.
set -euo pipefail

version=7.0.15 # Debian 12's, and compose.yaml's; 7.0 or newer will do
settings=(--save "" --appendonly no)
answer_tries=100 # of 0.1 s

die() {
    echo "redis.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

need() {
    local found=none
    command -v redis-cli >/dev/null && found=$(redis-server --version 2>/dev/null | sed -n 's/.* v=\([0-9.]*\).*/\1/p')
    case "$found" in
    [1-6].* | none | "")
        echo "redis.sh: redis-server $version or newer is needed, found $found: apt-get install redis-server (Debian), brew install redis (macOS)" >&2
        exit 3
        ;;
    esac
}

# A port that is probably free, below those that the kernel hands out and above those of kafka.sh; with 10000 more it is the
# bus of a cluster.
random_port() {
    echo $((28000 + RANDOM % 4000))
}

# Whether the server of a folder is alive; its pid may have gone to another process.
running() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && [ "$(ps -p "$pid" -o comm= 2>/dev/null)" = redis-server ]
}

# start FOLDER PORT [setting...]: one server; without a port on a random one, and on another if that was taken.
start() {
    local folder=$1 port=$2 try wait at pid
    shift 2
    mkdir -p "$folder"
    for ((try = 0; try < 5; try++)); do
        at=${port:-$(random_port)}
        rm -f "$folder/log" "$folder/pid"
        redis-server --bind 127.0.0.1 --port "$at" --dir "$folder" --pidfile "$folder/pid" --logfile "$folder/log" \
            --daemonize yes "${settings[@]}" "$@" >/dev/null || true
        for ((wait = 0; wait < answer_tries; wait++)); do
            # Another's server on this port answers too: it must be the process of the pid file.
            pid=$(redis-cli -h 127.0.0.1 -p "$at" info server 2>/dev/null | tr -d '\r' | sed -n 's/^process_id://p') || true
            if [ -n "$pid" ] && [ "$pid" = "$(cat "$folder/pid" 2>/dev/null)" ]; then
                echo "$at" >"$folder/port"
                return
            fi
            ! grep -qs 'Could not create server\|Failed listening\|Address already in use' "$folder/log" || break
            sleep 0.1
        done
        [ -z "$port" ] || break
    done
    die "no server on port $at: $(tail -n 2 "$folder/log" | tr '\n' ' ')"
}

urls() {
    local folder list=""
    for folder in "$1"/[0-9]*; do
        running "$folder" || return 1
        list+="${list:+,}redis://127.0.0.1:$(cat "$folder/port")"
    done
    [ -n "$list" ] && echo "$list"
}

up() {
    local dir=$1 cluster=$2 port=$3 replicas=$4 n wait
    local -a nodes=() numbers=(1 2 3)
    need
    urls "$dir" && return
    down "$dir"
    if [ -n "${REDIS_WITH:-}" ]; then
        (
            exec >/dev/null 2>&1 </dev/null
            while kill -0 "$REDIS_WITH"; do sleep 0.5; done
            down "$dir"
        ) &
    fi
    if [ -z "$cluster" ]; then
        start "$dir/1" "$port"
        urls "$dir"
        return
    fi
    [ -z "$replicas" ] || numbers+=(4 5 6)
    for n in "${numbers[@]}"; do
        start "$dir/$n" "" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000 \
            --repl-diskless-sync-delay 0
        nodes+=("127.0.0.1:$(cat "$dir/$n/port")")
    done
    redis-cli --cluster create "${nodes[@]}" --cluster-replicas "${replicas:-0}" --cluster-yes >"$dir/create.log" ||
        die "no cluster: $(tail -n 3 "$dir/create.log" | tr '\n' ' ')"
    # That it is made, as one of them says, is not known to all of them yet.
    for n in "${numbers[@]}"; do
        for ((wait = 0; wait < answer_tries; wait++)); do
            ! redis-cli -p "$(cat "$dir/$n/port")" cluster info | grep -q '^cluster_state:ok' || continue 2
            sleep 0.1
        done
        die "node $n of the cluster is not ok"
    done
    [ -n "$replicas" ] || { urls "$dir" && return; }
    # A replica takes over only once it has had its master's data.
    for n in "${numbers[@]}"; do
        for ((wait = 0; wait < answer_tries; wait++)); do
            case "$(redis-cli -p "$(cat "$dir/$n/port")" info replication)" in
            *role:slave*master_link_status:up* | *role:master*connected_slaves:1*) continue 2 ;;
            esac
            sleep 0.1
        done
        die "node $n of the cluster is not in step"
    done
    urls "$dir"
}

down() {
    local folder pid wait
    for folder in "$1"/[0-9]*; do
        if running "$folder"; then
            pid=$(cat "$folder/pid")
            kill "$pid" || true
            for ((wait = 0; wait < answer_tries; wait++)); do
                running "$folder" || break
                sleep 0.1
            done
            ! running "$folder" || kill -9 "$pid"
        fi
        rm -f "$folder"/{pid,port,log,nodes.conf}
    done
}

[ $# -ge 2 ] || usage
command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2
cluster="" port="" replicas=""
while [ $# -gt 0 ]; do
    case "$1" in
    --cluster) cluster=yes ;;
    --replicas) replicas=1 ;;
    --port)
        port=${2:?a port}
        shift
        ;;
    *) usage ;;
    esac
    shift
done
[ -z "$cluster" ] || [ -z "$port" ] || usage
[ -n "$cluster" ] || [ -z "$replicas" ] || usage
shopt -s nullglob
case "$command" in
up) up "$dir" "$cluster" "$port" "$replicas" ;;
down) down "$dir" ;;
urls) urls "$dir" ;;
*) usage ;;
esac
