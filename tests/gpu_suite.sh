#!/bin/bash
# gpu_suite.sh [OPTIONS] [OUT_DIR]: everything that needs a GPU, in two phases of minutes each, on a
# rented or bare machine without network (docs/gpu.md). OUT_DIR (./gpu-suite-out) gets three files,
# renewed after every step: summary.txt, bench.md and logs.tgz. A failed step stops only what needs
# it. Exit 0: nothing failed.
#   --pack FILE        programs made by launch/gpu_pack.sh; without it they are built here
#   --deps DIR         for building here: a directory of launch/make_deps.sh --check
#   --phase 1|2|all    1: is it right, how fast; 2: the rest, and what failed before (default all)
#   --after SUMMARY    phase 2 begins with what this summary.txt of phase 1 says failed
#   --only STEP,...    these steps, in the order of the phases
#   --budget SECONDS   for all steps (default 350 and 235 for phases 1 and 2)
#   --tiny             sizes for a machine that only emulates
set -uo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export LC_ALL=C

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 64
}
value() { [ $# -ge 2 ] && [ -n "$2" ] || usage; }
path() { if [[ $1 == /* ]]; then echo "$1"; else echo "$here/$1"; fi; }

pack='' deps='' phase=all after='' only='' budget='' tiny=0 out=$here/gpu-suite-out
while [ $# -gt 0 ]; do
    case $1 in
    --pack) value "$@" && pack=$(path "$2") && shift ;;
    --deps) value "$@" && deps=$(path "$2") && shift ;;
    --phase) value "$@" && phase=$2 && shift ;;
    --after) value "$@" && after=$(path "$2") && shift ;;
    --only) value "$@" && only=$2 && shift ;;
    --budget) value "$@" && budget=$2 && shift ;;
    --tiny) tiny=1 ;;
    -*) usage ;;
    *) out=$(path "$1") ;;
    esac
    shift
done

# ---- steps: name, limit in seconds ----

steps_1=(info:60 programs:300 smoke:60 tests:110 e2e:70 model:90 graphs:50 decode-kernels:100 ops-small:30
    ops-delta:35 ops-matmul:60)
steps_2=(ops-experts:50 ops-attention:50 prefill-kernels:100 depth:50 nccl:60 files:60 memcheck:70 racecheck:60
    synccheck:60)
limit_of() {
    local entry limit=''
    for entry in "${steps_1[@]}" "${steps_2[@]}"; do
        [ "${entry%:*}" != "$1" ] || limit=${entry#*:}
    done
    # For tests of this script.
    [ -z "$limit" ] || echo $((limit <= ${GPU_SUITE_LIMIT:-limit} ? limit : GPU_SUITE_LIMIT))
}
least=12 # seconds that a step is begun with

[ -z "$pack" ] || [ -r "$pack" ] || { echo "gpu_suite: $pack: cannot be read" >&2 && exit 66; }
# Not worth a machine that has been started.
[ -z "$after" ] || [ -r "$after" ] || { echo "gpu_suite: $after: cannot be read; going on without" >&2 && after=; }
case $phase in
1) steps=("${steps_1[@]%:*}") && budget=${budget:-350} ;;
2) steps=(info programs smoke "${steps_2[@]%:*}") && budget=${budget:-235} ;;
all) steps=("${steps_1[@]%:*}" "${steps_2[@]%:*}") && budget=${budget:-585} ;;
*) usage ;;
esac
[[ $budget =~ ^[0-9]+$ ]] || usage
# What failed before, or had no time, comes right after what everything needs.
if [ -n "$after" ]; then
    again=()
    while read -r name; do
        [ -z "$(limit_of "$name")" ] || [[ " ${steps[*]} " == *" $name "* ]] || again+=("$name")
    done < <(awk '$2 ~ /^(FAILED|timeout|cut|running)$/ || / no time left of / { print $1 }' "$after")
    steps=("${steps[@]:0:3}" "${again[@]}" "${steps[@]:3}")
    SUITE_TESTS=$(sed -n 's/^tests .* failed: //p' "$after")
    export SUITE_TESTS
fi

for name in ${only//,/ }; do
    [[ " ${steps[*]} " == *" $name "* ]] ||
        { echo "gpu_suite: --only: phase $phase has no step $name: ${steps[*]}" >&2 && exit 64; }
done

mkdir -p "$out" || exit 73
SUITE_WORK=$(mktemp -d) || exit 73
# Results and logs, which come back; whatever is large or unpacked, which does not.
SUITE_RES=$SUITE_WORK/results SUITE_TMP=$SUITE_WORK/tmp SUITE_PROGRAMS=$SUITE_WORK/programs
mkdir -p "$SUITE_RES" "$SUITE_TMP"
SUITE_PID=$$ SUITE_TINY=$tiny SUITE_PACK=$pack SUITE_DEPS=$deps
export SUITE_WORK SUITE_RES SUITE_TMP SUITE_PROGRAMS SUITE_PID SUITE_TINY SUITE_PACK SUITE_DEPS
# A driver without persistence takes seconds to come up for every first process: keep one open. No
# setting is changed.
if [ -r /dev/nvidia0 ] && (: </dev/nvidia0) 2>/dev/null; then exec 9</dev/nvidia0; fi

# ---- what comes back ----

rows=() running='' failed=0
declare -A status_of=()

put() { # FILE NAME: as OUT_DIR/NAME, whole or not at all
    cp "$1" "$out/.part" && mv "$out/.part" "$out/$2"
}

summary() {
    echo "qwen-ep GPU suite, phase $phase, commit $(cat "$SUITE_RES/commit" 2>/dev/null || echo unknown)," \
        "$SECONDS s of $budget s"
    printf '%-15s %-8s %8s  %s\n' step status seconds note
    [ ${#rows[@]} -eq 0 ] || printf '%s\n' "${rows[@]}"
    [ -z "$running" ] || printf '%-15s %-8s\n' "$running" running
    # What was said first of every failure.
    local name
    for name in "${steps[@]}"; do
        [[ ${status_of[$name]:-} == FAILED || ${status_of[$name]:-} == timeout ]] || continue
        echo
        echo "$name:"
        { grep -a '^FAILED' "$SUITE_RES/$name.log" || tail -n 5 "$SUITE_RES/$name.log"; } |
            cut -c1-300 | head -n 12 | sed 's/^/    /'
    done
}

# Logs may be endless: of a long one the beginning and the end are kept. Results stay whole.
shorten_logs() {
    local file
    find "$SUITE_RES" -type f \( -name '*.log' -o -name '*.err' \) -size +1024k | while IFS= read -r file; do
        { head -c 400000 "$file" && echo && echo '[... cut ...]' && tail -c 400000 "$file"; } >"$SUITE_TMP/cut"
        mv "$SUITE_TMP/cut" "$file"
    done
}

publish() {
    summary >"$SUITE_TMP/summary" && put "$SUITE_TMP/summary" summary.txt
    tests/gpu/report.sh "$SUITE_RES" >"$SUITE_TMP/bench" 2>&1 && put "$SUITE_TMP/bench" bench.md
    tar -C "$SUITE_RES" -czf "$SUITE_TMP/logs" . 2>/dev/null
    if [ "$(wc -c <"$SUITE_TMP/logs")" -gt 8000000 ]; then
        (cd "$SUITE_RES" && find . -type f -size -200k -print0 |
            tar -czf "$SUITE_TMP/logs" --null -T -) 2>/dev/null
    fi
    put "$SUITE_TMP/logs" logs.tgz
}

# ---- running steps ----

# A process and all that came from it.
tree_of() {
    local child
    echo "$1"
    for child in $(cat /proc/[0-9]*/stat 2>/dev/null |
        awk -v of="$1" '{ pid = $1; sub(/^.*\) /, ""); if ($2 == of) print pid }'); do
        tree_of "$child"
    done
}

kill_tree() { # PID
    local all
    mapfile -t all < <(tree_of "$1")
    kill -TERM "${all[@]}" 2>/dev/null
    sleep 0.5
    kill -KILL "${all[@]}" 2>/dev/null
}

step_pid=''
leave() {
    trap - TERM INT HUP
    [ -z "$step_pid" ] || kill_tree "$step_pid"
    [ -z "$running" ] || { rows+=("$(printf '%-15s %-8s' "$running" cut)") && running=''; }
    publish
    rm -rf "$SUITE_WORK"
    exit 143
}
trap leave TERM INT HUP

finish_step() { # NAME STATUS SECONDS NOTE
    running='' status_of[$1]=$2
    [[ $2 != FAILED && $2 != timeout ]] || failed=1
    rows+=("$(printf '%-15s %-8s %8d  %s' "$1" "$2" "$3" "$(printf %s "$4" | tr '\n\t' '  ' | cut -c1-600)")")
    printf '%s\n' "${rows[-1]}" >&2
    publish
}

# Status 124 past the limit. Every few seconds what there is so far comes back.
run_limited() { # LIMIT NAME
    local begin=$SECONDS told=$SECONDS
    tests/gpu/steps.sh "$2" >"$SUITE_RES/$2.log" 2>&1 </dev/null &
    step_pid=$!
    while kill -0 "$step_pid" 2>/dev/null; do
        sleep 0.05
        if [ $((SECONDS - begin)) -ge "$1" ]; then
            kill_tree "$step_pid"
            wait "$step_pid" 2>/dev/null
            step_pid=''
            return 124
        fi
        [ $((SECONDS - told)) -lt 15 ] || { told=$SECONDS && publish; }
    done
    wait "$step_pid"
    local rc=$?
    step_pid=''
    return $rc
}

# What must have passed; a smoke test that failed leaves the tests, which say where.
missing_of() {
    case $1 in
    info | programs) ;;
    smoke | tests) [[ ${status_of[programs]:-} == passed ]] || echo programs ;;
    *)
        [[ ${status_of[programs]:-} == passed ]] || { echo programs && return; }
        [[ ${status_of[smoke]:-passed} == passed ]] || echo smoke
        ;;
    esac
}

# What was found counts, however the step ended. Only out of time, it has failed unless the budget had
# left it less than usual.
status_of_failed() { # NAME RC LIMIT
    if grep -a '^FAILED' "$SUITE_RES/$1.log" | grep -qv 'exit 124'; then
        echo FAILED
    elif [ "$2" -ne 124 ] && [ ! -e "$SUITE_RES/$1.short" ]; then
        echo FAILED
    elif [ "$3" -lt "$(limit_of "$1")" ]; then
        echo cut
    else
        echo timeout
    fi
}

run_step() { # NAME
    local name=$1 limit need left=$((budget - SECONDS)) begin=$SECONDS rc status
    limit=$(limit_of "$name") need=$(missing_of "$name")
    if [ -n "$need" ]; then
        finish_step "$name" skipped 0 "$need: ${status_of[$need]:-not run}"
        return
    fi
    [ "$left" -ge "$limit" ] || limit=$left
    if [ "$left" -lt $least ]; then
        finish_step "$name" skipped 0 "no time left of $budget s"
        return
    fi
    running=$name
    publish
    rm -f "$SUITE_RES/$name.short"
    SUITE_LIMIT=$limit SUITE_SMOKE=${status_of[smoke]:-passed} run_limited "$limit" "$name"
    rc=$?
    case $rc in
    0) status=passed ;;
    77) status=skipped ;;
    *) status=$(status_of_failed "$name" "$rc" "$limit") ;;
    esac
    shorten_logs
    finish_step "$name" $status $((SECONDS - begin)) \
        "$(grep -a '^note: ' "$SUITE_RES/$name.log" | tail -n 1 | cut -c7- | grep . || tail -n 1 "$SUITE_RES/$name.log")"
}

for name in "${steps[@]}"; do
    [ -z "$only" ] || [[ ",$only,programs," == *",$name,"* ]] || continue
    run_step "$name"
done
rm -rf "$SUITE_WORK"
cat "$out/summary.txt"
exit $failed
