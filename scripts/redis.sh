#!/bin/sh
# Redis for tests and for `make services`, on loopback, nothing kept on disk.
#
#   scripts/redis.sh up DIR [--cluster] [--port PORT]   starts it, prints its URLs (comma between them), returns when it answers
#   scripts/redis.sh down DIR                           ends what `up DIR` started
#   scripts/redis.sh urls DIR                           prints the URLs of what runs, or fails
#
# DIR holds a pid file, a log and the port of each server. Without --port ports are random and free. --cluster: three
# masters that share the slots. `up` of what is up prints its URLs again.
set -eu

# As in Debian 12, and in compose.yaml. Older than 7.0 is refused, newer is fine.
REDIS_VERSION=7.0.15
# Lines that compose.yaml's server has too.
SETTINGS='--save "" --appendonly no'
ANSWER_TRIES=100 # of 0.1 s

say() { echo "redis.sh: $*" >&2; }

usage() {
  sed -n 's/^# \{0,1\}//; 2,9p' "$0" >&2
  exit 2
}

need() {
  command -v redis-server >/dev/null && command -v redis-cli >/dev/null || {
    say "redis-server and redis-cli are not installed: apt-get install redis-server (Debian, Ubuntu), brew install redis (macOS); $REDIS_VERSION or newer"
    exit 3
  }
  major=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
  [ "${major:-0}" -ge 7 ] || {
    say "redis-server is $(redis-server --version), wanted $REDIS_VERSION or newer"
    exit 3
  }
}

cli() { redis-cli -h 127.0.0.1 -p "$@"; }

# A port that nobody listens on; with a cluster port+10000 is the servers' own bus.
random_port() {
  awk -v seed="$(od -An -N4 -tu4 /dev/urandom)" 'BEGIN { srand(seed); print 20000 + int(rand() * 12000) }'
}

# Whether the process of a pid file is alive and a Redis server.
runs() {
  [ -s "$1" ] && pid=$(cat "$1") && kill -0 "$pid" 2>/dev/null && ps -p "$pid" -o comm= | grep -q '^redis-server'
}

# start DIR/n [settings...]: one server, on $port or on a random one. Another took the port in between: once more.
start() {
  home=$1
  shift
  mkdir -p "$home"
  tries=0
  while :; do
    at=${port:-$(random_port)}
    # shellcheck disable=SC2086 # SETTINGS is several words
    eval redis-server --bind 127.0.0.1 --port "$at" --dir "'$home'" --pidfile "'$home/pid'" --logfile "'$home/log'" \
      --daemonize yes $SETTINGS '"$@"' >/dev/null
    waited=0
    while [ "$waited" -lt $ANSWER_TRIES ]; do
      # Another's server on the port would answer too: it must be the process of the pid file.
      answer=$(cli "$at" info server 2>/dev/null | tr -d '\r' | sed -n 's/^process_id://p') || true
      if [ -n "$answer" ] && runs "$home/pid" && [ "$answer" = "$(cat "$home/pid")" ]; then
        echo "$at" >"$home/port"
        return 0
      fi
      if grep -qs 'Could not create server\|Failed listening\|Failed to set up' "$home/log"; then break; fi
      sleep 0.1
      waited=$((waited + 1))
    done
    tries=$((tries + 1))
    if [ -n "${port:-}" ] || [ $tries -ge 5 ]; then
      say "no Redis on port $at: $(tail -n 2 "$home/log" | tr '\n' ' ')"
      exit 1
    fi
    rm -f "$home/log"
  done
}

urls() {
  list=
  for home in "$1"/*/; do
    runs "$home/pid" || return 1
    list="$list${list:+,}redis://127.0.0.1:$(cat "$home/port")"
  done
  [ -n "$list" ] && echo "$list"
}

up() {
  need
  if urls "$1" 2>/dev/null; then return 0; fi
  down "$1"
  if [ -z "$cluster" ]; then
    start "$1/1"
    urls "$1"
    return
  fi
  nodes=
  for n in 1 2 3; do
    start "$1/$n" --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 2000 \
      --cluster-require-full-coverage no
    nodes="$nodes 127.0.0.1:$(cat "$1/$n/port")"
  done
  # shellcheck disable=SC2086 # one word a node
  redis-cli --cluster create $nodes --cluster-replicas 0 --cluster-yes >"$1/create.log" || {
    say "no cluster: $(tail -n 3 "$1/create.log" | tr '\n' ' ')"
    exit 1
  }
  # Made, as one node says, is not known to all of them yet.
  for n in 1 2 3; do
    waited=0
    until cli "$(cat "$1/$n/port")" cluster info | tr -d '\r' | grep -q '^cluster_state:ok'; do
      waited=$((waited + 1))
      [ $waited -lt $ANSWER_TRIES ] || { say "node $n of the cluster is not ok"; exit 1; }
      sleep 0.1
    done
  done
  urls "$1"
}

down() {
  for home in "$1"/*/; do
    if runs "$home/pid"; then
      pid=$(cat "$home/pid")
      kill "$pid"
      waited=0
      while kill -0 "$pid" 2>/dev/null; do
        waited=$((waited + 1))
        if [ $waited -ge $ANSWER_TRIES ]; then kill -9 "$pid"; break; fi
        sleep 0.1
      done
    fi
    rm -f "$home/pid" "$home/port" "$home/log" "$home/nodes.conf"
  done
}

[ $# -ge 2 ] || usage
command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
shift 2
cluster=
port=
while [ $# -gt 0 ]; do
  case $1 in
    --cluster) cluster=yes ;;
    --port) shift; port=${1:-} ;;
    *) usage ;;
  esac
  shift
done
[ -z "$cluster" ] || [ -z "$port" ] || usage
case $command in
  up) up "$dir" ;;
  down) down "$dir" ;;
  urls) urls "$dir" ;;
  *) usage ;;
esac
