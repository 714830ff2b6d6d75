#!/usr/bin/env bash
# Runs the Autobahn|Testsuite against the echo example; fails if a case does: scripts/autobahn.sh [CASES...]. By default
# all of them, those of compression (12.* and 13.*) included, which take most of the time: the suite inflates, too. It is
# PyPI's `autobahntestsuite`, which runs on Python 2.7 only: PYTHON27 names one where it is not on the path.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON27:-$(command -v python2.7 || true)}
if [ -z "$python" ]; then
    echo "autobahn: skipped: no Python 2.7 (PYTHON27=/path/to/python2.7 names one)"
    [ "${CI:-}" != true ] || exit 1
    exit 0
fi
cache=.cache/autobahn
mkdir -p "$cache"
if [ ! -e "$cache/site/autobahntestsuite" ]; then
    "$python" -m pip install --quiet --target "$cache/site" 'autobahntestsuite==25.10.1'
    # --target leaves out the file that makes this namespace a package.
    touch "$cache/site/zope/__init__.py"
fi

cargo build --release -p connector --example echo
port=${PORT:-9001}
"${CARGO_TARGET_DIR:-target}/release/examples/echo" --listen "127.0.0.1:$port" &
echo_pid=$!
trap 'kill "$echo_pid" 2>/dev/null || true' EXIT
[ $# -gt 0 ] || set -- '*'
cases=$(printf '"%s", ' "$@")
cat >"$cache/spec.json" <<JSON
{"outdir": "$cache/report", "servers": [{"agent": "barrage", "url": "ws://127.0.0.1:$port"}],
 "cases": [${cases%, }], "exclude-cases": [], "exclude-agent-cases": {}}
JSON
PYTHONPATH="$cache/site" timeout 7200 "$python" -c "
import sys
sys.argv = ['wstest', '-m', 'fuzzingclient', '-s', '$cache/spec.json']
from autobahntestsuite.wstest import run
run()" >"$cache/log" 2>&1
PYTHONPATH="$cache/site" "$python" - "$cache/report/index.json" "$*" <<'PYTHON'
import json, sys
cases = json.load(open(sys.argv[1]))["barrage"]
good = ("OK", "INFORMATIONAL")
bad = [name for name, case in cases.items() if case["behavior"] not in good or case["behaviorClose"] not in good]
print("autobahn: %d cases, %d failed or not strict %s" % (len(cases), len(bad), sorted(bad)))
sys.exit(1 if bad or len(cases) < (500 if sys.argv[2] == "*" else 1) else 0)
PYTHON
