#!/bin/bash
# test_suite.sh [--canned] BUILD_DIR: tests/gpu_suite.sh as it runs on a machine with a GPU, on one
# without: from a pack, with stand-ins for nvidia-smi, ncu and compute-sanitizer. First the programs
# over the emulator; then canned ones, in which every step fails once, and hangs once while the
# suite is killed. Without an emulator in BUILD_DIR, or with --canned, only the latter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
export LC_ALL=C
canned=0
if [ "${1:-}" = --canned ]; then canned=1 && shift; fi
[ $# -eq 1 ] || { echo "usage: test_suite.sh [--canned] BUILD_DIR" >&2 && exit 64; }
build=$1 suite=$PWD/tests/gpu_suite.sh
work=$(mktemp -d)
export TMPDIR=$work/tmp
mkdir "$TMPDIR"
# Stand-ins that hang; what is left of killed suites then ends by itself.
end() {
    local pids
    mapfile -t pids <"$work/pids"
    [ ${#pids[@]} -eq 0 ] || kill -KILL "${pids[@]}" 2>/dev/null
    for _ in 1 2 3 4 5; do
        rm -rf "$work" 2>/dev/null && return
        sleep 0.5
    done
}
trap end EXIT
touch "$work/pids"
failures=$work/failures
: >"$failures"

# ---- stand-ins ----

# Every one of them fails in the step PLANT and hangs in the step HANG.
mkdir -p "$work/tools"
cat >"$work/planted" <<EOF
if [ "\${HANG:-}" = "\${SUITE_STEP:-}" ] && [ -n "\${HANG:-}" ]; then echo \$\$ >>"$work/pids"; exec sleep 60; fi
if [ "\${HANG_PROGRAM:-}" = "\${0##*/}" ] && [ -n "\${CK_TAP_LOG_FILE_NAME:-}" ]; then echo \$\$ >>"$work/pids"; exec sleep 60; fi
planted() { [ "\${PLANT:-}" = "\${SUITE_STEP:-}" ] && [ -n "\${PLANT:-}" ]; }
EOF
stub() { # FILE, the rest on stdin
    { echo '#!/bin/bash' && echo ". '$work/planted'" && cat; } >"$1"
    chmod +x "$1"
}
stub "$work/tools/nvidia-smi" <<'EOF'
[[ $* != *-q\ * ]] || { echo "Clocks" && exit; }
planted || echo "NVIDIA H100 80GB HBM3, 580.1, 81559 MiB, 9.0"
EOF
# As ncu writes them: a header, units, numbers in quotes, in groups of three digits.
stub "$work/tools/ncu" <<'EOF'
[ "${REFUSE:-}" != ncu ] || { echo "==ERROR== ERR_NVGPUCTRPERM: no permission" && exit 1; }
log=
while [[ ${1:-} == --* ]]; do
    case $1 in
    --csv) shift ;;
    --log-file) log=$2 && shift 2 ;;
    *) shift 2 ;;
    esac
done
"$@" || exit
{
    echo "==PROF== Connected to process 1"
    echo '==PROF== Profiling "first" - 0: 0%....50%....100% - 1 pass'
    echo '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum","smsp__inst_executed.sum"'
    echo '"","","","","","","","","","","","Mbyte","byte","ns","inst"'
    while [[ $# -gt 0 && $1 != --launch-times ]]; do shift; done
    id=0
    sed 's/.*"kernel": "\([^"]*\)", "grid": \[\([^]]*\)\], "block": \[\([^]]*\)\].*/\1|\2|\3/' "$2" |
        while IFS='|' read -r kernel grid block; do
            echo "\"$id\",\"7\",\"qwen-ep\",\"127.0.0.1\",\"void $kernel<2, 1>(args)\",\"1\",\"7\",\"($block)\",\"($grid)\",\"0\",\"9.0\",\"20\",\"1,000,000\",\"10,500\",\"1,234\""
            id=$((id + 1))
        done
} >"$log"
EOF
stub "$work/tools/compute-sanitizer" <<'EOF'
[ "${REFUSE:-}" != compute-sanitizer ] || { echo "========= COMPUTE-SANITIZER" && echo "========= Device not supported" && exit 1; }
[[ $1 == --tool && $3 == --error-exitcode && $4 == 99 ]] || exit 64
tool=$2
shift 4
[ "$1" != --report-api-errors ] || shift 2
echo "========= COMPUTE-SANITIZER"
case $1 in
*/bench_cuda | */test_*) ;; # over the emulator they take long, and have run
*) "$@" ;;
esac
if planted; then
    echo "========= Invalid __global__ write of size 4 bytes ($tool)" && echo "=========     at kernel" && exit 99
fi
echo "========= ERROR SUMMARY: 0 errors"
EOF
PATH=$work/tools:$PATH

make_pack() { # FILE DIR
    printf 'commit 0123456789ab\narch none\n' >"$2/pack.txt"
    tar -C "$2" -cf "$1" bin lib tests.txt pack.txt
}

# ---- checks ----

fail() { echo "FAILED: $*" >>"$failures"; }
# Of OUT_DIR: does STEP have this status, and a note or a line below the table like PATTERN?
status_is() { # OUT STEP STATUS
    grep -qE "^$2 +$3( |\$)" "$1/summary.txt" || fail "$(basename "$1"): $2 is not $3: $(grep "^$2 " "$1/summary.txt")"
}
says() { grep -qE "$2" "$1/summary.txt" || fail "$(basename "$1"): the summary does not say: $2"; }
# Three files, whole, and no more.
is_whole() {
    [ "$(find "$1" -type f -printf '%f\n' | sort | paste -sd' ')" = "bench.md logs.tgz summary.txt" ] ||
        fail "$(basename "$1"): $(ls -A "$1")"
    tar -tzf "$1/logs.tgz" >/dev/null || fail "$(basename "$1"): logs.tgz"
}

all_steps=(info programs smoke tests e2e model graphs decode-kernels ops-small ops-delta ops-matmul ops-experts
    ops-attention prefill-kernels depth nccl memcheck racecheck synccheck files)

# ---- the programs over the emulator ----

emulated() {
    local dir=$work/emulated name out=$work/out-emulated
    mkdir -p "$dir/bin" "$dir/lib"
    ln "$build/tests/qwen-ep-emu" "$dir/bin/qwen-ep" 2>/dev/null || cp "$build/tests/qwen-ep-emu" "$dir/bin/qwen-ep"
    cp "$build/tests/bench_cuda_emu" "$dir/bin/bench_cuda"
    # All of them are unit tests already; here it is the way they are run.
    for name in $(grep -E '_(pool|ops|nccl)$' "$build/tests/gpu_tests.txt"); do
        cp "$build/tests/$name" "$dir/bin" && echo "$name"
    done >"$dir/tests.txt"
    make_pack "$work/emulated.tar" "$dir"
    "$suite" --tiny --pack "$work/emulated.tar" "$out" >"$out.log" 2>&1 || fail "emulated: exit $?"
    for name in "${all_steps[@]}"; do
        status_is "$out" "$name" passed
    done
    is_whole "$out"
    says "$out" '^tests .* 2 programs, 0 failed'
    says "$out" '^e2e .* 6 passed, 0 failed'
    says "$out" '^decode-kernels .* 67 launches, by events and ncu'
    says "$out" '^nccl .* NCCL .*graphs, finalize'
    grep -qE '^\| experts_decode_kernel .*\| 8 \| 84\.0 ' "$out/bench.md" || fail "emulated: no row of experts_decode_kernel"
    [ ! -s "$failures" ] || sed 's/^/    /' "$out/summary.txt" "$out.log"
}

# ---- canned programs ----

mkdir -p "$work/pack/bin" "$work/pack/lib"
stub "$work/pack/bin/qwen-ep" <<'EOF'
args=" $* "
row() { # TEST BATCH DEPTH TOK_S STEP_BYTES
    printf '{"recipe": "q4", "test": "%s", "batch": %d, "depth": %d, "tok_s": %s, "sd": 0.5, "load_s": 4.0, "load_gb_s": 5.0, "step_bytes": %s}\n' "$@"
}
option() { sed -n "s/.* $1 \([^ ]*\) .*/\1/p" <<<"$args"; }
case $1 in
--version) planted && echo "no kernel image" && exit 70 || echo "qwen-ep 0" ;;
convert | synth) planted && [ "$SUITE_STEP" = files ] && exit 73 || mkdir -p "$(option --to)$(option --out)" ;;
run)
    planted && [[ $args == *" sequences "* ]] && id=5
    [[ $args != *--prompt\ * ]] || { echo "15% of 80 is 12." && exit; }
    [[ $args != *--logits* ]] || echo "${id:-1}" >"$(option --logits)"
    ;;
bench)
    planted && [ "$SUITE_STEP" != model ] && echo "qwen-ep: a kernel failed" >&2 && exit 69
    if [[ $args == *--launch-times* ]]; then
        for kernel in first second first; do
            echo "{\"test\": \"tg1\", \"kernel\": \"$kernel\", \"grid\": [768, 1, 1], \"block\": [128, 1, 1], \"us\": 12.000}"
        done >"$(option --launch-times)"
        exit
    fi
    depth=$(option -d)
    [[ $args != *" -p 0 "* ]] && row pp512 1 0 13000.0 0 && row pp4096 1 0 5000.0 0
    for batch in $(option -b | tr , ' '); do
        rate=320.0
        planted && rate=1500.0
        row tg64 "$batch" "${depth:-0}" "$(awk "BEGIN { print $rate * $batch }")" 2780000000
    done
    ;;
esac
exit 0
EOF
stub "$work/pack/bin/bench_cuda" <<'EOF'
planted && [ "$SUITE_STEP" != model ] && [[ $SUITE_STEP != *check ]] && echo "bench_cuda: no" >&2 && exit 69
while [ $# -gt 0 ]; do
    [ "$1" != --json ] || echo '{"device": "NVIDIA H100 80GB HBM3", "copy_gb_s": 3000.0, "mma_tflop_s": 600.0, "cases": []}' >"$2"
    shift
done
printf 'card: copies\n\n| op | us |\n| --- | --: |\n| matmul | 1 |\n'
EOF
for name in test_a_gpu test_hazards_gpu test_nccl_gpu; do
    stub "$work/pack/bin/$name" <<'EOF'
[[ $0 != *nccl* ]] || echo "NCCL 2.28.9"
if planted && [[ $0 == *_a_gpu || $0 == *nccl* ]]; then
    echo "50%: Checks: 2, Failures: 1, Errors: 0"
    echo "tests/unit/test_a.c:12:F:some case:adds:0: status 69: cuda: illegal address"
    exit 1
fi
echo "100%: Checks: 2, Failures: 0, Errors: 0"
EOF
    echo $name
done >"$work/pack/tests.txt"
make_pack "$work/canned.tar" "$work/pack"

run_canned() { # NAME OPTIONS...: leaves OUT in $work/out-NAME, its exit code there too
    local out=$work/out-$1
    shift
    "$suite" --pack "$work/canned.tar" "$@" "$out" >"$out.log" 2>&1
    echo $? >"$out.rc"
}

all_is_well() {
    local out=$work/out-well name
    run_canned well --phase all
    [ "$(cat "$out.rc")" = 0 ] || fail "well: exit $(cat "$out.rc"): $(tail -n 30 "$out.log")"
    for name in "${all_steps[@]}"; do status_is "$out" "$name" passed; done
    is_whole "$out"
    # 3125 us a step, three launches of 10.5 us.
    grep -q '^3 launches a step (predicted 607). A step takes 3125 us, its kernels 32 us by ncu: a gap of 1031.17 us a launch' \
        "$out/bench.md" || fail "well: the gap: $(grep 'launches a step' "$out/bench.md")"
    grep -q '^| first | 768 1 1 | 128 1 1 | 2 | 21.0 | 66.7 % | 10.50 | 12.00 | 21.000 | 2000 | 67 % | 1234 |' "$out/bench.md" ||
        fail "well: the row of a kernel"
    grep -qF '| tg64 | 1 | 0 | 320.0 ± 0.5 | 1079 | 30 % | 320 | 1.00 |' "$out/bench.md" || fail "well: the row of tg64"
    grep -qF '| pp4096 | 1 | 0 | 5000.0 ± 0.5 |  |  | 20000 | **0.25** |' "$out/bench.md" || fail "well: the mark of pp4096"
}

# STEP fails; that is told with PATTERN; another step runs all the same.
planted_in() { # STEP PATTERN
    local out=$work/out-planted-$1 other=files
    [ "$1" != files ] || other=depth
    PLANT=$1 run_canned "planted-$1" --only "$1,$other"
    [ "$(cat "$out.rc")" = 1 ] || fail "planted in $1: exit $(cat "$out.rc")"
    status_is "$out" "$1" FAILED
    says "$out" "$2"
    case $1 in
    programs) status_is "$out" $other skipped ;;
    smoke) status_is "$out" $other skipped ;;
    *) status_is "$out" $other passed ;;
    esac
    is_whole "$out"
}

smoke_stops_all_but_the_tests() {
    local out=$work/out-smoke
    PLANT=smoke run_canned smoke --phase all
    status_is "$out" tests passed
    says "$out" '^tests .* 1 programs, 0 failed'
    status_is "$out" model skipped
    says "$out" '^model .*smoke: FAILED'
    says "$out" 'FAILED: memcheck smoke'
}

tools_may_refuse() {
    local out=$work/out-refuse
    REFUSE=ncu run_canned refuse --only decode-kernels
    status_is "$out" decode-kernels passed
    says "$out" 'by events; ncu: ==ERROR== ERR_NVGPUCTRPERM'
    grep -q 'times are from events' "$out/bench.md" || fail "refuse: the table does not say where times are from"
    out=$work/out-refuse2
    REFUSE=compute-sanitizer run_canned refuse2 --only memcheck
    status_is "$out" memcheck skipped
    says "$out" 'refused here'
}

phase_2_begins_with_what_failed() {
    local out=$work/out-again
    PLANT=tests run_canned first --only tests,ops-small
    run_canned again --phase 2 --after "$work/out-first/summary.txt"
    [ "$(awk 'NR > 2 { print $1 }' "$out/summary.txt" | head -n 4 | paste -sd' ')" = "info programs smoke tests" ] ||
        fail "again: order: $(awk '{ print $1 }' "$out/summary.txt" | paste -sd' ')"
    says "$out" '^tests .* 1 programs, 0 failed'
}

# 7 s are kept back for words.
time_is_limited() {
    local out=$work/out-time
    GPU_SUITE_LIMIT=9 HANG=graphs run_canned time --only graphs,ops-small
    [ "$(cat "$out.rc")" = 1 ] || fail "time: exit $(cat "$out.rc")"
    status_is "$out" graphs timeout
    status_is "$out" ops-small passed
}

# A step that the budget has cut has not failed, and what had no time at all is made up for.
budgets_hold() {
    local out=$work/out-budget
    HANG=e2e run_canned budget --phase 1 --only e2e,ops-small --budget 13
    [ "$(cat "$out.rc")" = 0 ] || fail "budget: exit $(cat "$out.rc")"
    status_is "$out" e2e cut
    status_is "$out" ops-small skipped
    run_canned made-up --phase 2 --only e2e,ops-small,depth --after "$out/summary.txt"
    [ "$(awk 'NR > 2 { print $1 }' "$work/out-made-up/summary.txt" | paste -sd' ')" = "programs e2e ops-small depth" ] ||
        fail "made-up: $(cat "$work/out-made-up/summary.txt")"
}

# A program that hangs costs its own time; it is named, and so are the others' results.
a_hanging_test_is_named() {
    local out=$work/out-hanging
    GPU_SUITE_LIMIT=28 HANG_PROGRAM=test_hazards_gpu run_canned hanging --only tests
    [ "$(cat "$out.rc")" = 1 ] || fail "hanging: exit $(cat "$out.rc")"
    says "$out" '2 programs, 1 failed, failed: test_hazards_gpu'
    says "$out" 'FAILED: test_hazards_gpu: exit 124'
    status_is "$out" tests timeout
    # Another one that fails by itself is a failure, also of a step that the budget has shortened.
    out=$work/out-hanging2
    PLANT=tests HANG_PROGRAM=test_hazards_gpu run_canned hanging2 --only tests --budget 29
    status_is "$out" tests FAILED
    says "$out" 'FAILED: test_a_gpu: tests/unit'
}

begin_hanging() { # NAME STEP: until the step is under way; sets pid
    local i
    HANG=$2 "$suite" --pack "$work/canned.tar" --only "$2" "$work/out-$1" >/dev/null 2>&1 &
    pid=$!
    for ((i = 0; i < 200; i++)); do
        grep -qs "^$2 *running" "$work/out-$1/summary.txt" && [ -s "$work/out-$1/logs.tgz" ] && return
        sleep 0.05
    done
    fail "$1: the step never ran"
}

killed_in() { # STEP
    local pid name=killed-$1
    begin_hanging "$name" "$1"
    kill -KILL $pid
    wait $pid 2>/dev/null
    status_is "$work/out-$name" "$1" running
    [ "$1" = info ] || [ "$1" = programs ] || status_is "$work/out-$name" programs passed
    rm -f "$work/out-$name/.part" # what was being renewed; the file itself is the one before
    is_whole "$work/out-$name"
}

ended_orderly() {
    local pid
    begin_hanging ended graphs
    kill -TERM $pid
    wait $pid
    [ $? = 143 ] || fail "ended: not by TERM"
    status_is "$work/out-ended" graphs cut
    is_whole "$work/out-ended"
}

options_are_checked() {
    local words
    for words in "--phase 3" "--only nonsense" "--phase 2 --only model" "--budget soon" "--nonsense" "--only" "--pack"; do
        # shellcheck disable=SC2086 # words
        "$suite" "$work/out-options" $words >/dev/null 2>&1
        [ $? = 64 ] || fail "options $words are taken"
    done
    "$suite" --pack "$work/nowhere" "$work/out-options" >/dev/null 2>&1
    [ $? = 66 ] || fail "a pack that is not there"
    [ ! -e "$work/out-options" ] || fail "wrong options leave something"
}

# A few at a time: most of them wait.
together() {
    while [ "$(jobs -rp | wc -l)" -ge 3 ]; do wait -n; done
    "$@" &
}

if [ $canned = 0 ]; then
    [ -x "$build/tests/qwen-ep-emu" ] || { echo "no emulator in $build" >&2 && exit 77; }
    together emulated
fi
together time_is_limited
together budgets_hold
together all_is_well
for name in "${all_steps[@]}"; do
    case $name in
    info) together planted_in info 'lists no GPU' ;;
    programs) together planted_in programs 'no kernel image' ;;
    smoke) together planted_in smoke '^smoke .*exit 69: qwen-ep: a kernel failed' ;;
    tests) together planted_in tests 'FAILED: test_a_gpu: tests/unit/test_a.c:12:F:some case:adds:0: status 69' ;;
    e2e) together planted_in e2e 'FAILED: q4: 4 ranks, sequences: other logits' ;;
    model) together planted_in model 'tg64, 1 sequences: 1500.0 tok/s are more than memory allows .1079.' ;;
    ops-*) together planted_in "$name" "FAILED: bench_cuda --only ${name#ops-}, exit 69: bench_cuda: no" ;;
    nccl) together planted_in nccl 'FAILED: test_nccl_gpu' ;;
    *check) together planted_in "$name" "FAILED: $name model: exit 99" ;;
    files) together planted_in files 'FAILED: synth, exit 73' ;;
    *) together planted_in "$name" 'FAILED: .*exit 69' ;;
    esac
    together killed_in "$name"
done
together a_hanging_test_is_named
together smoke_stops_all_but_the_tests
together tools_may_refuse
together phase_2_begins_with_what_failed
together ended_orderly
together options_are_checked
wait
echo "$SECONDS s"
cat "$failures"
[ ! -s "$failures" ]
