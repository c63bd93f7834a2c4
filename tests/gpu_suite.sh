#!/bin/bash
# gpu_suite.sh [--emulator] [--deps DIR] [--budget S] [--build DIR] [--only STAGE,...] [OUT_DIR]
# Everything that needs a GPU, on a bare machine (nvcc, cmake, no network), within ten minutes. Each
# stage has a time limit of its own and leaves OUT_DIR/STAGE.json and STAGE.log; a failure stops
# nothing but what builds on it. The last lines are a table. --emulator: the same stages at tiny
# sizes without a GPU, to test this script. --deps: a directory of make_deps.sh --check.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export LC_ALL=C

mode=gpu deps='' budget=590 build='' only='' out=./gpu-suite-out stage=''
while [ $# -gt 0 ]; do
    case $1 in
    --emulator) mode=emulator ;;
    --deps) deps=$2 && shift ;;
    --budget) budget=$2 && shift ;;
    --build) build=$2 && shift ;;
    --only) only=$2 && shift ;;
    --stage) stage=$2 && shift ;; # internal: runs one stage in this process
    -*)
        sed -n '2,6s/^# //p' "$0" >&2
        exit 64
        ;;
    *) out=$1 ;;
    esac
    shift
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
build=${build:-build/gpu-suite-$mode}
jobs=$(nproc)
if [ "$mode" = gpu ]; then
    exe=$build/qwen-ep bench=$build/bench/bench_cuda test_suffix=_gpu
else
    exe=$build/tests/qwen-ep-emu bench=$build/tests/bench_cuda_emu test_suffix=
fi

# The table shows what a stage says last.
note() { echo "note: $*"; }

# ---- stages: 0 passed, 77 skipped, else failed ----

stage_device() {
    [ "$mode" = gpu ] || { note "the emulator" && return 0; }
    nvcc --version | tail -n 2
    nvidia-smi || return 1
    nvidia-smi -q -d CLOCK,POWER,MEMORY >"$out/nvidia-smi.txt"
    note "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)"
}

stage_build() {
    local options=(-DCMAKE_BUILD_TYPE=Release -DQEP_WERROR=ON -DQEP_TESTS=ON) targets arch
    [ -z "$deps" ] || options+=("-DQEP_DEPS=$(cd "$deps" && pwd)")
    if [ "$mode" = gpu ]; then
        arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
        [ "$arch" != 90 ] || arch=90a
        options+=(-DQEP_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$arch-real")
    else
        options+=(-DQEP_CUDA=OFF)
    fi
    cmake -S . -B "$build" "${options[@]}" || return 1
    mapfile -t targets < <(test_names | sed "s/\$/$test_suffix/")
    cmake --build "$build" --parallel "$jobs" -t "$(basename "$exe")" "$(basename "$bench")" \
        "${targets[@]}" || return 1
    note "$(du -k "$exe" | cut -f1) KB, ${#targets[@]} test programs"
}

test_names() { # test_cuda_matmul ...
    find tests/unit -name 'test_cuda_*.c' -printf '%f\n' | sed 's/\.c$//' | sort
}

# One process for all cases of a program: a context takes long to make.
run_test() { # NAME COMMAND...
    local name=$1 begin=$SECONDS rc
    shift
    QEP_TEST_NEEDS_DEVICE=1 CK_FORK=no timeout -k 5 100 "$@" >"$out/$name.log" 2>&1
    rc=$?
    echo "$name: exit $rc after $((SECONDS - begin)) s: $(grep '^[0-9]*%:' "$out/$name.log" | tail -n 1)"
    [ $rc -eq 0 ] || tail -n 15 "$out/$name.log" | sed 's/^/    | /'
    return $rc
}

stage_tests() {
    local name failed=0 count=0
    for name in $(test_names); do
        # The emulator's cases are a part of the unit tests: here one program is enough.
        [ "$mode" = gpu ] || [ "$name" = test_cuda_pool ] || continue
        [ -x "$build/tests/$name$test_suffix" ] || continue
        count=$((count + 1))
        run_test "$name" "$build/tests/$name$test_suffix" || failed=$((failed + 1))
    done
    note "$count programs, $failed failed"
    [ $count -gt 0 ] && [ $failed -eq 0 ]
}

# Logits of a run on the device; the arguments are further options.
logits() { # FILE OPTIONS...
    local file=$1
    shift
    timeout 60 "$exe" run --quiet --backend cuda --greedy --ignore-eos --model "$work/m" \
        --prompt-tokens "$ids" --max-new-tokens "$new" --logits "$file" "$@" >"$work/out" 2>"$work/err" && return
    echo "run $*: $(head -n 1 "$work/err")"
    return 1
}

stage_e2e() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    local failed=0 passed=0 skipped=0 recipe text prompt_rows=150 ranks option
    ids='' new=12
    [ "$mode" = gpu ] || { prompt_rows=70 new=3; }
    ids=$(seq -s, 1 3 $((3 * prompt_rows)))
    check() { # LABEL COMMAND...
        local label=$1
        shift
        if "$@"; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAILED: $label"
        fi
    }
    same() { logits "$work/other" "$@" && cmp "$work/base" "$work/other"; }
    for recipe in q4 bf16 q8; do
        [ "$mode" = gpu ] || [ $recipe = q4 ] || continue
        rm -rf "$work/m"
        "$exe" convert --from tests/data/tiny-chat --to "$work/m" --recipe $recipe 2>"$work/err" ||
            { cat "$work/err" && return 1; }
        text=$(timeout 60 "$exe" run --backend cuda --model "$work/m" --prompt "What is 15% of 80?" 2>"$work/err")
        check "$recipe: answer '$text' $(head -n 1 "$work/err")" [ "$text" = "15% of 80 is 12." ]
        check "$recipe: one rank" logits "$work/base"
        check "$recipe: again" same
        check "$recipe: chunks of 64" same --prefill-chunk 64
        for ranks in 2 4; do
            [ "$mode" = gpu ] || [ $ranks = 2 ] || continue
            for option in layers sequences; do
                check "$recipe: $ranks ranks, $option" same --transport threads --ranks $ranks --attention $option
            done
        done
        if "$exe" run --help | grep -q cuda-graphs; then
            check "$recipe: without graphs" same --cuda-graphs off
        else
            skipped=$((skipped + 1))
        fi
        if [ "$mode" = emulator ] || ldconfig -p | grep -q libnccl.so.2; then
            check "$recipe: NCCL, one rank" same --transport nccl
        else
            skipped=$((skipped + 1))
        fi
    done
    note "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
}

# Model speed without files, and loading from files.
stage_model() {
    local options=(--config configs/qwen3.5-35b-a3b.json -p "512,4096" -n 64 -b "1,8,32" -r 3) rc=0
    local dir=$out/synth synth=configs/synth-35b-4layers.json load=(-p 512 -n 16 -r 3)
    if [ "$mode" = emulator ]; then
        options=(--config configs/tiny-random.json -p 64 -n 2 -b "1,2" -r 1)
        synth=configs/tiny-random.json load=(-p 64 -n 1 -r 1)
    fi
    "$exe" bench --backend cuda --weights random "${options[@]}" --prefill-chunk 4096 -o json >"$out/model.jsonl" || rc=1
    cat "$out/model.jsonl"
    "$exe" synth --config "$synth" --recipe q4 --out "$dir" --force || rc=1
    "$exe" bench --backend cuda --model "$dir" "${load[@]}" -o json >"$out/load.jsonl" || rc=1
    cat "$out/load.jsonl"
    rm -rf "$dir"
    field() { sed -n "s/.*\"$2\": \([0-9.]*\).*/\1/p" "$out/$1" | tr '\n' ' '; }
    note "tok/s $(field model.jsonl tok_s); loading $(field load.jsonl load_gb_s | cut -d' ' -f1) GB/s"
    return $rc
}

stage_ops() {
    local options=(--json "$out/ops-bench.json") rc
    [ "$mode" = gpu ] || options+=(--tiny --repeats 2)
    "$bench" "${options[@]}" >"$out/ops-bench.md"
    rc=$?
    cat "$out/ops-bench.md"
    note "$(grep -c '^| [a-z]' "$out/ops-bench.md") rows; $(head -n 1 "$out/ops-bench.md")"
    return $rc
}

# Every op at tiny sizes under each tool, a whole model, then the tests as far as time allows: what
# is cut short counts as a failure only when something was found before.
stage_sanitize() {
    [ "$mode" = gpu ] || { note "the emulator checks this itself" && return 77; }
    local sanitizer tool name failed=0 count=0 cut=0
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    [ -n "$sanitizer" ] || { note "no compute-sanitizer" && return 77; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    check_run() { # LABEL TOOL COMMAND...
        local log=$out/sanitize-$1.log tool=$2 rc found
        count=$((count + 1))
        printf '%s: ' "$1"
        shift 2
        CK_FORK=no timeout -k 5 40 "$sanitizer" --tool "$tool" --error-exitcode 99 "$@" >"$log" 2>&1
        rc=$?
        found=$(grep '^=========' "$log" | grep -vcE 'COMPUTE-SANITIZER|SUMMARY: 0 |Target application terminated')
        echo "exit $rc, $found lines of findings"
        if [ $rc -eq 0 ]; then
            return
        elif { [ $rc -eq 124 ] || [ $rc -eq 137 ]; } && [ "$found" -eq 0 ]; then
            cut=$((cut + 1))
        else
            failed=$((failed + 1))
            grep -A 4 '^=========' "$log" | head -n 40
        fi
    }
    for tool in memcheck racecheck synccheck; do
        check_run "ops-$tool" $tool "$bench" --tiny --repeats 1
    done
    "$exe" convert --from tests/data/tiny-chat --to "$work/m" 2>"$work/err" || { cat "$work/err" && return 1; }
    for tool in memcheck racecheck; do
        check_run "model-$tool" $tool "$exe" run --quiet --backend cuda --greedy --model "$work/m" \
            --prompt-tokens "$(seq -s, 1 70)" --max-new-tokens 4
    done
    note "$count runs, $failed failed, $cut cut short" # in case time ends below
    for name in $(test_names); do
        [ -x "$build/tests/$name$test_suffix" ] || continue
        check_run "$name-memcheck" memcheck "$build/tests/$name$test_suffix"
        note "$count runs, $failed failed, $cut cut short"
    done
    [ $failed -eq 0 ]
}

# ---- running them ----

if [ -n "$stage" ]; then
    "stage_$stage"
    exit
fi

rows=()
finish_stage() { # NAME STATUS SECONDS LIMIT NOTE
    local text
    text=$(printf '%s' "$5" | tr -d '\\"' | tr '\n\t' '  ')
    printf '{"stage": "%s", "status": "%s", "seconds": %d, "limit_s": %d, "note": "%s"}\n' \
        "$1" "$2" "$3" "$4" "$text" >"$out/$1.json"
    rows+=("$(printf '%-9s %-8s %4d s  %s' "$1" "$2" "$3" "$text")")
    printf '%s\n' "${rows[-1]}" >&2
}

run_stage() { # NAME LIMIT [NEEDED STAGE]
    local name=$1 limit=$2 need=${3:-} left=$((budget - SECONDS)) begin=$SECONDS rc status
    [ -z "$only" ] || [[ ",$only," == *",$name,"* ]] || return 0
    if [ -n "$need" ] && [ "${failed_stage[$need]:-0}" = 1 ]; then
        finish_stage "$name" skipped 0 "$limit" "$need failed"
        return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        finish_stage "$name" skipped 0 "$limit" "no time left of $budget s"
        return
    fi
    local self=("$0" --stage "$name" --build "$build" "$out")
    [ "$mode" = gpu ] || self+=(--emulator)
    [ -z "$deps" ] || self+=(--deps "$deps")
    timeout -k 10 "$limit" "${self[@]}" >"$out/$name.log" 2>&1 </dev/null
    rc=$?
    case $rc in
    0) status=passed ;;
    77) status=skipped ;;
    124 | 137) status=timeout ;;
    *) status=FAILED ;;
    esac
    [ $rc -eq 0 ] || [ $rc -eq 77 ] || failed_stage[$name]=1
    finish_stage "$name" $status $((SECONDS - begin)) "$limit" \
        "$(grep '^note: ' "$out/$name.log" | tail -n 1 | cut -c7- | grep . || tail -n 1 "$out/$name.log")"
}

declare -A failed_stage=()
run_stage device 20
run_stage build 300 device
run_stage tests 150 build
run_stage e2e 90 build
run_stage model 150 build
run_stage ops 150 build
run_stage sanitize 150 build

echo
printf '%s\n' "${rows[@]}"
if [ "${#failed_stage[@]}" -eq 0 ]; then
    exit 0
fi
exit 1
