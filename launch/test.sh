#!/bin/bash
# test.sh [--full] [STAGE...]: every check of the project, from a fresh checkout, stage by stage with
# a time budget each; --full fuzzes for an hour per target instead of seconds, damages thousands of
# inputs more, and makes the pack for machines with a GPU. The last line is "N passed, N failed, N
# skipped": test cases, and stages that have none. Logs: build/test/logs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=launch/mpi_env.sh
. launch/mpi_env.sh
export LC_ALL=C OMPI_MCA_rmaps_base_oversubscribe=1

work=$PWD/build/test
logs=$work/logs
jobs=$(nproc)
full=0 fuzz_seconds=10
passed=0 failed=0 skipped=0
wanted=()

for arg in "$@"; do
    case $arg in
    --full) full=1 fuzz_seconds=3600 ;;
    -*)
        echo "usage: test.sh [--full] [STAGE...]" >&2
        exit 64
        ;;
    *) wanted+=("$arg") ;;
    esac
done

count() { # PASSED FAILED SKIPPED
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
}

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

is_wanted() {
    [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]
}

# The cases that a ctest run counted, from its JUnit file: "PASSED FAILED SKIPPED". A test whose
# program is missing is no skip but a failure.
junit_counts() {
    local head tests failures skips missing
    head=$(sed -n '/<testsuite/,/>/p' "$1" | tr '\n\t' '  ')
    number() { sed -n "s/.* $1=\"\([0-9]*\)\".*/\1/p" <<<"$head"; }
    tests=$(number tests) failures=$(number failures)
    skips=$(($(number skipped) + $(number disabled)))
    missing=$(grep -c '<skipped message="Unable to find' "$1")
    echo "$((tests - failures - skips)) $((failures + missing)) $((skips - missing))"
}

# stage NAME BUDGET: status 0 passed, 77 skipped (the log's last line says why), else failed.
stage() {
    local name=$1 budget=$2 log=$logs/$1.log junit=$work/junit-$1.xml
    local begin=$SECONDS rc seconds counts
    is_wanted "$name" || return 0
    rm -f "$junit"
    junit=$junit timeout -k 10 "$budget" launch/test_stage.sh "$name" >"$log" 2>&1 </dev/null
    rc=$?
    seconds=$((SECONDS - begin))
    counts=$([ -s "$junit" ] && junit_counts "$junit")
    case $rc in
    0) verdict=passed ;;
    77) verdict="skipped: $(tail -n 1 "$log")" ;;
    124 | 137) verdict="FAILED: over its time budget" ;;
    *) verdict="FAILED" ;;
    esac
    printf '%-10s %4d s of %4d s  %s%s\n' "$name" "$seconds" "$budget" "$verdict" \
        "${counts:+ (cases passed, failed, skipped: $counts)}"
    if [ "$rc" -eq 77 ]; then
        count 0 0 1
    elif [ -n "$counts" ]; then
        # shellcheck disable=SC2086 # three numbers
        count $counts
        [ "$rc" -eq 0 ] || [ "$(cut -d' ' -f2 <<<"$counts")" -gt 0 ] || count 0 1 0
    else
        count $((rc == 0)) $((rc != 0)) 0
    fi
    if [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ]; then
        grep -vE '^ *Start +[0-9]+:| Passed |^\[ *[0-9]+%\] ' "$log" | tail -n 60 | sed 's/^/    | /'
    fi
}

num_fuzz_rounds() { # targets over cores, rounded up
    local n
    n=$(find tests/fuzz -name 'fuzz_*.c' | wc -l)
    echo $(((n + jobs - 1) / jobs))
}

mkdir -p "$logs"
if ! launch/setup.sh test; then
    count 0 1 0
    finish
fi
export logs work jobs fuzz_seconds

stage format 60
stage shell 60
stage gcc 300
stage unit 900
stage e2e 400
stage emu 300
stage defects 900
stage no-mpi 300
stage nvcc 900
[ $full = 0 ] || stage pack 1500
[ $full = 0 ] || stage memory 3600
[ $full = 0 ] || stage hostile 1500
stage clang 300
stage asan 1200
stage tsan 900
stage fuzz $((300 + $(num_fuzz_rounds) * (fuzz_seconds + 30)))
finish
