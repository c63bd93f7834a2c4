#!/bin/bash
# Every command's help fits a screen of 24 lines and 100 columns and names every option the command takes.
# usage: help.sh path/to/qwen-ep
set -u
exe=$1
failed=0 passed=0
for command in "" run convert synth inspect reseal tokenize bench; do
    # shellcheck disable=SC2086
    text=$("$exe" $command --help)
    lines=$(printf '%s\n' "$text" | wc -l)
    width=$(printf '%s\n' "$text" | awk '{ if (length($0) > w) w = length($0) } END { print w }')
    if [ "$lines" -le 24 ] && [ "$width" -le 100 ] && [ "$lines" -ge 5 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: qwen-ep $command --help: $lines lines, $width columns"
    fi
done
for command in "" run convert synth inspect tokenize bench; do
    # shellcheck disable=SC2086
    if "$exe" $command --help | grep -q -- --version && [ "$("$exe" $command --version)" = "qwen-ep 0.1.0" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: qwen-ep $command: no --version, or not in the help"
    fi
done
text=$("$exe" run --help)
for option in $(grep -ohE '^ *\{"[a-z-]+", ' src/cli/run_options.c src/cli/common.c | grep -oE '[a-z-]+'); do
    [ "$option" = interactive ] && option=i
    if printf '%s' "$text" | grep -qE -- "-$option\b"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: run --help does not name --$option"
    fi
done
echo "help: $passed passed, $failed failed"
[ $failed = 0 ]
