#!/bin/bash
# Outputs and standard streams: what a path stands for, what is left when a run ends early, closed descriptors.
# Devices are only ever named through links in the scratch directory.
# usage: outputs.sh path/to/qwen-ep [path/to/bench_cuda]
set -u
exe=$1 bench_cuda=${2-}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
d=$work/d
passed=0 failed=0
have_mpi=0
command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi && have_mpi=1

expect() { # label, expected, found
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $1: expected '$2', found '$3'"
        head -n 3 "$work/err" | cut -c1-300
    fi
}

# The command's code, and exactly one line of ours that matches when it is not 0.
check() { # label, code, pattern, command...
    local label=$1 want=$2 pattern=$3 code
    shift 3
    timeout 30 "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    if [ "$want" != 0 ] && { [ "$(grep -c '^qwen-ep:' "$work/err")" != 1 ] || ! grep -Eq "^qwen-ep:.*$pattern" "$work/err"; }; then
        code="$code without one line '$pattern'"
    fi
    expect "$label" "$want" "$code"
}

left() { # what is in the directory of outputs
    ls -A "$d"
}

fresh() {
    rm -rf "$d"
    mkdir "$d"
}

"$exe" convert --from tests/data/tiny-chat --to "$work/m" --recipe q4 2>"$work/err" || { cat "$work/err"; exit 1; }
short=("$exe" run --model "$work/m" --prompt hi --max-new-tokens 4 --ignore-eos --quiet)
long=("$exe" run --model "$work/m" --prompt hi --max-new-tokens 3900 --ignore-eos --backend reference)
base=$work/base
check plain 0 '' "${short[@]}" --logits "$base"
cp "$work/out" "$work/text"
same() { # label, file
    expect "$1" same "$(cmp "$base" "$2" 2>&1 && echo same)"
}

# --- what the path stands for
fresh
check empty-name 64 "--logits: expected a path, found ''" "${short[@]}" --logits ''
check directory 73 "$d: is a directory" "${short[@]}" --logits "$d"
check no-parent 73 "$d/no/x" "${short[@]}" --logits "$d/no/x"
ln -s loop "$d/loop"
check loop 73 "$d/loop" "${short[@]}" --logits "$d/loop"
mkfifo "$d/fifo"
check fifo 64 'sought' "${short[@]}" --logits "$d/fifo"
expect fifo-stays fifo "$([ -p "$d/fifo" ] && echo fifo)"
ln -s /dev/null "$d/null"
check null 0 '' "${short[@]}" --logits "$d/null"
expect null-stays "link /dev/null" "$([ -L "$d/null" ] && echo link "$(readlink "$d/null")")"
check pipe 64 'sought' bash -c '"$@" 9> >(cat >/dev/null) --logits /dev/fd/9' - "${short[@]}"
expect refused-left "fifo loop null" "$(left | xargs)"

fresh
echo mine >"$d/f.tmp"
echo old >"$d/target"
chmod 640 "$d/target"
ln -s target "$d/f"
check through-link 0 '' "${short[@]}" --logits "$d/f"
same link-target "$d/target"
expect link-mode 640 "$(stat -c %a "$d/target")"
expect link-stays target "$(readlink "$d/f")"
expect user-tmp mine "$(cat "$d/f.tmp")"
ln -s new "$d/dangling"
check dangling 0 '' "${short[@]}" --logits "$d/dangling"
same dangling-target "$d/new"
expect links-left "dangling f f.tmp new target" "$(left | xargs)"
echo old >"$d/target"
cp -r "$work/m" "$work/broken"
truncate -s -1 "$work/broken"/shard-00-of-*.qep
check failed 65 'shard-00' "$exe" run --model "$work/broken" --quiet --prompt hi --logits "$d/f"
expect failed-left "old dangling f f.tmp new target" "$(cat "$d/target") $(left | xargs)"

fresh
echo old >"$d/f"
# shellcheck disable=SC2016
check own-stdout 64 'stdout' bash -c '"${@:2}" --logits "$1" >>"$1"' - "$d/f" "${short[@]}"
# shellcheck disable=SC2016
check own-stderr 64 'stderr' bash -c '"${@:2}" --logits "$1" 2>>"$1"; code=$?; grep ^qwen-ep: "$1" >&2; exit $code' - "$d/f" "${short[@]}"
expect own-left f "$(left | xargs)"

fresh
"${short[@]}" --logits "$d/f" >/dev/null 2>&1 &
one=$!
"${short[@]}" --logits "$d/f" >/dev/null 2>"$work/err"
expect two-second 0 $?
wait $one
expect two-first 0 $?
same two "$d/f"
expect two-left f "$(left | xargs)"

# --- bench's files go through the same door
fresh
timed=("$exe" bench --model "$work/m" --quiet -p 1 -n 0 -r 1 --backend cpu --cuda-graphs off)
check times-empty 64 "--launch-times: expected a path, found ''" "${timed[@]}" --launch-times ''
check times-directory 73 'is a directory' "${timed[@]}" --launch-times "$d"
echo old >"$d/times"
check times-decode 64 'backend has no launches' "$exe" bench --model "$work/m" --quiet -p 0 -n 1 -r 1 --backend cpu --cuda-graphs off --launch-times "$d/times"
expect times-decode-kept old "$(cat "$d/times")"
check times-own-pipe 64 "is what this program's stdout is" bash -c '{ "$@" --launch-times /dev/stdout; echo $? >'"$work/code"'; } | cat; exit "$(cat '"$work/code"')"' - "${timed[@]}"
check times-failed 64 'has no launches' "${timed[@]}" --launch-times "$d/times"
expect times-kept old "$(cat "$d/times")"
if [ -n "$bench_cuda" ]; then
    peaks() {
        "$bench_cuda" --only peaks --tiny --repeats 1 --json "$1" >/dev/null 2>"$work/err"
        echo $?
    }
    expect json-directory 73 "$(peaks "$d")"
    expect json-file 0 "$(peaks "$d/json")"
    mkfifo "$d/fifo"
    cat "$d/fifo" >"$d/read" &
    expect json-fifo 0 "$(peaks "$d/fifo")"
    wait $!
    expect json-read 2 "$(grep -c '}$\|\[$' "$d/read")"
    ln -s /dev/null "$d/null"
    expect json-null 0 "$(peaks "$d/null")"
    expect json-left "fifo json null read times" "$(left | xargs)"
else
    echo "bench_cuda is not built here: its --json not tried"
fi

# --- what is read is not written over
fresh
cp -r "$work/m" "$d/m"
echo hi >"$d/prompt"
ln "$d/prompt" "$d/same"
ln -s m/tokenizer.json "$d/link"
echo old >"$d/m/mine.safetensors"
mine=("$exe" run --model "$d/m" --max-new-tokens 1 --quiet)
check over-weights 64 'would replace what this command reads' "${mine[@]}" --prompt x --logits "$d/m/embed.qep"
check over-manifest 64 'would replace' "${mine[@]}" --prompt x --logits "$d/m/manifest.json"
check over-tokenizer 64 'would replace' "${mine[@]}" --prompt x --logits "$d/link"
check over-prompt 64 'would replace.*prompt' "${mine[@]}" --prompt-file "$d/prompt" --logits "$d/same"
check over-times 64 'would replace' "$exe" bench --model "$d/m" --cuda-graphs off --launch-times "$d/m/layer-000.qep"
check beside-weights 0 '' "${mine[@]}" --prompt x --logits "$d/m/mine.safetensors"
expect spared "same hi" "$(diff -r -x mine.safetensors "$work/m" "$d/m" >/dev/null && echo same) $(cat "$d/prompt")"

# --- asked to end
started() { # label, number of files: waits for an output that is being written, and for tokens
    for _ in $(seq 400); do
        [ "$(left | wc -l)" = "$2" ] && [ -s "$work/out" ] && break
        sleep 0.02
    done
    expect "$1: being written" "$2" "$(left | wc -l)"
}

signalled() { # label, signal, expected code, command...
    local label=$1 signal=$2 want=$3
    shift 3
    fresh
    echo old >"$d/f"
    : >"$work/out"
    timeout 30 "$@" --logits "$d/f" >"$work/out" 2>"$work/err" </dev/null &
    local job=$!
    started "$label" 2
    kill -"$signal" "$(pgrep -P $job)"
    wait $job 2>/dev/null # what a signal ended is no news
    local code=$?
    [ -z "$want" ] || expect "$label: code" "$want" $code
    expect "$label: left" "f old" "$(left | xargs) $(cat "$d/f")"
}

for signal in HUP TERM INT USR1; do
    signalled $signal $signal 75 "${long[@]}"
    expect "$signal: line" 1 "$(grep -c '^qwen-ep: interrupted' "$work/err")"
done
signalled USR2 USR2 140 "${long[@]}"
signalled threads TERM 75 "${long[@]}" --transport threads --ranks 2

signalled real-time 40 168 "${long[@]}"

# The path is another thing when the run is done: what is there by then is not replaced.
meanwhile() { # label, expected code, what happens in the directory of outputs
    local label=$1 want=$2
    fresh
    : >"$work/out"
    timeout 30 "${long[@]}" --max-new-tokens 600 --logits "$d/o" >"$work/out" 2>"$work/err" </dev/null &
    local job=$!
    started "$label" 1
    (cd "$d" && eval "$3")
    wait $job
    expect "$label: code" "$want" $?
}
meanwhile fifo-came 73 'mkfifo o'
expect fifo-came-left "fifo 1" "$([ -p "$d/o" ] && echo fifo) $(left | wc -l)"
meanwhile link-came 73 'ln -s real o'
expect link-came-left "real 1" "$(readlink "$d/o") $(left | wc -l)"
meanwhile moved 0 "mv $d $d.moved && mkdir $d"
expect moved-left "o" "$(left | xargs)$(cd "$d.moved" && find . -type f -size +1000k -printf '%f')"
rm -rf "$d.moved"

# Asked to stop before it waits for a pipe, and while it does.
fresh
mkfifo "$d/in" "$d/times"
stopped() { # label, seconds until the signal, command...
    timeout -k 1 5 "${@:3}" >"$work/out" 2>"$work/err" </dev/null &
    local job=$!
    sleep "$2"
    kill -TERM $job
    wait $job 2>/dev/null
    local code=$?
    [ $code = 75 ] || [ $code = 143 ] # the default, before there is a handler
    expect "$1, TERM after $2 s" 0 $?
}
for after in 0.002 0.004 0.3; do
    stopped prompt-fifo $after "$exe" run --model "$work/m" --prompt-file "$d/in"
    stopped config-fifo $after "$exe" run --config-file "$d/in"
done
stopped times-fifo 0.3 "${timed[@]}" --launch-times "$d/times"
(
    trap '' INT
    exec "${long[@]}" --max-new-tokens 600 --logits "$d/o" >"$work/out" 2>"$work/err" </dev/null
) &
job=$!
for _ in $(seq 200); do [ "$(left | wc -l)" = 3 ] && break || sleep 0.02; done
kill -INT $job
wait $job
expect "INT ignored from the start" 0 $?

closed_pipe() { # label, command...
    fresh
    { timeout 30 "${@:2}" --logits "$d/f" 2>"$work/err" </dev/null; echo $? >"$work/code"; } | head -c 5 >/dev/null
    expect "$1: left" "" "$(left | xargs)"
}
closed_pipe closed-pipe "${long[@]}"
expect closed-pipe-code 74 "$(cat "$work/code")"
expect closed-pipe-line 1 "$(grep -c '^qwen-ep: stdout: write failed: Broken pipe$' "$work/err")"
{ "$exe" inspect "$work/m" --ranks 4000 2>"$work/err"; echo $? >"$work/code"; } | head -n 1 >/dev/null
expect inspect-closed-pipe "74 1" "$(cat "$work/code") $(grep -c '^qwen-ep: stdout: write failed: Broken pipe$' "$work/err")"

# Its reader does not read: the run waits in a write (asleep each time one looks) when it is asked to stop.
asleep() { # pid
    for _ in 1 2 3 4 5 6; do
        grep -q ' S ' "/proc/$1/stat" || return
        sleep 0.02
    done
}
fresh
rm -f "$work/err" "$work/code"
{
    perl -e 'fcntl(STDOUT, 1031, 4096) or die "F_SETPIPE_SZ: $!"; exec @ARGV' timeout 30 "${long[@]}" --backend cpu --temperature 3 --seed 1 \
        --logits "$d/f" 2>"$work/err" </dev/null
    echo $? >"$work/code"
} | {
    for _ in $(seq 400); do
        grep -qs loaded: "$work/err" && job=$(pgrep -P "$(pgrep -f "^timeout 30 .*--logits $d/f")") && asleep "$job" && break
        sleep 0.02
    done
    kill -TERM "$job"
    for _ in $(seq 100); do
        [ -s "$work/code" ] && break
        sleep 0.02
    done
} >/dev/null
expect blocked "75 1 " "$(cat "$work/code") $(grep -c '^qwen-ep:.*interrupted' "$work/err") $(left)"

if [ $have_mpi = 1 ]; then
    mpi=(mpirun --quiet -np 2 --oversubscribe --bind-to none "${long[@]}")
    # The launcher takes two seconds to end a job: side by side, each in a directory of its own.
    beside() { # name, command...
        (
            work=$work/$1 passed=0 failed=0
            d=$work/d
            mkdir "$work"
            "${@:2}"
            echo "$passed $failed" >"$work/count"
        ) &
        names+=("$1")
    }
    names=()
    for signal in HUP TERM; do
        beside $signal signalled "mpirun, $signal" $signal '' "${mpi[@]}"
    done
    # Another rank dies: the launcher ends rank 0 by SIGTERM.
    beside killed signalled "mpirun, rank 1 killed" 0 137 bash -c '"$@" & job=$!
        for i in $(seq 400); do [ -s "$0" ] && break; sleep 0.02; done
        for rank in $(pgrep -P $job qwen-ep); do grep -qz OMPI_COMM_WORLD_RANK=1 /proc/$rank/environ && kill -KILL $rank; done
        wait $job' "$work/killed/out" "${mpi[@]}"
    wait
    for name in "${names[@]}"; do
        read -r more_passed more_failed <"$work/$name/count"
        passed=$((passed + more_passed)) failed=$((failed + more_failed))
    done
    closed_pipe mpirun-closed-pipe "${mpi[@]}"
else
    echo "mpirun not used: built without MPI"
fi

# nohup: who ignores the hangup goes on.
fresh
(trap '' HUP; exec "${long[@]}" --logits "$d/f" >"$work/out" 2>"$work/err" </dev/null) &
job=$!
started nohup 1
kill -HUP $job
sleep 0.3
expect nohup running "$(kill -0 $job 2>/dev/null && echo running)"
kill -TERM $job
wait $job
expect nohup-ended 75 $?

# convert and synth stop at a hangup as at SIGTERM.
hangup() { # label, command...
    fresh
    "${@:2}" >/dev/null 2>"$work/err" &
    local job=$!
    for _ in $(seq 400); do
        [ -n "$(left)" ] && break
        sleep 0.01
    done
    kill -HUP $job
    wait $job 2>/dev/null
    expect "$1, HUP" 75 $?
}
hangup convert "$exe" convert --from tests/data/tiny-chat --to "$d/m" --recipe bf16 --jobs 1 --compress max
hangup synth "$exe" synth --config configs/synth-35b-4layers.json --out "$d/m" --jobs 1

# --- a limit of the file's size stands in for a full disk
fresh
# shellcheck disable=SC2016
check size-limit 74 'File too large' bash -c 'ulimit -f 50; exec "$@"' - "${long[@]}" --logits "$d/f"
expect size-limit-left "" "$(left)"
# shellcheck disable=SC2016
check size-limit-convert 74 'File too large' bash -c 'ulimit -f 50; exec "$@"' - "$exe" convert --from tests/data/tiny-chat \
    --to "$d/m" --recipe bf16 --jobs 1

# --- closed standard streams
for closed in 0 1 2 01 02 12 012; do
    fresh
    redirections=$(sed 's/./ &>\&-/g' <<<"$closed")
    bash -c "\"\$@\" $redirections" - "${short[@]}" --logits "$d/f" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    if [[ $closed == *1* ]]; then
        expect "closed $closed" "74 " "$code $(left)"
    else
        expect "closed $closed" 0 $code
        same "closed $closed: file" "$d/f"
        expect "closed $closed: text" same "$(cmp "$work/out" "$work/text" 2>&1 && echo same)"
    fi
done
for command in --help --version "run --help" "bench --help" "inspect $work/m" "tokenize --model $work/m --text x"; do
    # shellcheck disable=SC2016
    check "closed stdout: $command" 74 'stdout: write failed: Bad file descriptor' bash -c "exec \"\$1\" $command >&-" - "$exe"
    # shellcheck disable=SC2016
    [ ! -c /dev/full ] || check "full stdout: $command" 74 'stdout: write failed: No space' bash -c "exec \"\$1\" $command >/dev/full" - "$exe"
done
[ -c /dev/full ] || echo "no /dev/full here: a full stdout not tried"
# shellcheck disable=SC2016
for from in '<&-' '</'; do
    check "chat, stdin $from" 74 'stdin: read failed' bash -c 'exec "$@" '"$from" - "$exe" run --model "$work/m" --quiet -i
    check "requests, stdin $from" 74 'stdin: read failed' bash -c 'exec "$@" '"$from" - "$exe" tokenize --model "$work/m" --jsonl
    check "text file, stdin $from" 74 'stdin: read failed' bash -c 'exec "$@" '"$from" - "$exe" tokenize --model "$work/m" --text-file -
done

echo "outputs: $passed passed, $failed failed"
[ $failed = 0 ]
