#!/usr/bin/env bash
# Everything that is checked without running: format, lints, documentation, dependencies, the page's bundle.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all -- --check
cargo clippy --workspace --all-targets --locked -- -D warnings
# What stands behind a feature; all else is checked already.
cargo clippy --package connector --features glommio --all-targets --locked -- -D warnings
RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked --quiet
command -v cargo-deny >/dev/null || cargo install --locked --debug --quiet cargo-deny
cargo deny --log-level error check bans licenses sources
scripts/web.sh check
