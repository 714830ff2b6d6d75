#!/usr/bin/env bash
# Apache Kafka (KRaft) on loopback for development and tests, from its Maven artifacts: no Docker, nothing installed.
#
#   scripts/kafka.sh up DIR [BROKERS]   starts what is not running (1 broker; 3 for replication), waits until it serves,
#                                       prints host:port,...; everything is kept in DIR, also over down and up
#   scripts/kafka.sh down DIR           ends it
#   scripts/kafka.sh kill DIR N         kill -9 of broker N (from 1)
#   scripts/kafka.sh stop DIR N         broker N stands still (SIGSTOP), until
#   scripts/kafka.sh go DIR N           it goes on (SIGCONT)
#
# KAFKA_PORT=9092   the first broker's port, the others' follow; else free ones are found
# KAFKA_WITH=PID    ends it, and removes DIR, when that process is gone, however it ends
#
# Needs Java 17 or later, and Maven the first time (Debian: apt-get install openjdk-17-jre-headless maven).
set -euo pipefail

version=4.3.1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/barrage/kafka-$version"

die() {
    echo "kafka.sh: $*" >&2
    exit 1
}

fetch() {
    [ -d "$cache" ] && return
    command -v java >/dev/null || die "no java: apt-get install openjdk-17-jre-headless maven"
    command -v mvn >/dev/null || die "no mvn: apt-get install maven"
    mkdir -p "${cache%/*}"
    # Several tests may begin at once: one fetches.
    exec 9>"$cache.lock"
    flock 9
    if [ ! -d "$cache" ]; then
        local new
        new=$(mktemp -d "$cache.XXXXXX")
        # kafka-tools alone: what it depends on is Connect and Jetty.
        cat >"$new/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>barrage</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$version</version>
<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.4</version></dependency>
</dependencies></project>
POM
        mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies -DoutputDirectory="$new/jars" >&2 ||
            die "Maven could not fetch Kafka $version"
        cat >"$new/jars/log4j2.xml" <<XML
<Configuration status="warn"><Appenders><Console name="out"><PatternLayout pattern="%d %p %m (%c)%n"/></Console></Appenders>
<Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers></Configuration>
XML
        mv "$new/jars" "$cache"
        rm -r "$new"
    fi
    exec 9>&-
}

# JVM options that were measured to be enough: 210 MiB resident a broker.
java=(java -Xms64m -Xmx384m -XX:+UseSerialGC -XX:MaxDirectMemorySize=128m -XX:+ExitOnOutOfMemoryError
    -XX:TieredStopAtLevel=1 -cp "$cache:$cache/*")

# A port that nobody listens on, below those that the kernel hands out and those of redis.sh. A broker binds it only seconds
# later, and several tests may begin at once: each gets the next one in turn.
free_port() {
    local port
    exec 8>>"$cache.port"
    flock 8
    port=$(cat "$cache.port")
    while :; do
        port=$((20000 + (${port:-20000} - 19999) % 8000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port" | tee "$cache.port"
}

# Whether broker directory $1 has a live process; its number may have gone to another one.
running() {
    local pid
    pid=$(cat "$1/pid" 2>/dev/null) && grep -qzF "$1/server.properties" "/proc/$pid/cmdline" 2>/dev/null
}

configure() {
    local dir=$1 brokers=$2 n voters="" copies=$((brokers < 3 ? brokers : 3))
    local -a ports controllers
    for ((n = 1; n <= brokers; n++)); do
        ports[n]=${KAFKA_PORT:+$((KAFKA_PORT + n - 1))}
        ports[n]=${ports[n]:-$(free_port)}
        controllers[n]=$(free_port)
        voters+="${voters:+,}$n@127.0.0.1:${controllers[n]}"
    done
    for ((n = 1; n <= brokers; n++)); do
        mkdir -p "$dir/$n"
        # Session timeouts as small as tests need; a restart after kill -9 waits for the broker's old registration.
        cat >"$dir/$n/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:${ports[n]},CONTROLLER://127.0.0.1:${controllers[n]}
advertised.listeners=PLAINTEXT://127.0.0.1:${ports[n]}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/$n/data
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=$copies
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=1
log.cleaner.dedupe.buffer.size=8388608
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
PROPERTIES
    done
    local id
    id=$("${java[@]}" kafka.tools.StorageTool random-uuid 2>/dev/null | tail -1)
    for ((n = 1; n <= brokers; n++)); do
        "${java[@]}" kafka.tools.StorageTool format -t "$id" -c "$dir/$n/server.properties" >"$dir/$n/format.out" 2>&1 ||
            die "formatting failed: $(tail -3 "$dir/$n/format.out")"
    done
}

up() {
    local dir=$1 brokers=${2:-1} n broker until bootstrap=""
    fetch
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    [ -d "$dir/1" ] || configure "$dir" "$brokers"
    if [ -n "${KAFKA_WITH:-}" ]; then
        (
            exec >/dev/null 2>&1 </dev/null
            while kill -0 "$KAFKA_WITH"; do sleep 0.5; done
            down "$dir"
            rm -rf "$dir"
        ) &
    fi
    for broker in "$dir"/[0-9]*; do
        bootstrap+="${bootstrap:+,}$(sed -n 's/^advertised.listeners=PLAINTEXT:..//p' "$broker/server.properties")"
        running "$broker" && continue
        : >"$broker/out"
        nohup "${java[@]}" kafka.Kafka "$broker/server.properties" >>"$broker/out" 2>&1 </dev/null &
        echo $! >"$broker/pid"
    done
    until=$((SECONDS + ${KAFKA_TIMEOUT_S:-90}))
    for broker in "$dir"/[0-9]*; do
        until grep -q "Kafka Server started" "$broker/out"; do
            [ -d "/proc/$(cat "$broker/pid")" ] || die "a broker ended: $(tail -5 "$broker/out")"
            [ "$SECONDS" -lt "$until" ] || die "a broker did not start: $(tail -5 "$broker/out")"
            sleep 0.1
        done
    done
    # A started server may still be fenced: ask for the live brokers.
    brokers=$(ls -d "$dir"/[0-9]* | wc -l)
    until [ "$("${java[@]}" org.apache.kafka.tools.ClusterTool list-endpoints --bootstrap-server "$bootstrap" 2>/dev/null |
        grep -c 127.0.0.1)" -ge "$brokers" ]; do
        [ "$SECONDS" -lt "$until" ] || die "not all brokers serve"
        sleep 0.2
    done
    echo "$bootstrap"
}

down() {
    local dir=$1 broker n
    for broker in "$dir"/[0-9]*; do
        running "$broker" && kill "$(cat "$broker/pid")" && kill -CONT "$(cat "$broker/pid")" 2>/dev/null || true
    done
    for broker in "$dir"/[0-9]*; do
        for ((n = 0; n < 100; n++)); do
            running "$broker" || break
            sleep 0.1
        done
        running "$broker" && kill -9 "$(cat "$broker/pid")" 2>/dev/null || true
    done
}

case "${1:-}" in
up) up "${2:?DIR}" "${3:-1}" ;;
down) down "$(cd "${2:?DIR}" && pwd)" ;;
kill | stop | go)
    broker="$(cd "${2:?DIR}" && pwd)/${3:?N}"
    case "$1" in kill) signal=KILL ;; stop) signal=STOP ;; go) signal=CONT ;; esac
    running "$broker" && kill -"$signal" "$(cat "$broker/pid")"
    ;;
*) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
