#!/usr/bin/env bash
# Kafka and Redis for development, on loopback and on their usual ports: what config/dev.toml expects. With Docker,
# compose.yaml gives the same.
#
#   scripts/services.sh up       starts what does not run (the first time Maven fetches Kafka, 53 MB)
#   scripts/services.sh down     ends both; Kafka's records stay, Redis keeps nothing
#   scripts/services.sh status   says what runs; exit status 1 unless both do
set -euo pipefail
cd "$(dirname "$0")/.."

redis_port=6379
kafka_port=9092
dir=.cache/services

# Whether somebody listens there.
taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

redis_runs() {
    scripts/redis.sh urls "$dir/redis" >/dev/null
}

kafka_runs() {
    local pid
    pid=$(cat "$dir/kafka/1/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null && taken "$kafka_port"
}

# foreign NAME PORT: ends unless the port is free; only called where our own does not run.
foreign() {
    ! taken "$2" || {
        echo "services: something else listens on 127.0.0.1:$2: end it first ($1 installed as a service? systemctl stop $1)" >&2
        exit 1
    }
}

up() {
    mkdir -p "$dir"
    # Another `up` at the same time waits for this one.
    exec 9>"$dir/lock"
    flock 9
    redis_runs || foreign redis-server "$redis_port"
    kafka_runs || foreign kafka "$kafka_port"
    # Servers must not inherit the lock: it would be theirs as long as they live.
    scripts/redis.sh up "$dir/redis" --port "$redis_port" >/dev/null 9>&-
    KAFKA_PORT=$kafka_port scripts/kafka.sh up "$dir/kafka" >/dev/null 9>&-
    status
}

down() {
    [ ! -d "$dir/kafka" ] || scripts/kafka.sh down "$dir/kafka"
    [ ! -d "$dir/redis" ] || scripts/redis.sh down "$dir/redis"
}

status() {
    local all=0
    redis_runs && echo "redis  up    redis://127.0.0.1:$redis_port" || { echo "redis  down"; all=1; }
    kafka_runs && echo "kafka  up    127.0.0.1:$kafka_port" || { echo "kafka  down"; all=1; }
    return $all
}

case "${1:-}" in
up | down | status) "$1" ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
