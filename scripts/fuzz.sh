#!/usr/bin/env bash
# Fuzzes each codec for so many seconds: scripts/fuzz.sh [SECONDS] [TARGET...]. What it learnt stays in fuzz/corpus, and a
# failing input in fuzz/artifacts: give it a name and a test when it is mended.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
if [ $# -eq 0 ]; then
    set -- $(cargo fuzz list)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
for target in "$@"; do
    # No sanitizer: it wants a nightly compiler, and proto forbids unsafe code.
    if nice -n 19 cargo fuzz run -s none "$target" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -max_len=2048 >"$log" 2>&1; then
        echo "$target: $(grep -o 'Done .*' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -1), no failure"
    else
        failed=1
        echo "$target: FAILED"
        tail -60 "$log"
    fi
done
exit $failed
