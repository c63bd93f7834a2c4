#!/bin/bash
# The commands as a user types them, on the trained tiny model: one-shot text, JSON, chat file, interactive chat, ranks.
# usage: chat.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
expect() { # label, expected, found
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED: %s: expected "%s", found "%s"\n' "$1" "$2" "$3"
    fi
}
"$exe" convert --from tests/data/tiny-chat --to "$work/m" --recipe q4 2>"$work/err" || { cat "$work/err"; exit 1; }
answer="15% of 80 is 12."
question="What is 15% of 80?"
expect text "$answer" "$("$exe" run --model "$work/m" --prompt "$question" 2>/dev/null)"
expect no-command "$answer" "$("$exe" --model "$work/m" --prompt "$question" 2>/dev/null)"
printf '%s' "$question" >"$work/q"
expect file "$answer" "$("$exe" run --model "$work/m" --prompt-file "$work/q" 2>/dev/null)"
printf '{"messages": [{"role": "user", "content": "%s"}]}' "$question" >"$work/chat.json"
expect chat-file "$answer" "$("$exe" run --model "$work/m" --chat "$work/chat.json" 2>/dev/null)"
expect json "1" "$("$exe" run --model "$work/m" --prompt "$question" --json 2>/dev/null | grep -c '"text": "15% of 80 is 12.", "finish_reason": "stop"')"
expect length "1" "$("$exe" run --model "$work/m" --prompt "$question" --json --max-new-tokens 2 2>/dev/null | grep -c '"finish_reason": "length"')"
expect interactive "$answer"$'\n'"50% of 90 is 45." "$(printf '%s\nWhat is 50%% of 90?\n' "$question" | "$exe" run --model "$work/m" -i 2>/dev/null | head -2)"
printf '{"model": "%s", "prompt": "%s", "quiet": true}' "$work/m" "$question" >"$work/options.json"
expect config-file "$answer" "$("$exe" run --config-file "$work/options.json" 2>"$work/err")"
expect quiet "" "$(cat "$work/err")"
expect threads "$answer" "$("$exe" run --model "$work/m" --prompt "$question" --transport threads --ranks 3 2>/dev/null)"
mv "$work/m/tokenizer.json" "$work/tokenizer.json"
expect reseal-drops "dropped tokenizer.json" "$("$exe" reseal "$work/m")"
expect ids-only "1" "$("$exe" run --model "$work/m" --prompt-tokens 5,6,7 --max-new-tokens 3 --ignore-eos 2>/dev/null | grep -cE '^[0-9]+,[0-9]+,[0-9]+$')"
mv "$work/tokenizer.json" "$work/m/tokenizer.json"
expect reseal-accepts "accepted tokenizer.json" "$("$exe" reseal "$work/m")"
sampled() {
    "$exe" run --model "$work/m" --prompt "Say" --temperature 1.5 --seed "$1" --max-new-tokens 24 --ignore-eos --quiet "${@:2}" 2>/dev/null
}
expect seed-repeats "$(sampled 7)" "$(sampled 7)"
expect seed-over-ranks "$(sampled 7)" "$(sampled 7 --transport threads --ranks 2 --attention sequences)"
[ "$(sampled 7)" != "$(sampled 8)" ] && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAILED: two seeds, one text"; }
if command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi; then
    mpi() { timeout 120 mpirun --quiet -np "$1" --oversubscribe --bind-to none "$exe" run --model "$work/m" "${@:2}"; }
    expect mpirun "$answer" "$(mpi 4 --prompt "$question" 2>/dev/null)"
    expect mpi-interactive "$answer" "$(printf '%s\n' "$question" | mpi 2 -i 2>/dev/null | head -1)"
    mpi 2 --prompt "$question" 2>"$work/err" >/dev/null
    expect cpu-division "1" "$(grep -cE 'ranks: 2 over mpi, 2 on this host; [0-9]+ of [0-9]+ CPUs' "$work/err")"
    # Idle ranks of an interactive chat leave their cores alone.
    mkfifo "$work/in"
    mpi 4 -i <"$work/in" >/dev/null 2>&1 &
    exec 9>"$work/in"
    sleep 3
    busy() { for p in $(pgrep -f "$exe run --model $work/m -i" | grep -v "^$$\$"); do [ "$(cat /proc/"$p"/comm)" = qwen-ep ] && awk '{ print $14 + $15 }' /proc/"$p"/stat; done | awk '{ s += $1 } END { print s + 0 }'; }
    before=$(busy)
    sleep 5
    after=$(busy)
    exec 9>&-
    wait
    echo "idle: 4 ranks used $((after - before)) clock ticks of 10 ms in 5 s"
    [ "$before" -gt 0 ] && [ $((after - before)) -le 40 ] && passed=$((passed + 1)) || { failed=$((failed + 1)); echo "FAILED: idle ranks use more than 2 % each"; }
    # SIGUSR1 to the launcher: all ranks stop at one token, exit 75, what was generated is out.
    mpi 4 --prompt "$question" --ignore-eos --max-new-tokens 3900 --backend reference --json >"$work/out" 2>"$work/err" &
    job=$!
    for _ in $(seq 100); do
        grep -q 'loaded:' "$work/err" && break
        sleep 0.1
    done
    pkill -USR1 -P "$(pgrep -P $job)" mpirun
    wait $job
    expect drain-code 75 $?
    expect drain-line 1 "$(grep -c '^qwen-ep: .*interrupted' "$work/err")"
    expect drain-output 1 "$(grep -c '"finish_reason": "interrupted"' "$work/out")"
else
    echo "mpirun not used: built without MPI"
fi
echo "chat: $passed passed, $failed failed"
[ $failed = 0 ]
