#!/bin/bash
# Ranks that stop, and ranks that are asked to stop, through the real command line: who is blamed, and that the job ends.
# A FIFO as --prompt-file holds a job in start-up for as long as a case wants.
# usage: stops.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if ! command -v mpirun >/dev/null || ! ldd "$exe" | grep -q libmpi; then
    echo "stops.sh: no MPI, nothing to do"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
limit=1
grep -qm1 __asan_init "$exe" && limit=2
gone='does not answer: stopped, swapped out or its host is gone'

"$exe" convert --from tests/data/tiny-chat --to "$work/m" --recipe q4 2>"$work/err" || { cat "$work/err"; exit 1; }
long=(--model "$work/m" --quiet --greedy --ignore-eos --max-new-tokens 3500)

# Every case runs in a shell of its own, in $work/CASE: files out, err, and log when it failed.
start() { # np, words of the command: sets job
    local np=$1
    shift
    mpirun --timeout 60 -np "$np" --oversubscribe --bind-to none "$exe" "$@" >out 2>err </dev/null &
    job=$!
}

rank() { # R: its process
    local pid
    for _ in {1..100}; do
        for pid in $(cat /proc/$job/task/*/children 2>/dev/null); do
            grep -qzx "OMPI_COMM_WORLD_RANK=$1" "/proc/$pid/environ" 2>/dev/null && echo "$pid" && return
        done
        sleep 0.1
    done
}

generating() { # waits for the first token
    for _ in {1..300}; do
        [ -s out ] && return
        sleep 0.05
    done
    fail "no token came"
}

hold() { # np, options: a run that waits for its prompt; all ranks are in start-up when this returns
    mkfifo prompt
    start "$1" run "${long[@]}" --prompt-file prompt "${@:2}"
    exec 3>prompt
}

ask() {
    echo "What is 15% of 80?" >&3
    exec 3>&-
}

fail() {
    echo "$*" >>log
}

ends() { # seconds, code, pattern of our one line: the job
    local begin=$SECONDS code
    wait "$job"
    code=$?
    [ "$code" = "$2" ] || fail "expected code $2, found $code"
    [ $((SECONDS - begin)) -le "$1" ] || fail "took $((SECONDS - begin)) s, expected at most $1"
    [ "$(grep -c '^qwen-ep:' err)" = 1 ] && grep -Eq "^qwen-ep: $3" err || fail "expected one line '$3'"
}

stopped_in_decode() { # R, who speaks
    start 4 run "${long[@]}" --prompt hi --timeout $limit
    generating
    kill -STOP "$(rank "$1")"
    ends 30 75 "rank $2: no progress for $limit s in [a-z ]+(, layer [0-9]+)?, step [0-9]+: rank $1 $gone\$"
}

stopped_in_start() { # R, who speaks
    hold 4 --timeout $limit
    kill -STOP "$(rank "$1")"
    ask
    ends 30 75 "rank $2: no progress( of rank [0-9])? for $limit s in (start: [a-zA-Z ]+|loading): rank $1 $gone\$"
}

stopped_for_a_moment() {
    start 3 run --model "$work/m" --quiet --greedy --prompt "What is 15% of 80?" --timeout 4 --max-new-tokens 12
    sleep 0.5
    local pid
    pid=$(rank 1)
    for _ in 1 2 3; do
        kill -STOP "$pid" 2>/dev/null && sleep 0.6
        kill -CONT "$pid" 2>/dev/null && sleep 0.02
    done
    wait "$job" || fail "code $?"
    [ "$(cat out)" = "15% of 80 is 12." ] || fail "found '$(cat out)'"
}

prompt_takes_its_time() {
    hold 3 --timeout $limit --max-new-tokens 5
    sleep $((2 * limit + 1))
    ask
    wait "$job" || fail "code $?"
    grep -q '^qwen-ep' err && fail "expected no line"
}

asked_in_decode() { # signal, R, options
    start 4 run "${long[@]}" --prompt hi "${@:3}"
    generating
    kill "-$1" "$(rank "$2")"
    ends 20 75 'rank 0: interrupted after [0-9]+ tokens'
    [ "$(wc -c <out)" -gt 1 ] && [ -z "$(tail -c1 out)" ] || fail "what was generated is not there, with its line end"
}

asked_in_start() { # signal
    hold 3 --timeout 0
    kill "-$1" "$(rank 2)"
    ends 20 75 '(rank 0: )?prompt: interrupted while waiting for it'
    exec 3>&-
}

# Rank 0 does not hear the first one.
asked_twice() { # signal
    start 4 run "${long[@]}" --prompt hi --timeout 0 --logits logits
    generating
    local pid
    pid=$(rank 2)
    kill -STOP "$(rank 0)"
    kill "-$1" "$pid"
    sleep 1
    kill -0 $job || fail "ended at the first signal"
    kill "-$1" "$pid"
    local begin=$SECONDS
    wait "$job"
    [ $? -ge 128 ] || fail "expected death by signal"
    [ $((SECONDS - begin)) -le 15 ] || fail "took $((SECONDS - begin)) s"
}

load() { # np, options: a job that is loading for seconds when this returns
    sed -e 's/"num_hidden_layers": 4/"num_hidden_layers": 30/' -e 's/"num_experts": 8/"num_experts": 512/' \
        -e 's/"hidden_size": 64/"hidden_size": 512/' -e 's/"moe_intermediate_size": 32/"moe_intermediate_size": 64/' \
        "$OLDPWD/configs/tiny-random.json" >config.json
    start "$1" bench --config config.json --weights random -p 0 -n 1000 "${@:2}"
    local pid used=()
    pid=$(rank 2)
    for _ in {1..400}; do
        [ -e "/proc/$pid/stat" ] || break
        mapfile -t -d ' ' used <"/proc/$pid/stat" # 14th and 15th: ticks of the CPU; start-up takes few
        [ $((${used[13]:-0} + ${used[14]:-0})) -ge 40 ] && return
        sleep 0.05
    done
    fail "no rank is loading"
}

stopped_in_loading() {
    load 3 --timeout 3
    kill -STOP "$(rank 2)"
    ends 40 75 "rank [01]: no progress( of rank [01])? for 3 s in (start: [a-zA-Z ]+|loading): rank 2 $gone\$"
}

asked_in_loading() {
    load 3 --timeout 60
    kill -TERM "$(rank 2)"
    ends 20 75 '(rank [0-2]: )?interrupted while loading'
}

asked_while_making_files() {
    sed 's/"vocab_size": 512/"vocab_size": 2000000/' "$OLDPWD/configs/tiny-random.json" >config.json
    start 2 synth --config config.json --out made --recipe q4-all --jobs 1
    for _ in {1..200}; do
        compgen -G 'made/.convert/*.part' >/dev/null && break
        sleep 0.05
    done
    kill -TERM "$(rank 1)"
    ends 20 75 '(rank [01]: )?made: interrupted'
    [ ! -e made/.convert/embed.qep ] || fail "rank 0 went on to the end of its file"
    rm -rf made
}

a_command_that_does_not_drain() {
    mkfifo recipe
    start 3 convert --from "$OLDPWD/tests/data/tiny-chat" --to made --recipe ./recipe
    exec 3>recipe
    kill -TERM "$(rank 1)"
    local begin=$SECONDS
    wait "$job"
    [ $? -ge 128 ] || fail "expected death by signal"
    [ $((SECONDS - begin)) -le 15 ] || fail "took $((SECONDS - begin)) s"
}

# A second wish to end ends a rank that makes files too, whatever it waits for.
asked_twice_while_making_files() { # signal
    sed 's/"vocab_size": 512/"vocab_size": 2000000/' "$OLDPWD/configs/tiny-random.json" >config.json
    start 2 synth --config config.json --out made --recipe q4-all --jobs 1
    for _ in {1..200}; do
        compgen -G 'made/.convert/*.part' >/dev/null && break
        sleep 0.05
    done
    local pid
    pid=$(rank 1)
    kill -STOP "$(rank 0)"
    kill "-$1" "$pid"
    sleep 1
    kill "-$1" "$pid"
    local begin=$SECONDS
    wait "$job"
    [ $? -ge 128 ] || fail "expected death by signal"
    [ $((SECONDS - begin)) -le 15 ] || fail "took $((SECONDS - begin)) s"
    rm -rf made
}

blocked_stderr() { # options: one rank whose stderr is a full pipe (descriptor 4); sets job
    mkfifo pipe
    exec 4<>pipe
    head -c 65536 /dev/zero >&4
    timeout -s KILL 60 "$exe" run "${long[@]:0:2}" "${long[@]:3}" --prompt hi --verbose --timeout $limit "$@" >out 2>&4 </dev/null &
    job=$!
}

# While nobody reads stderr, a person is who is waited for.
stderr_takes_its_time() {
    blocked_stderr --max-new-tokens 5
    sleep $((2 * limit + 1))
    cat <&4 >err &
    local reader=$!
    wait "$job" || fail "code $?"
    kill "$reader"
    exec 4>&-
}

stderr_is_never_read() {
    blocked_stderr
    sleep 1
    kill -TERM "$job"
    local begin=$SECONDS
    wait "$job"
    [ $? = 75 ] || fail "expected code 75"
    [ $((SECONDS - begin)) -le 15 ] || fail "took $((SECONDS - begin)) s"
    exec 4>&-
}

cases=()
launch() { # NAME, words
    cases+=("$1")
    mkdir "$work/$1"
    (
        cd "$work/$1" || exit 1
        "${@:2}"
        left=$(pgrep -f "$work/$1" | grep -vx $BASHPID)
        [ -z "$left" ] || fail "processes are left: $left"
    ) &
}

# They mostly sleep; eight at a time, or the waits would say something about this host.
launch decode-0 stopped_in_decode 0 1
launch decode-1 stopped_in_decode 1 0
launch decode-2 stopped_in_decode 2 0
launch decode-3 stopped_in_decode 3 0
launch start-0 stopped_in_start 0 1
launch start-1 stopped_in_start 1 0
launch start-2 stopped_in_start 2 0
launch start-3 stopped_in_start 3 0
wait
launch moment stopped_for_a_moment
launch prompt prompt_takes_its_time
launch term asked_in_decode TERM 2 --timeout 60
launch int asked_in_decode INT 2 --timeout 60
launch no-limit asked_in_decode TERM 1 --timeout 0
launch usr1 asked_in_decode USR1 3 --timeout 0
launch start-term asked_in_start TERM
launch start-int asked_in_start INT
wait
launch twice-term asked_twice TERM
launch twice-int asked_twice INT
launch loading stopped_in_loading
launch loading-term asked_in_loading
launch files asked_while_making_files
launch convert a_command_that_does_not_drain
launch files-twice asked_twice_while_making_files TERM
launch stderr-late stderr_takes_its_time
launch stderr-never stderr_is_never_read
wait

failed=0
for name in "${cases[@]}"; do
    [ -e "$work/$name/log" ] || continue
    failed=$((failed + 1))
    echo "FAILED: $name: $(cat "$work/$name/log")"
    grep -v '^--' "$work/$name/err" | head -n 12 | cut -c1-300
done
echo "stops.sh: $((${#cases[@]} - failed)) passed, $failed failed"
[ "$failed" = 0 ]
