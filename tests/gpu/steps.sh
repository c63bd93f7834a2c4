#!/bin/bash
# steps.sh STEP: one step of tests/gpu_suite.sh, which sets SUITE_*. Results go to SUITE_RES; the
# last "note: ..." is what the summary shows. Exit 0: passed; 77: skipped; else failed.
set -uo pipefail
: "${SUITE_RES:?}" "${SUITE_TMP:?}" "${SUITE_PROGRAMS:?}" "${SUITE_PID:?}" "${SUITE_TINY:?}" "${SUITE_LIMIT:?}"
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
    e2e_recipes=(q4) e2e_ranks=(2) e2e_ids=70 e2e_new=3 prefill=64 tiny=(--tiny --repeats 1)
    model_sizes=(-p 64 -n 2 -b "1,2" -r 1) graph_sizes=(-p 0 -n 2 -b 1 -r 1)
    depth_sizes=(-p 0 -n 1 -b 1 -d 64 -r 1) file_sizes=(-p 64 -n 1 -r 1)
fi

note() { echo "note: $*"; }

# At most so many seconds, and none that the step no longer has: 124, and SUITE_RES/STEP.short. Nothing
# begins after the suite is gone.
reserve=7 # what is left at least for words, and for a process that has to be killed
limited() { # SECONDS COMMAND...
    local wanted=$1 left=$((SUITE_LIMIT - SECONDS - reserve)) rc=124
    shift
    kill -0 "$SUITE_PID" 2>/dev/null || exit 75
    [ "$left" -lt "$wanted" ] || left=$wanted
    if [ "$left" -ge 1 ]; then
        timeout -k 5 "$left" "$@"
        rc=$?
    fi
    if [ $rc -eq 124 ] && [ "$left" -lt "$wanted" ]; then touch "$res/$SUITE_STEP.short"; fi
    return $rc
}

find_tool() { # NAME: its path
    local path
    command -v "$1" && return
    for path in /usr/local/cuda*/bin/"$1" /opt/nvidia/nsight-compute/*/"$1"; do
        [ ! -x "$path" ] || { echo "$path" && return; }
    done
    return 1
}

step_info() {
    local card
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
    cmake -S . -B "$dir" "${options[@]}" || cmake -S . -B "$dir" "${options[@]}" -DQEP_TESTS=OFF || return 1
    cmake --build "$dir" --parallel -t "${targets[@]:0:2}" || return 1
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
        text="built here, "
        git rev-parse --short=12 HEAD >"$res/commit" 2>/dev/null
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

# sanitized TOOL NAME SECONDS COMMAND...: 0 nothing found; 77 without the tool, 124 cut before anything
# was found.
sanitized() {
    local tool=$1 log=$res/$1-$2.log name=$2 limit=$3 sanitizer rc options=(--error-exitcode 99)
    shift 3
    sanitizer=$(find_tool compute-sanitizer) || { echo "$tool $name: no compute-sanitizer" && return 77; }
    [ "$tool" != memcheck ] || options+=(--report-api-errors explicit)
    QEP_CUDA_SLABS=off CK_FORK=no QEP_TEST_STOP=1 \
        limited "$limit" "$sanitizer" --tool "$tool" "${options[@]}" "$@" >"$log" 2>&1
    rc=$?
    [ $rc -ne 0 ] || { echo "$tool $name: clean" && return 0; }
    if grep -qaE '^=========.*(Invalid|hazard|Barrier error|Program hit|Leaked|Race reported)' "$log"; then
        echo "FAILED: $tool $name: exit $rc, $(grep -acE '^========= +[A-Z]' "$log") lines of findings"
        grep -a '^=========' "$log" | grep -avE 'COMPUTE-SANITIZER|^=========$' | head -n 10
        return 1
    elif [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
        echo "$tool $name: cut, nothing found until then"
        return 124
    elif grep -qaE '^=========.*([Dd]evice not supported|not supported on|Unable to|Failed to initialize)' "$log"; then
        echo "$tool $name: refused here: $(grep -a '^=========' "$log" | sed -n 2p | cut -c1-160)"
        return 77
    fi
    echo "FAILED: $tool $name: exit $rc, nothing found: $(grep -av '^=========' "$log" | tail -n 2 | paste -sd' ' | cut -c1-200)"
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

first_failure() { # NAME
    grep -aE '^[^ ]+:[0-9]+:[FE]:' "$res/$1.log" | head -n 1 | grep . && return
    echo "exit $(cat "$res/$1.rc" 2>/dev/null || echo unknown), last words: $(tail -n 1 "$res/$1.log" 2>/dev/null); last" \
        "test that ended: $(tail -n 1 "$res/$1.tap" 2>/dev/null)"
}

# Its case alone under memcheck; a program that died without a word, whole.
explain_test() { # NAME
    local case
    case=$(first_failure "$1" | sed -n 's/^[^ ]*:[0-9]*:[FE]:\([^:]*\):.*/\1/p')
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
    reserve=25 # to say what failed, and why
    for name in "${names[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge $parallel ]; do wait -n; done
        one_test "$name" &
    done
    wait
    reserve=7
    for name in "${names[@]}"; do
        [ "$(cat "$res/$name.rc" 2>/dev/null)" = 0 ] || failed+=("$name")
    done
    note "${#names[@]} programs, ${#failed[@]} failed${failed[*]:+, failed: ${failed[*]}}"
    for name in "${failed[@]}"; do
        echo "FAILED: $name: $(first_failure "$name")"
    done
    for name in "${failed[@]:0:3}"; do
        explain_test "$name"
    done
    [ ${#failed[@]} -eq 0 ]
}

# Runs side by side of a converted tiny model; every one leaves a line: ok, FAILED or cut.
logits() { # FILE OPTIONS...
    local file=$1
    shift
    limited 50 "$exe" run --quiet --backend cuda --greedy --ignore-eos --model "$model" --prompt-tokens "$ids" \
        --max-new-tokens "$e2e_new" --logits "$file" "$@" >"$file.out" 2>"$file.err"
}

not_run() { # STATUS LABEL ERR_FILE
    if [ "$1" -eq 124 ]; then echo "cut: $2"; else echo "FAILED: $2: does not run, exit $1: $(tail -n 1 "$3" 2>/dev/null)"; fi
}

same() { # LABEL OPTIONS...
    local label=$1 other rc
    other=$(mktemp "$e2e/XXXXXX")
    shift
    logits "$other" "$@"
    rc=$?
    if [ $rc -ne 0 ]; then
        not_run $rc "$label" "$other.err"
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
    local text ranks option rc
    limited 30 "$exe" convert --from tests/data/tiny-chat --to "$model" --recipe "$1" --force 2>"$e2e/err" ||
        { not_run $? "convert to $1" "$e2e/err" && return; }
    text=$(limited 50 "$exe" run --backend cuda --model "$model" --prompt "What is 15% of 80?" 2>"$e2e/err")
    rc=$?
    if [ "$text" = "15% of 80 is 12." ]; then
        echo "ok: $1 answers"
    elif [ $rc -ne 0 ]; then
        not_run $rc "$1: the answer" "$e2e/err"
    else
        echo "FAILED: $1: answer '$text'"
    fi
    logits "$e2e/base" || { not_run $? "$1: one rank, nothing to compare with" "$e2e/base.err" && return; }
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
    local recipe passed
    for recipe in "${e2e_recipes[@]}"; do
        recipe_runs "$recipe"
    done | tee "$res/e2e.txt"
    passed=$(grep -c '^ok' "$res/e2e.txt")
    note "$passed passed, $(grep -c '^FAILED' "$res/e2e.txt") failed"
    # The answer, three other ways, two placements for every number of ranks.
    [ "$passed" -eq $((${#e2e_recipes[@]} * (4 + 2 * ${#e2e_ranks[@]}))) ]
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

# What floors are made of, and what the figures are of.
measure_peaks() {
    echo "$(basename "$config" .json), q4, random weights" >"$res/model.txt"
    [ ! -s "$res/peaks.json" ] || return 0
    limited 20 "$bench" --only peaks "${tiny[@]}" --json "$res/peaks.json" && return
    echo "FAILED: bench_cuda --only peaks, exit $?; no floors"
    return 1
}

# Figures that memory does not allow are no figures.
check_floor() { tests/gpu/report.sh --check "$SUITE_STEP" "$res"; }

step_model() {
    local rc=0
    measure_peaks || rc=1
    bench_model model 80 "${random_model[@]}" "${model_sizes[@]}" --prefill-chunk 4096 || rc=1
    check_floor || rc=1
    note "tok/s $(rates model)"
    return $rc
}

step_graphs() {
    local rc=0 graphs
    measure_peaks || rc=1
    for graphs in on off; do
        bench_model graphs-$graphs 30 "${random_model[@]}" "${graph_sizes[@]}" --cuda-graphs $graphs || rc=1
    done
    check_floor || rc=1
    note "on $(rates graphs-on), off $(rates graphs-off) tok/s"
    return $rc
}

# kernels NAME OPTIONS...: all launches of one step, timed by events, and by ncu where it may.
kernels() {
    local name=$1 launches=$res/$1.launches ncu command=("$exe" bench --cuda-graphs off -r 1)
    shift
    measure_peaks
    rm -f "$res/$name.layers"
    limited 40 "${command[@]}" "$@" --launch-times "$launches" 2>&1 || { echo "FAILED: $name: launch times, exit $?" && return 1; }
    note "$(grep -c . "$launches") launches, by events; no ncu"
    ncu=$(find_tool ncu) || return 0
    if ncu_of "$name" 50 "${command[@]}" "$@"; then
        note "$(grep -c . "$launches") launches, by events and ncu, $(passes "$name")"
    elif grep -qa '^==ERROR==' "$res/$name-ncu.log"; then
        note "$(grep -c . "$launches") launches, by events; ncu: $(grep -a '^==ERROR==' "$res/$name-ncu.log" | head -n 1 | cut -c1-120)"
    else
        # It takes too long: four layers, whose launches are then what both see.
        note "$(grep -c . "$launches") launches, by events; ncu took too long"
        ncu_of "$name" 25 "${command[@]}" "$@" --layers 4 || return 0
        cp "$launches" "$launches.all"
        limited 10 "${command[@]}" "$@" --layers 4 --launch-times "$launches" 2>&1 || return 0
        echo "the first 4 layers" >"$res/$name.layers"
        note "$(grep -c . "$launches.all") launches, by events; 4 layers by ncu, $(passes "$name")"
    fi
}

# More than one pass over a kernel: its weights may lie in the L2 cache from the first.
passes() { grep -aoE '[0-9]+ pass(es)?' "$res/$1-ncu.csv" "$res/$1-ncu.log" | sed 's/.*://' | sort | uniq -c | sort -rn | head -n 1 | sed 's/^ *[0-9]* //'; }

ncu_of() { # NAME SECONDS COMMAND...
    local csv=$res/$1-ncu.csv log=$res/$1-ncu.log limit=$2
    local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
    shift 2
    rm -f "$csv"
    limited "$limit" "$ncu" --clock-control none --cache-control none --profile-from-start off --print-kernel-base function \
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
    measure_peaks && bench_model depth 45 "${random_model[@]}" "${depth_sizes[@]}" --prefill-chunk 4096 && check_floor || return 1
    note "tok/s $(rates depth)"
}

# Beside Python's packages, where no package manager tells the loader.
find_nccl() {
    ldconfig -p 2>/dev/null | grep -q 'libnccl\.so\.2' && return
    local dir
    dir=$(limited 20 python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' 2>/dev/null)
    [ -e "$dir/libnccl.so.2" ] || dir=$(limited 20 find /usr/lib /usr/local /opt "${HOME:-/root}" \
        -path '*nvidia/nccl/lib/libnccl.so.2' -printf '%h\n' -quit 2>/dev/null)
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
        echo "FAILED: $program: $(first_failure "$program")"
        explain_test "$program"
        return 1
        ;;
    esac
}

# Every op at tiny sizes, a whole model, then tests as far as time allows.
sanitize() { # TOOL
    local tool=$1 name rc=0 count=0 cut=0 names=() small=$tmp/sanitized
    find_tool compute-sanitizer >/dev/null || { note "no compute-sanitizer" && return 77; }
    tally() {
        "$@"
        case $? in
        0) count=$((count + 1)) ;;
        124) cut=$((cut + 1)) ;;
        77) ;;
        *) rc=1 count=$((count + 1)) ;;
        esac
    }
    tally sanitized "$tool" ops 30 "$bench" --tiny --repeats 1
    limited 30 "$exe" convert --from tests/data/tiny-chat --to "$small" --force 2>&1 || { echo "FAILED: convert, exit $?" && return 1; }
    tally sanitized "$tool" model 30 "$exe" run --quiet --backend cuda --greedy --model "$small" \
        --prompt-tokens "$(seq -s, 1 70)" --max-new-tokens 4
    note "$count runs, $cut cut"
    [ $((count + cut)) -gt 0 ] || { note "refused here" && return 77; }
    [ "$tool" != memcheck ] || mapfile -t names < <(grep -v nccl "$SUITE_PROGRAMS/tests.txt" 2>/dev/null)
    for name in "${names[@]}"; do
        [ $((SECONDS + 20)) -lt "$SUITE_LIMIT" ] || break
        tally sanitized "$tool" "$name" 30 "$bin/$name"
        note "$count runs, $cut cut"
    done
    # A tool that never got to an end has shown nothing.
    [ $rc -ne 0 ] || [ $count -gt 0 ] || rc=124
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
