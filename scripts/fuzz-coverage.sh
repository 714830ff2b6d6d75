#!/usr/bin/env bash
# What the corpora of scripts/fuzz.sh reach: lines of each codec, as its own target runs them. Wants the component
# llvm-tools of rustup. scripts/fuzz-coverage.sh [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(dirname "$(find "$(rustc --print sysroot)" -name llvm-cov -type f | head -1)")
host=$(rustc -vV | sed -n 's/^host: //p')
if [ $# -eq 0 ]; then
    set -- $(cargo fuzz list)
fi
for target in "$@"; do
    sources=("proto/src/$target.rs")
    [ "$target" != sniff ] || sources+=(proto/src/proxy.rs)
    nice -n 19 cargo fuzz coverage -s none "$target" >/dev/null 2>&1
    binary=$(find fuzz/target "target/$host/coverage" -path "*$host/coverage/$host/release/$target" -type f 2>/dev/null | head -1)
    for source in "${sources[@]}"; do
        "$tools/llvm-cov" export -summary-only -instr-profile="fuzz/coverage/$target/coverage.profdata" "$binary" "$source" |
            grep -oE '"lines":\{"count":[0-9]+,"covered":[0-9]+,"percent":[0-9.]+' | head -1 |
            sed -E "s|.*count\":([0-9]+),\"covered\":([0-9]+),\"percent\":([0-9.]+)|$source: \2 of \1 lines, \3%|"
    done
done
