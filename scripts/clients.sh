#!/usr/bin/env bash
# Runs other people's WebSocket client libraries against `barrage run` and prints what each offered of permessage-deflate,
# what it was answered, and whether it worked: it connects as a guest, subscribes, publishes four messages and gets them
# back. Bilibili live clients must tell a comment and the popularity. Fails where one does not. docs/clients.md has the
# tables of the last run.
#
#   scripts/clients.sh [LIBRARY...]    only these
#
# BARRAGE=...   a binary to take instead of building one
#
# Libraries are installed in pinned versions into a temporary folder. A language that is not here is told as skipped; with
# CI=true that fails. It takes some minutes, most of them for downloads.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in python3 node npm go mvn java; do
    command -v "$tool" >/dev/null || echo "clients: $tool is not here: its libraries are skipped" >&2
done
if [ -z "${BARRAGE:-}" ]; then
    cargo build --quiet -p barrage
    BARRAGE=$PWD/target/debug/barrage
fi
work=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
here=$PWD/scripts/clients

# install NAME COMMAND...: a language's libraries; those of one that cannot be had are skipped.
skipped=""
install() {
    local name=$1
    shift
    if ! ("$@") >"$work/$name.log" 2>&1; then
        tail -3 "$work/$name.log" >&2
        skipped+=" $name"
    fi
}
python() {
    python3 -m venv "$work/python"
    "$work/python/bin/pip" install --quiet -r "$here/requirements.txt"
}
node_() {
    cp "$here/package.json" "$here"/*.mjs "$work/"
    cd "$work" && npm install --no-audit --no-fund --silent
}
go_() {
    cp -r "$here/go" "$work/go"
    cd "$work/go" && go mod tidy && go build -o client .
}
java_() {
    cp -r "$here/java" "$work/java"
    cd "$work/java" && mvn -q -B package dependency:copy-dependencies
}
install python python
install node node_
install go go_
install java java_

mkdir "$work/server"
(cd "$work/server" && exec "$BARRAGE" run --set 'connector.listen=["127.0.0.1:0"]' --set 'connector.grpc="127.0.0.1:0"' \
    --set 'logic.http="127.0.0.1:0"' --set 'logic.grpc="127.0.0.1:0"' --set 'admin.listen="127.0.0.1:0"') \
    >"$work/server/out" 2>"$work/server/log" &
server=$!
for _ in $(seq 300); do
    grep -q '^ready' "$work/server/out" && break
    sleep 0.1
done
port=$(sed -n 's/^ *clients .*:\([0-9]*\).*/\1/p' "$work/server/out")
http=$(sed -n 's/^ *page .*:\([0-9]*\).*/\1/p' "$work/server/out")
result=0
python3 "$here/run.py" "$work" "$port" "$http" "$@" || result=$?
if [ -n "$skipped" ]; then
    echo "clients: skipped:$skipped" >&2
    [ "${CI:-}" != true ] || result=1
fi
exit "$result"
