#!/usr/bin/env bash
# All tests of the project, as `make test` and CI run them. With CI=true a test that cannot have its service fails.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in cargo cc make git; do
    command -v "$tool" >/dev/null || { echo "test: install $tool first"; exit 1; }
done
# What tests can use but do without: named once, here, so that nobody hunts for a skipped test's reason.
while read -r tool use; do
    command -v "$tool" >/dev/null || echo "test: no $tool: $use is skipped (scripts/install.sh installs it on Debian)"
done <<'TOOLS'
redis-server Redis
java Kafka
mvn Kafka
node the page and the Bilibili client
chromium the page in a browser
TOOLS
if command -v npm >/dev/null; then
    scripts/web.sh test
fi
cargo test --workspace --locked --no-fail-fast
# The driver behind a feature; glommio needs io_uring and half a MiB of locked memory, else it says so and fails.
cargo test --package connector --features glommio --test driver --locked
if command -v npm >/dev/null; then
    # Our WebSocket beside another implementation, in another language, on random byte streams.
    node scripts/websocket-differential.mjs
fi
