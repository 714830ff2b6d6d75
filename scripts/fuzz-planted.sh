#!/usr/bin/env bash
# Shows that the fuzz targets find bugs: plants each (`planted!` in proto/src) and wants it found within a minute, from
# an empty corpus. scripts/fuzz-planted.sh [BUG...]
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
if [ $# -eq 0 ]; then
    set -- $(grep -rhoE 'planted!\("[a-z0-9_]+"\)' proto/src | cut -d '"' -f 2 | sort)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for bug in "$@"; do
    # The target is the bug's first word.
    target=${bug%%_*}
    mkdir "$work/$bug"
    start=$(date +%s%N)
    if BARRAGE_PLANTED=$bug nice -n 19 cargo fuzz run -s none "$target" "$work/$bug" -- -max_total_time=60 \
        -timeout=10 -max_len=2048 -artifact_prefix="$work/" >"$work/log" 2>&1; then
        failed=1
        echo "$bug: NOT FOUND: $(grep -o 'Done .*' "$work/log")"
    elif grep -q "panicked at" "$work/log"; then
        runs=$(grep -oE '^#[0-9]+' "$work/log" | tail -1)
        echo "$bug: found in $((($(date +%s%N) - start) / 1000000)) ms, after about ${runs:-#0} runs"
    else
        failed=1
        echo "$bug: FAILED to run"
        tail -20 "$work/log"
    fi
done
exit $failed
