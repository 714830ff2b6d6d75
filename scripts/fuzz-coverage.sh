#!/usr/bin/env bash
# What the corpora of scripts/fuzz.sh reach: lines of each codec that its own target runs. Only proto is built for it, and
# without libFuzzer (`cargo fuzz coverage` would build everything anew). Wants rustup's component llvm-tools.
# scripts/fuzz-coverage.sh [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(dirname "$(find "$(rustc --print sysroot)" -name llvm-cov | head -1)")
[ -x "$tools/llvm-cov" ] || { echo "fuzz-coverage: rustup component add llvm-tools"; exit 1; }
if [ $# -eq 0 ]; then
    set -- $(sed -n 's/^name = "\([a-z]*\)"$/\1/p' fuzz/Cargo.toml | grep -v '^fuzz$')
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# At a fixed path, since Cargo builds anew for another one.
wrapper=$PWD/target/fuzz-coverage/rustc
mkdir -p "$(dirname "$wrapper")"
printf '#!/bin/sh\nexec "$@" -Cinstrument-coverage\n' >"$wrapper"
chmod +x "$wrapper"
LLVM_PROFILE_FILE=/dev/null RUSTC_WORKSPACE_WRAPPER=$wrapper cargo build -q --locked -p proto --features fuzz --example replay
cp target/debug/examples/replay "$work/replay"
for target in "$@"; do
    LLVM_PROFILE_FILE="$work/$target.profraw" "$work/replay" "$target" "fuzz/corpus/$target" >"$work/log"
    "$tools/llvm-profdata" merge -sparse "$work/$target.profraw" -o "$work/$target.profdata"
    sources=("proto/src/$target.rs")
    [ "$target" != sniff ] || sources+=(proto/src/proxy.rs)
    for source in "${sources[@]}"; do
        "$tools/llvm-cov" export -summary-only -instr-profile="$work/$target.profdata" "$work/replay" "$source" |
            grep -oE '"lines":\{"count":[0-9]+,"covered":[0-9]+,"percent":[0-9.]+' | head -1 |
            sed -E "s|.*count\":([0-9]+),\"covered\":([0-9]+),\"percent\":([0-9]+).*|$source: \2 of \1 lines, \3%|"
    done
done
