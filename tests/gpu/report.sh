#!/bin/bash
# report.sh [--check] RESULTS: what tests/gpu_suite.sh measured, as the tables of
# docs/performance.md. --check: only the figures that cannot be, a line "FAILED: ..." each; exit 1
# if there are some.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
check=0
if [ "${1:-}" = --check ]; then check=1 && shift; fi
[ $# -eq 1 ] && [ -d "$1" ] || { echo "usage: report.sh [--check] RESULTS" >&2 && exit 64; }
cd - >/dev/null && res=$1 tables=$OLDPWD/report.awk

# In this order: what later tables refer to comes first.
files=()
for name in card commit model.txt peaks.json model.jsonl depth.jsonl graphs-on.jsonl graphs-off.jsonl decode.launches \
    decode-ncu.csv prefill.launches prefill-ncu.csv files.jsonl; do
    [ ! -s "$res/$name" ] || files+=("$res/$name")
done
awk -v check=$check -f "$tables" "${files[@]}" /dev/null
rc=$?
[ $check = 0 ] || exit $rc
for part in small delta matmul experts attention; do
    [ -s "$res/ops-$part.md" ] || continue
    printf '\n## Ops: %s\n\n' $part
    cat "$res/ops-$part.md"
done
exit 0
