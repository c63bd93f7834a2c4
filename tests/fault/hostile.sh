#!/bin/bash
# Seeded damage to all that the program reads: shard directories (their hashes made right again), checkpoints, requests,
# option files, recipes. A case is one input and what the program makes of it: the right answer, or one line and the right
# exit code, within 10 s of work and 2 GB, and nothing left behind. What failed is said with seed and number; --case N runs that
# one alone, leaves its input in a directory and prints the command.
# usage: hostile.sh path/to/qwen-ep path/to/hostile_tool [--seed S] [--cases N] [--case N] [--jobs J] [--area NAME]
set -u
self=$(readlink -f "$0") exe=$(readlink -f "$1") tool=$(readlink -f "$2")
shift 2
seed=1 cases=500 only='' jobs=2 work='' area=''
while [ $# -gt 0 ]; do
    case $1 in
    --seed) seed=$2 ;;
    --cases) cases=$2 ;;
    --case) only=$2 ;;
    --jobs) jobs=$2 ;;
    --area) area=$2 ;; # those of the cases that are of this kind
    --inside) work=$2 ;; # our own call, see below
    *)
        echo "usage: hostile.sh QWEN-EP TOOL [--seed S] [--cases N] [--case N] [--jobs J] [--area NAME]" >&2
        exit 64
        ;;
    esac
    shift 2
done

# Faults that are known and not mended: extended regular expressions for the lines that report them.
known=()

make_base() { # DIR
    local recipe model
    mkdir "$1" || return 1
    cp -r tests/data/tiny-chat "$1/hf"
    for model in index:dense-untied tied:dense-tied packed:next-packed experts:moe-all; do
        cp -r "tests/data/golden/${model#*:}" "$1/${model%:*}"
        rm -f "$1/${model%:*}/goldens.safetensors.zst"
    done
    cp configs/q4.json "$1/recipe.json"
    mkdir "$1/templates"
    for model in Qwen3.5-35B-A3B Qwen3.5-0.8B Qwen3.6; do
        cp tests/data/hf/$model/chat_template.jinja "$1/templates/$model"
    done
    rm -f "$1"/hf/{grid.jsonl,reference.safetensors.zst}
    chmod -R u+w "$1"
    for recipe in q4 bf16; do
        "$exe" convert --from "$1/hf" --to "$1/$recipe" --recipe $recipe --shards 2 --jobs 1 2>"$1/err" ||
            { cat "$1/err" && return 1; }
    done
    (ulimit -f 100 && exec "$exe" convert --from "$1/hf" --to "$1/partial" --recipe q4 --shards 2 --jobs 1 2>"$1/err")
    [ $? = 74 ] || { cat "$1/err" && return 1; }
}

list_base() { find "$work/base" -printf '%p %s %i %T@\n' | sort; }

# Where namespaces are to be had, /tmp, /dev/shm and shared memory are the cases' own, and empty at the end.
enter() {
    exec 9<"$work" && mount --bind "$work/tmp" /tmp && mkdir -p "$work" && mount -c --bind /proc/self/fd/9 "$work" &&
        mount -t tmpfs none /dev/shm && touch "$work/inside"
}
watch_left() {
    local left
    left=$(find /tmp /dev/shm -path "$work" -prune -o -type f -print && tail -n +2 /proc/sysvipc/{shm,sem,msg} | grep '^ *[0-9]')
    [ ! -e "$work/inside" ] || [ -z "$left" ] || { echo "FAILED: left outside: $left" && return 1; }
}

run_all() {
    local w before workers=() failed=0
    before=$(list_base)
    for ((w = 0; w < jobs; w++)); do
        mkdir "$work/$w"
        "$tool" "${options[@]}" --work "$work/$w" --from "$w" --to "$cases" --step "$jobs" >"$work/log-$w" 2>&1 &
        workers+=($!)
    done
    for ((w = 0; w < jobs; w++)); do
        wait "${workers[w]}" || failed=1
    done
    cat "$work"/log-*
    [ "$before" = "$(list_base)" ] || { failed=1 && echo "FAILED: the base was written to"; }
    watch_left || failed=1
    [ -e "$work/inside" ] || echo "no namespaces here: /tmp and shared memory not watched"
    echo "hostile: seed $seed, $cases cases: $([ $failed = 0 ] && echo passed || echo FAILED)"
    return $failed
}

if [ -z "$work" ]; then
    work=$(mktemp -d) && make_base "$work/base" && mkdir "$work/tmp" && cp "$exe" "$tool" "$work" || exit 1
    enclosed=()
    [ -n "$only" ] || trap 'rm -rf "$work"' EXIT
    [ -n "$only" ] || ! unshare --mount --ipc true 2>/dev/null || enclosed=(unshare --mount --ipc)
    "${enclosed[@]}" "$self" "$work/${exe##*/}" "$work/${tool##*/}" --seed "$seed" --cases "$cases" --jobs "$jobs" \
        --case "$only" --area "$area" --inside "$work"
    exit
fi
options=(--exe "$exe" --base "$work/base" --seed "$seed")
for pattern in "${known[@]}"; do
    options+=(--known "$pattern")
done
[ -z "$area" ] || options+=(--area "$area")
if grep -q __asan_init "$exe"; then
    options+=(--sanitized)
    export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}hard_rss_limit_mb=2048:allocator_may_return_null=1
fi
if [ -n "$only" ]; then
    mkdir "$work/kept"
    exec "$tool" "${options[@]}" --work "$work/kept" --from "$only" --to $((only + 1)) --keep
fi
[ "$(readlink /proc/self/ns/mnt)" = "$(readlink /proc/$PPID/ns/mnt)" ] || enter
run_all
