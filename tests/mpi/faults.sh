#!/bin/bash
# faults.sh MPIRUN PROGRAM MODE: starts mpi_rank under mpirun and judges exit code and stderr.
set -u
mpirun=$1 program=$2 mode=$3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

start() { # NP ARGS...: sets rc, seconds; stderr lines of ours in $dir/lines
    local np=$1 begin=$SECONDS
    shift
    "$mpirun" -np "$np" --oversubscribe --bind-to none "$program" "$@" \
        >"$dir/out" 2>"$dir/err" </dev/null
    rc=$?
    seconds=$((SECONDS - begin))
    grep '^qwen-ep:' "$dir/err" >"$dir/lines"
}

expect() { # WHAT CONDITION...
    local what=$1
    shift
    if ! "$@"; then
        echo "faults.sh: $mode: $what ($*)" >&2
        cat "$dir/out" "$dir/err" >&2
        exit 1
    fi
}

expect_line() { # TEXT: our only line on stderr
    expect "one line on stderr" test "$(wc -l <"$dir/lines")" -eq 1
    expect "the line" test "$(cat "$dir/lines")" = "$1"
}

case $mode in
hang)
    start 3 hang 2
    expect "exit code" test "$rc" -eq 75
    expect_line 'qwen-ep: rank 0: no progress for 1 s in dispatch, layer 3, step 20, waiting for rank 2'
    expect "in time" test "$seconds" -le 10
    start 4 hang 0
    expect "exit code" test "$rc" -eq 75
    expect_line 'qwen-ep: rank 1: no progress for 1 s in dispatch, layer 3, step 20, waiting for rank 0'
    expect "in time" test "$seconds" -le 12
    ;;
fail)
    for who in 0 1 3; do
        start 4 fail $who
        expect "exit code" test "$rc" -eq 66
        expect_line "qwen-ep: rank $who: cannot open x.safetensors"
    done
    ;;
mixed)
    for how in 0 1 2; do
        start 3 mixed $how
        expect "exit code" test "$rc" -eq 70
        expect "the line" grep -Eq '^qwen-ep: rank [012]: rank [012] is in another operation \(.*\) than rank [012] \(' "$dir/lines"
        expect "in time" test "$seconds" -le 10
    done
    ;;
alike)
    start 4 alike
    expect "exit code" test "$rc" -eq 64
    expect_line 'qwen-ep: unknown option --frob'
    ;;
abort)
    start 3 abort 1
    expect "exit code" test "$rc" -eq 74
    expect "in time" test "$seconds" -le 10
    ;;
kill)
    start 3 kill 1
    expect "exit code" test "$rc" -eq 137
    expect "in time" test "$seconds" -le 10
    ;;
drain)
    "$mpirun" -np 3 --oversubscribe --bind-to none "$program" drain 2>"$dir/err" </dev/null &
    pid=$!
    for ((i = 0; i < 200; i++)); do
        grep -q ready "$dir/err" && break
        sleep 0.1
    done
    kill -USR1 "$pid"
    wait "$pid"
    rc=$?
    : >"$dir/out"
    expect "exit code" test "$rc" -eq 0
    ;;
cpus)
    # One rank, bound by the launcher to one core, gets the host's CPUs; two share them.
    all=$(nproc)
    "$mpirun" -np 1 --bind-to core "$program" cpus 1 >"$dir/out" 2>"$dir/err" </dev/null
    expect "one rank has all" grep -q "^rank 0: $all of $all CPUs" "$dir/out"
    if [ "$all" -ge 2 ]; then
        "$mpirun" -np 2 --bind-to core "$program" cpus 1 >"$dir/out" 2>"$dir/err" </dev/null
        expect "half for rank 0" grep -q "^rank 0: $((all / 2)) of $all CPUs" "$dir/out"
        "$mpirun" -np 2 --bind-to core "$program" cpus 0 >"$dir/out" 2>"$dir/err" </dev/null
        expect "keep" grep -Eq "^rank 1: [0-9]+ of $all CPUs" "$dir/out"
    fi
    start $((all + 1)) cpus 1
    expect "more ranks than CPUs" test "$(grep -c ": 1 of $all CPUs, [0-9]*$" "$dir/out")" -eq $((all + 1))
    ;;
*)
    echo "faults.sh: no such mode: $mode" >&2
    exit 1
    ;;
esac
