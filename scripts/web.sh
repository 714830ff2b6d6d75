#!/bin/sh
# The page and the client library (web/): see usage.
set -eu
cd "$(dirname "$0")/../web"

usage() {
    echo "usage: scripts/web.sh install | build | check | test
  install  the tools in the versions of package-lock.json (node and npm are needed; a directory that has them is kept)
  build    makes web/dist, which is committed and embedded in the binary
  check    types, and that web/dist is what the sources make
  test     the client library's and the page's tests that need no browser" >&2
    exit 2
}

install() {
    # Tests of several processes may want it at once.
    exec 9>.install.lock
    flock 9
    # npm writes node_modules/.package-lock.json last: newer than ours, the tools are those.
    if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then
        npm ci --no-progress >&2
        touch node_modules/.package-lock.json
    fi
    exec 9>&-
}

case "${1:-}" in
install) install ;;
build)
    install
    node build.mjs page
    ;;
check)
    install
    npm run --silent check
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    node build.mjs page "$fresh"
    if ! diff -r dist "$fresh" >/dev/null; then
        echo "web/dist is not what the sources make: run scripts/web.sh build and commit it" >&2
        exit 1
    fi
    ;;
test)
    install
    npm run --silent test
    ;;
*) usage ;;
esac
