#!/bin/bash
# hostile.sh QWEN-EP TOOL [--seed S] [--cases N] [--case N] [--jobs J]: seeded damage to shard directories (their hashes
# made right again), checkpoints, requests, option files and recipes. Each case is one input and what the program makes of
# it: the right answer, or one line and the right exit code, within 10 s and 2 GB, nothing left behind.
# --case N runs that one alone, leaves its input in a directory and prints the command.
set -u
exe=$(readlink -f "$1") tool=$(readlink -f "$2")
shift 2
seed=1 cases=500 only='' jobs=2
while [ $# -gt 0 ]; do
    case $1 in
    --seed) seed=$2 ;;
    --cases) cases=$2 ;;
    --case) only=$2 ;;
    --jobs) jobs=$2 ;;
    *)
        echo "usage: hostile.sh QWEN-EP TOOL [--seed S] [--cases N] [--case N] [--jobs J]" >&2
        exit 64
        ;;
    esac
    shift 2
done

work=$(mktemp -d) || exit 1
[ -n "$only" ] || trap 'rm -rf "$work"' EXIT
base=$work/base
mkdir "$base"
cp -r tests/data/tiny-chat "$base/hf"
cp -r tests/data/golden/dense-untied "$base/index"
cp configs/q4.json "$base/recipe.json"
rm -f "$base"/hf/{grid.jsonl,reference.safetensors.zst} "$base/index/goldens.safetensors.zst"
chmod -R u+w "$base"
# the index's usual name for its files, so that cases read as checkpoints do
for recipe in q4 bf16; do
    "$exe" convert --from "$base/hf" --to "$base/$recipe" --recipe $recipe --shards 2 --jobs 1 2>"$work/err" ||
        { cat "$work/err" && exit 1; }
done

options=(--exe "$exe" --base "$base" --seed "$seed")
if grep -q __asan_init "$exe"; then
    options+=(--sanitized)
    export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}hard_rss_limit_mb=2048:allocator_may_return_null=1
fi
if [ -n "$only" ]; then
    mkdir "$work/kept"
    exec "$tool" "${options[@]}" --work "$work/kept" --from "$only" --to $((only + 1)) --keep
fi

before=$(find "$base" -printf '%p %s %i %T@\n' | sort)
workers=()
for ((w = 0; w < jobs; w++)); do
    mkdir "$work/$w"
    "$tool" "${options[@]}" --work "$work/$w" --from "$w" --to "$cases" --step "$jobs" >"$work/log-$w" 2>&1 &
    workers+=($!)
done
failed=0
for ((w = 0; w < jobs; w++)); do
    wait "${workers[w]}" || failed=1
done
cat "$work"/log-*
[ "$before" = "$(find "$base" -printf '%p %s %i %T@\n' | sort)" ] || { failed=1 && echo "FAILED: the base was written to"; }
echo "hostile: seed $seed, $cases cases: $([ $failed = 0 ] && echo passed || echo FAILED)"
exit $failed
