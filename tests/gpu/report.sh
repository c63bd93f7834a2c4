#!/bin/bash
# report.sh [--check STEP] RESULTS: what tests/gpu_suite.sh measured, as the tables of
# docs/performance.md. --check: only the figures of STEP that cannot be, a line "FAILED: ..." each;
# exit 1 if there are some.
set -uo pipefail
tables=$(dirname "${BASH_SOURCE[0]}")/report.awk check=
if [ "${1:-}" = --check ]; then check=${2:-} && shift 2; fi
[ $# -eq 1 ] && [ -d "$1" ] || { echo "usage: report.sh [--check STEP] RESULTS" >&2 && exit 64; }
res=$1

# In this order: what later tables refer to comes first.
files=()
for name in card commit model.txt peaks.json model.jsonl depth.jsonl graphs-on.jsonl graphs-off.jsonl decode.layers decode.launches \
    decode-ncu.csv prefill.layers prefill.launches prefill-ncu.csv files.jsonl; do
    [ ! -s "$res/$name" ] || files+=("$res/$name")
done
awk -v check="$check" -f "$tables" "${files[@]}" /dev/null
rc=$?
[ -z "$check" ] || exit $rc
for part in small delta matmul experts attention; do
    [ -s "$res/ops-$part.md" ] || continue
    printf '\n## Ops: %s\n\n' $part
    cat "$res/ops-$part.md"
done
exit 0
