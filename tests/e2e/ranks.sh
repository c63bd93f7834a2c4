#!/bin/bash
# --logits files are byte-identical for every number of ranks and transport, through the real command line.
# usage: ranks.sh path/to/qwen-ep [--full]
set -u
exe=$1
full=${2:-}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
ids=$(seq -s, 1 3 330) # 110 tokens
have_mpi=0
command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi && have_mpi=1

run() { # label, launcher words ... -- options
    local label=$1 launcher=()
    shift
    while [ "$1" != -- ]; do
        launcher+=("$1")
        shift
    done
    shift
    if ! timeout 300 "${launcher[@]}" "$exe" run --quiet --greedy --prompt-tokens "$ids" --max-new-tokens 4 --ignore-eos \
        --logits "$work/logits" --json "$@" >"$work/out" 2>"$work/err"; then
        failed=$((failed + 1))
        echo "FAILED: $label: $(head -1 "$work/err")"
        return
    fi
    if [ ! -e "$work/base" ]; then
        mv "$work/logits" "$work/base"
    elif cmp -s "$work/base" "$work/logits"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $label: logits differ from one rank's"
    fi
}

recipes="q4 bf16"
[ "$full" = --full ] && recipes="bf16 q8 q4 q4-all"
for recipe in $recipes; do
    for shards in 1 8 16; do
        "$exe" convert --from tests/data/tiny-chat --to "$work/$recipe-$shards" --recipe "$recipe" --shards $shards 2>/dev/null ||
            { echo "FAILED: convert $recipe"; exit 1; }
    done
    for backend in cpu reference; do
        rm -f "$work/base"
        run "$recipe $backend one rank" -- --model "$work/$recipe-8" --backend $backend --threads 1
        run "$recipe $backend 2 threads" -- --model "$work/$recipe-8" --backend $backend --threads 2
        for shards in 1 16; do
            run "$recipe $backend S=$shards" -- --model "$work/$recipe-$shards" --backend $backend --prefill-chunk 64
        done
        for ranks in 2 3 8; do
            for attention in layers sequences; do
                run "$recipe $backend threads $ranks $attention" -- --model "$work/$recipe-8" --backend $backend \
                    --transport threads --ranks $ranks --attention $attention --threads 1
            done
        done
        [ $have_mpi = 1 ] || continue
        for np in 1 2 3 4 8; do
            attention=layers
            [ $((np % 2)) = 0 ] && attention=sequences
            run "$recipe $backend mpirun $np" mpirun --quiet -np $np --oversubscribe --bind-to none -- \
                --model "$work/$recipe-8" --backend $backend --attention $attention
        done
    done
done
[ $have_mpi = 1 ] || echo "mpirun not used: built without MPI"
echo "ranks: $passed passed, $failed failed"
[ $failed = 0 ]
