#!/bin/bash
# steps.sh STEP: one step of tests/gpu_suite.sh, which sets SUITE_*. Results go to SUITE_RES; the
# last "note: ..." is what the summary shows. Exit 0: passed; 77: skipped; else failed.
set -uo pipefail
: "${SUITE_RES:?}" "${SUITE_TMP:?}" "${SUITE_PROGRAMS:?}" "${SUITE_PID:?}" "${SUITE_TINY:?}"
export SUITE_STEP=${1:-}
res=$SUITE_RES tmp=$SUITE_TMP bin=$SUITE_PROGRAMS/bin
exe=$bin/qwen-ep bench=$bin/bench_cuda
export LD_LIBRARY_PATH=$SUITE_PROGRAMS/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
config=configs/qwen3.5-35b-a3b.json few_layers=configs/synth-35b-4layers.json parallel=6
e2e_recipes=(q4 bf16 q8) e2e_ranks=(2 4) e2e_ids=150 e2e_new=12 prefill=4096 tiny=()
model_sizes=(-p "512,4096" -n 64 -b "1,8,32" -r 3) graph_sizes=(-p 0 -n 64 -b "1,8" -r 5)
depth_sizes=(-p 0 -n 32 -b 1 -d 16384 -r 2) file_sizes=(-p 512 -n 16 -r 2)
if [ "$SUITE_TINY" = 1 ]; then
    config=configs/tiny-random.json few_layers=$config parallel=2
    e2e_recipes=(q4) e2e_ranks=(2) e2e_ids=70 e2e_new=3 prefill=64 tiny=(--tiny --repeats 2)
    model_sizes=(-p 64 -n 2 -b "1,2" -r 1) graph_sizes=(-p 0 -n 2 -b 1 -r 1)
    depth_sizes=(-p 0 -n 1 -b 1 -d 64 -r 1) file_sizes=(-p 64 -n 1 -r 1)
fi

note() { echo "note: $*"; }

# Nothing begins after the suite is gone.
limited() { # SECONDS COMMAND...
    kill -0 "$SUITE_PID" 2>/dev/null || exit 75
    timeout -k 5 "$@"
}

find_tool() { # NAME: its path
    command -v "$1" && return
    ls -d /usr/local/cuda/bin/"$1" /opt/nvidia/nsight-compute/*/"$1" 2>/dev/null | head -n 1 | grep .
}

step_info() {
    local card
    { git rev-parse --short=12 HEAD 2>/dev/null || echo unknown; } >"$res/commit"
    { uname -srm && nproc && grep -m 1 'model name' /proc/cpuinfo && grep MemTotal /proc/meminfo; } >"$res/info.txt"
    command -v nvidia-smi >/dev/null || { note "no nvidia-smi; whether there is a GPU, the programs say" && return 77; }
    limited 50 nvidia-smi -q -d CLOCK,POWER,MEMORY,PERFORMANCE >>"$res/info.txt" 2>&1
    card=$(limited 50 nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader | head -n 1)
    [ -n "$card" ] || { echo "FAILED: nvidia-smi lists no GPU" && return 1; }
    echo "$card" >"$res/card"
    note "$card"
}

# ---- the programs ----

unpack() {
    mkdir -p "$SUITE_PROGRAMS"
    tar -C "$SUITE_PROGRAMS" -xf "$SUITE_PACK" && return
    # No xz there? Python has it built in.
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$SUITE_PACK" "$SUITE_PROGRAMS"
}

# CMake's names for what a pack holds.
targets=(qwen-ep bench_cuda gpu_tests)

# Nothing that only another compiler says stops it: no warnings as errors, no MPI.
build_here() {
    local dir=build/gpu-suite arch options=(-DCMAKE_BUILD_TYPE=Release -DQEP_CUDA=ON -DQEP_MPI=OFF -DQEP_WERROR=OFF)
    arch=$(cut -d, -f4 "$res/card" 2>/dev/null | tr -d ' .')
    [ "$arch" != 90 ] || arch=90a
    [ -z "$arch" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=$arch-real")
    [ -z "$SUITE_DEPS" ] || options+=("-DQEP_DEPS=$(cd "$SUITE_DEPS" && pwd)")
    [ -f "$dir/CMakeCache.txt" ] || ! command -v ninja >/dev/null || options+=(-G Ninja)
    cmake -S . -B "$dir" "${options[@]}" && cmake --build "$dir" --parallel -t "${targets[@]:0:2}" || return 1
    mkdir -p "$bin" "$SUITE_PROGRAMS/lib"
    cp "$dir/qwen-ep" "$dir/bench/bench_cuda" "$bin"
    if cmake --build "$dir" --parallel -t "${targets[2]}"; then
        cp "$dir/tests/gpu_tests.txt" "$SUITE_PROGRAMS/tests.txt"
        sed "s#^#$dir/tests/#" "$SUITE_PROGRAMS/tests.txt" | xargs cp -t "$bin"
    fi
}

step_programs() {
    local text arch card
    if [ -n "$SUITE_PACK" ]; then
        unpack || { echo "FAILED: $SUITE_PACK cannot be unpacked" && return 1; }
        cp "$SUITE_PROGRAMS/pack.txt" "$res" 2>/dev/null && text="pack: $(tr '\n' ' ' <"$res/pack.txt")"
        sed -n 's/^commit //p' "$res/pack.txt" 2>/dev/null | grep . >"$res/commit"
    else
        build_here || { echo "FAILED: the build" && return 1; }
        text="built here"
    fi
    arch=$(sed -n 's/^arch \([0-9]*\).*/\1/p' "$res/pack.txt" 2>/dev/null)
    card=$(cut -d, -f4 "$res/card" 2>/dev/null | tr -d ' .')
    [ -z "$arch" ] || [ -z "$card" ] || [ "$arch" = "$card" ] || text="for sm_$arch, the card is sm_$card; $text"
    text="$text$(limited 20 "$exe" --version 2>&1 | head -n 1)" || { echo "FAILED: qwen-ep --version: $text" && return 1; }
    note "$text, $(grep -c . "$SUITE_PROGRAMS/tests.txt" 2>/dev/null || echo no) test programs"
}

# ---- is it right? ----

random_model=(--backend cuda --weights random --config "$config" --quiet)

# One layer, four tokens: where that fails, nothing can be measured.
step_smoke() {
    local command=("$exe" bench "${random_model[@]}" --layers 1 -p 4 -n 4 -r 1)
    limited 30 "${command[@]}" 2>"$res/smoke.err" && { note "1 layer, 4 tokens" && return; }
    note "exit $?: $(tail -n 1 "$res/smoke.err")"
    echo "FAILED: $(tail -n 3 "$res/smoke.err" | paste -sd' '): ${command[*]}"
    sanitized memcheck smoke 25 "${command[@]}"
    return 1
}

# sanitized TOOL NAME SECONDS COMMAND...: 77 without the tool; a run that was cut counts as failed
# only when something was found before.
sanitized() {
    local tool=$1 log=$res/$1-$2.log name=$2 limit=$3 sanitizer rc found
    shift 3
    sanitizer=$(find_tool compute-sanitizer) || { echo "$tool $name: no compute-sanitizer" && return 77; }
    CK_FORK=no QEP_TEST_STOP=1 limited "$limit" "$sanitizer" --tool "$tool" --error-exitcode 99 "$@" >"$log" 2>&1
    rc=$?
    found=$(grep -a '^=========' "$log" | grep -vcE 'COMPUTE-SANITIZER|SUMMARY: 0 |Target application terminated')
    [ $rc -ne 0 ] || { echo "$tool $name: clean" && return 0; }
    if grep -qaE '^=========.*([Dd]evice not supported|not supported on|Unable to|Failed to initialize)' "$log"; then
        echo "$tool $name: refused here: $(grep -a '^=========' "$log" | sed -n 2p | cut -c1-160)"
        return 77
    fi
    if [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
        [ "$found" -gt 0 ] || { echo "$tool $name: clean until it was cut after $limit s" && return 0; }
    fi
    echo "FAILED: $tool $name: exit $rc, $found lines of findings"
    grep -a -A 4 '^=========' "$log" | grep -av COMPUTE-SANITIZER | head -n 12
    return 1
}

# One process for all cases of a program, which ends at the first failure.
one_test() { # NAME
    local log=$res/$1.log begin=$SECONDS rc
    rm -f "$res/$1.tap"
    QEP_TEST_NEEDS_DEVICE=1 QEP_TEST_STOP=1 CK_FORK=no CK_TAP_LOG_FILE_NAME=$res/$1.tap \
        limited 80 "$bin/$1" >"$log" 2>&1
    rc=$?
    echo "$rc" >"$res/$1.rc"
    echo "$1: exit $rc after $((SECONDS - begin)) s: $(grep -a '^[0-9]*%:' "$log" | tail -n 1)"
}

# Its case alone under memcheck; a program that died without a word, whole.
explain_test() { # NAME
    local log=$res/$1.log first case
    first=$(grep -aE '^[^ ]+:[0-9]+:[FE]:' "$log" | head -n 1)
    case=$(sed -n 's/^[^ ]*:[0-9]*:[FE]:\([^:]*\):.*/\1/p' <<<"$first")
    [ -n "$first" ] || first="exit $(cat "$res/$1.rc"), last words: $(tail -n 1 "$log"); last test that ended: $(tail -n 1 "$res/$1.tap" 2>/dev/null)"
    echo "FAILED: $1: $first"
    if [ -n "$case" ]; then
        CK_RUN_CASE=$case sanitized memcheck "$1" 30 "$bin/$1"
    else
        sanitized memcheck "$1" 30 "$bin/$1"
    fi
}

# The basic ones first; after a failed smoke test only those of single ops.
step_tests() {
    local names failed=() name
    [ -s "$SUITE_PROGRAMS/tests.txt" ] || { note "no test programs" && return 77; }
    mapfile -t names < <(grep -v nccl "$SUITE_PROGRAMS/tests.txt")
    if [ "${SUITE_SMOKE:-passed}" != passed ]; then
        mapfile -t names < <(printf '%s\n' "${names[@]}" | grep -vE 'hazards|golden|batch|model')
    elif [ -n "${SUITE_TESTS:-}" ]; then
        read -ra names <<<"$SUITE_TESTS"
    fi
    for name in "${names[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge $parallel ]; do wait -n; done
        one_test "$name" &
    done
    wait
    for name in "${names[@]}"; do
        [ "$(cat "$res/$name.rc" 2>/dev/null)" = 0 ] || failed+=("$name")
    done
    note "${#names[@]} programs, ${#failed[@]} failed${failed[*]:+, failed: ${failed[*]}}"
    for name in "${failed[@]:0:3}"; do
        explain_test "$name"
    done
    [ ${#failed[@]} -eq 0 ]
}

# Runs side by side of a converted tiny model; every one leaves a line FAILED or ok in $e2e.
logits() { # FILE OPTIONS...
    local file=$1
    shift
    limited 50 "$exe" run --quiet --backend cuda --greedy --ignore-eos --model "$model" --prompt-tokens "$ids" \
        --max-new-tokens "$e2e_new" --logits "$file" "$@" >"$file.out" 2>"$file.err" && return
    sed 's/^/    /' "$file.err" | head -n 3
    return 1
}

same() { # LABEL OPTIONS...
    local label=$1 other
    other=$(mktemp "$e2e/XXXXXX")
    shift
    if ! logits "$other" "$@"; then
        echo "FAILED: $label: does not run"
    elif cmp -s "$e2e/base" "$other"; then
        echo "ok: $label"
    else
        echo "FAILED: $label: other logits, $(cmp "$e2e/base" "$other" 2>&1)"
    fi
    rm -f "$other"*
}

side_by_side() { # COMMAND...
    while [ "$(jobs -rp | wc -l)" -ge $parallel ]; do wait -n; done
    "$@" &
}

recipe_runs() { # RECIPE
    local text ranks option
    limited 30 "$exe" convert --from tests/data/tiny-chat --to "$model" --recipe "$1" --force 2>"$e2e/err" ||
        { echo "FAILED: convert $1: $(tail -n 1 "$e2e/err")" && return; }
    text=$(limited 50 "$exe" run --backend cuda --model "$model" --prompt "What is 15% of 80?" 2>"$e2e/err")
    if [ "$text" = "15% of 80 is 12." ]; then
        echo "ok: $1 answers"
    else
        echo "FAILED: $1: answer '$text' $(grep -a '^qwen-ep:' "$e2e/err" | head -n 1)"
    fi
    logits "$e2e/base" || { echo "FAILED: $1: one rank does not run; nothing to compare with" && return; }
    side_by_side same "$1: again"
    side_by_side same "$1: chunks of 64" --prefill-chunk 64
    side_by_side same "$1: without graphs" --cuda-graphs off
    for ranks in "${e2e_ranks[@]}"; do
        for option in layers sequences; do
            side_by_side same "$1: $ranks ranks, $option" --transport threads --ranks "$ranks" --attention $option
        done
    done
    wait
}

step_e2e() {
    e2e=$tmp/e2e model=$tmp/e2e/model
    # Under 432 ids, none of them special.
    ids=$(for ((i = 0; i < e2e_ids; i++)); do echo $((1 + i * 7 % 400)); done | paste -sd,)
    mkdir -p "$e2e"
    local recipe
    for recipe in "${e2e_recipes[@]}"; do
        recipe_runs "$recipe"
    done >"$res/e2e.txt"
    cat "$res/e2e.txt"
    note "$(grep -c '^ok' "$res/e2e.txt") passed, $(grep -c '^FAILED' "$res/e2e.txt") failed"
    ! grep -q '^FAILED' "$res/e2e.txt"
}

# ---- how fast? ----

# bench_model NAME SECONDS OPTIONS...: its JSON lines are results.
bench_model() {
    local name=$1 limit=$2
    shift 2
    limited "$limit" "$exe" bench "$@" -o json >"$res/$name.jsonl" 2>"$res/$name.err" && return
    echo "FAILED: $name, exit $?: $(tail -n 1 "$res/$name.err")"
    return 1
}

rates() { sed -n 's/.*"tok_s": \([0-9.]*\).*/\1/p' "$res/$1.jsonl" | paste -sd' '; }

# Figures that memory does not allow are no figures.
check_floor() { tests/gpu/report.sh --check "$SUITE_STEP" "$res"; }

step_model() {
    local rc=0
    echo "$(basename "$config" .json), q4, random weights" >"$res/model.txt"
    limited 20 "$bench" --only peaks "${tiny[@]}" --json "$res/peaks.json" || rc=1
    bench_model model 80 "${random_model[@]}" "${model_sizes[@]}" --prefill-chunk 4096 || rc=1
    check_floor || rc=1
    note "tok/s $(rates model)"
    return $rc
}

step_graphs() {
    local rc=0 graphs
    for graphs in on off; do
        bench_model graphs-$graphs 30 "${random_model[@]}" "${graph_sizes[@]}" --cuda-graphs $graphs || rc=1
    done
    check_floor || rc=1
    note "on $(rates graphs-on), off $(rates graphs-off) tok/s"
    return $rc
}

# kernels NAME OPTIONS...: all launches of one step, timed by events, and by ncu where it may.
kernels() {
    local name=$1 ncu rc=0 command=("$exe" bench --cuda-graphs off -r 1)
    shift
    limited 40 "${command[@]}" "$@" --launch-times "$res/$name.launches" 2>&1 ||
        { echo "FAILED: $name: launch times, exit $?" && rc=1; }
    ncu=$(find_tool ncu) || { note "$(grep -c . "$res/$name.launches") launches, by events; no ncu" && return $rc; }
    if ! ncu_of "$name" 55 "${command[@]}" "$@" && ! ncu_of "$name" 25 "${command[@]}" "$@" --layers 4; then
        note "$(grep -c . "$res/$name.launches") launches, by events; ncu: $(grep -a '^==ERROR==' "$res/$name-ncu.log" | head -n 1 | cut -c1-120)"
        return $rc
    fi
    note "$(grep -c . "$res/$name.launches") launches, by events and ncu"
    return $rc
}

ncu_of() { # NAME SECONDS COMMAND...
    local csv=$res/$1-ncu.csv log=$res/$1-ncu.log limit=$2
    local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
    shift 2
    rm -f "$csv"
    limited "$limit" "$ncu" --clock-control none --profile-from-start off --kernel-name-base function \
        --metrics $metrics --csv --page raw --print-units base --log-file "$csv" "$@" \
        --launch-times "$tmp/under-ncu" >"$log" 2>&1 && grep -qa '^"0"' "$csv" && return
    cat "$csv" >>"$log" 2>/dev/null
    rm -f "$csv"
    return 1
}

step_decode_kernels() { kernels decode "${random_model[@]}" -p 0 -n 1; }
step_prefill_kernels() { kernels prefill "${random_model[@]}" -p $prefill -n 0 --prefill-chunk 4096; }

ops() { # PART
    local md=$res/ops-$1.md
    limited 60 "$bench" --only "$1" "${tiny[@]}" --json "$res/ops-$1.json" >"$md" 2>"$res/ops-$1.err" ||
        { echo "FAILED: bench_cuda --only $1, exit $?: $(tail -n 1 "$res/ops-$1.err")" && return 1; }
    note "$(grep '^| [a-z]' "$md" | grep -vc '^| op ') rows; $(head -n 1 "$md")"
}

step_depth() {
    bench_model depth 45 "${random_model[@]}" "${depth_sizes[@]}" --prefill-chunk 4096 && check_floor || return 1
    note "tok/s $(rates depth)"
}

# Beside Python's packages, where no package manager tells the loader.
find_nccl() {
    ldconfig -p 2>/dev/null | grep -q 'libnccl\.so\.2' && return
    local dir
    dir=$(find /usr/lib /usr/local /opt "$HOME" -path '*nvidia/nccl/lib/libnccl.so.2' -printf '%h\n' 2>/dev/null | head -n 1)
    [ -z "$dir" ] || export LD_LIBRARY_PATH=$dir:$LD_LIBRARY_PATH
}

step_nccl() {
    local program
    find_nccl
    program=$(grep -m 1 nccl "$SUITE_PROGRAMS/tests.txt" 2>/dev/null) || { note "no test program" && return 77; }
    one_test "$program"
    case $(cat "$res/$program.rc") in
    0) note "$(grep -a -m 1 '^NCCL' "$res/$program.log"), one rank: collectives, graphs, finalize" ;;
    77) note "$(tail -n 1 "$res/$program.log")" && return 77 ;;
    *)
        note "$program failed"
        explain_test "$program"
        return 1
        ;;
    esac
}

# Every op at tiny sizes, a whole model, then tests as far as time allows.
sanitize() { # TOOL
    local tool=$1 name rc=0 count=0 names=() small=$tmp/sanitized
    find_tool compute-sanitizer >/dev/null || { note "no compute-sanitizer" && return 77; }
    tally() {
        "$@"
        case $? in
        0) count=$((count + 1)) ;;
        77) ;;
        *) rc=1 count=$((count + 1)) ;;
        esac
    }
    tally sanitized "$tool" ops 30 "$bench" --tiny --repeats 1
    limited 30 "$exe" convert --from tests/data/tiny-chat --to "$small" --force 2>/dev/null || rc=1
    tally sanitized "$tool" model 30 "$exe" run --quiet --backend cuda --greedy --model "$small" \
        --prompt-tokens "$(seq -s, 1 70)" --max-new-tokens 4
    note "$count runs"
    [ $count -gt 0 ] || { note "refused here" && return 77; }
    [ "$tool" != memcheck ] || mapfile -t names < <(grep -v nccl "$SUITE_PROGRAMS/tests.txt" 2>/dev/null)
    for name in "${names[@]}"; do
        [ $((SECONDS + 35)) -lt "${SUITE_LIMIT:-0}" ] || break
        tally sanitized "$tool" "$name" 30 "$bin/$name"
        note "$count runs"
    done
    return $rc
}

step_files() {
    local dir=$tmp/synth
    limited 45 "$exe" synth --config "$few_layers" --recipe q4 --out "$dir" --force >"$res/synth.log" 2>&1 ||
        { echo "FAILED: synth, exit $?: $(tail -n 1 "$res/synth.log")" && return 1; }
    bench_model files 30 --backend cuda --model "$dir" "${file_sizes[@]}" || return 1
    rm -rf "$dir"
    note "loading $(sed -n 's/.*"load_gb_s": \([0-9.]*\).*/\1/p' "$res/files.jsonl" | head -n 1) GB/s"
}

case ${1:-} in
ops-*) ops "${1#ops-}" ;;
memcheck | racecheck | synccheck) sanitize "$1" ;;
info | programs | smoke | tests | e2e | model | graphs | decode-kernels | prefill-kernels | depth | nccl | files)
    "step_${1//-/_}"
    ;;
*)
    echo "usage: steps.sh STEP" >&2
    exit 64
    ;;
esac
