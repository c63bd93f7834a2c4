#!/bin/bash
# The command line does what it says and nothing that a user's text says: options are told from values once, files of
# options and numbers are read strictly, paths are not empty; what is refused has its exit code and one line that names it.
# usage: options.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
m=$work/m f=$work/options.json
name=convert
check() { # ok or not, what was found
    if [ "$1" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: $2"
    fi
}

bad() { # name, expected code, pattern of the line, command...
    name=$1
    local want=$2 pattern=$3 code
    shift 3
    timeout 20 "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    [ $code = "$want" ] && [ "$(grep -c '^qwen-ep:' "$work/err")" = 1 ] && grep -Eq "^qwen-ep:.*$pattern" "$work/err" &&
        [ ! -s "$work/out" ]
    check $? "exit $code (expected $want), pattern '$pattern': $(head -3 "$work/err" | cut -c1-200)"
}

expect() { # name, expected, found
    name=$1
    [ "$2" = "$3" ]
    check $? "expected '$2', found '$3'"
}

"$exe" convert --from tests/data/tiny-chat --to "$m" --recipe q4 2>"$work/err" || { cat "$work/err"; exit 1; }
# Ids of a raw prompt, with more options: nothing is generated.
ids() {
    "$exe" run --model "$m" --quiet --json --max-new-tokens 0 "$@" 2>&1 | grep -oE '"prompt_token_ids": \[[^]]*\]|^qwen-ep:.*'
}
token_ids() { # text
    printf '"prompt_token_ids": %s' "$("$exe" tokenize --model "$m" --text "$1")"
}

# --- 1. an option is an option, a value is a value
version=$("$exe" --version)
echo 'not for reading' >"$f"
for text in --version --help "--config-file=$f" --config-file -h; do
    expect "the prompt $text" "$(token_ids "$text")" "$(ids --prompt "$text" --raw)"
    expect "the text $text" "$("$exe" tokenize --model "$m" "--text=$text")" "$("$exe" tokenize --model "$m" --text "$text")"
done
for command in "" run convert synth inspect tokenize bench; do
    # shellcheck disable=SC2086
    expect "$command --version" "$version" "$("$exe" $command --version 2>&1)"
done
expect "--version behind others" "$version" "$("$exe" run --quiet -t 1 --version 2>&1)"
expect "version and help" "$version" "$("$exe" bench --help --version 2>&1)"
printf '{"raw": true, "prompt": "from the file"}' >"$f"
bad "--version of nobody" 64 "unexpected argument '--version'" "$exe" run --model "$m" --prompt hi -- --version
bad "an unknown letter" 64 "'-z'" "$exe" run -qz
bad "a flag with a value" 64 '--quiet: does not take' "$exe" run --quiet=yes
bad "a letter without a value" 64 '--model: needs a value' "$exe" run -m
expect "abbreviated" "$(token_ids 'from the file')" "$(ids --config-f "$f")"
bad "twice" 64 '--config-file: expected once' "$exe" run --config-file "$f" --config-file "$f"
bad "twice, abbreviated" 64 '--config-file: expected once' "$exe" run --config-f="$f" --model "$m" --config-file="$f"

# --- 2. a file of options
for place in before after; do
    expect "the command line wins, file $place" "$(token_ids mine)" \
        "$([ $place = before ] && ids --config-file "$f" --prompt mine || ids --prompt mine --config-file "$f")"
done
settled() { # file text, options that contradict it
    printf '%s' "$1" >"$f"
    shift
    "$exe" run --model "$m" --quiet --max-new-tokens 1 --config-file "$f" "$@" >"$work/out" 2>"$work/err"
    expect "the command line settles it: $*" 0 $?
}
settled '{"prompt": "x", "raw": true}' --prompt-tokens 5
settled '{"prompt": "x"}' --prompt-file <(echo y)
settled '{"think": true, "prompt": "x"}' --no-think
settled '{"greedy": true, "prompt": "x"}' --temperature 0.5
settled '{"temperature": 0.5, "top-k": 3, "prompt": "x"}' --greedy
settled '{"system": "S"}' --raw --prompt-tokens 1,2
settled '{"raw": true}' --system S --prompt x
settled '{"interactive": true}' --prompt x --json
settled '{"model": "/no/such/one", "prompt": "x"}'
printf '{"think": true, "no-think": true, "prompt": "x"}' >"$f"
bad "a file that contradicts itself" 64 'exclude each other' "$exe" run --model "$m" --config-file "$f"
seed() { # file text
    printf '%s' "$1" >"$f"
    "$exe" run --model "$m" --quiet --json --max-new-tokens 0 --raw --prompt hi --config-file "$f" 2>&1 | grep -oE '"seed": [0-9]+|^qwen-ep:.*'
}
expect "a seed as it is" '"seed": 8999999999999999999' "$(seed '{"seed": 8999999999999999999}')"
expect "a seed above 2^53" '"seed": 9007199254740993' "$(seed '{"seed": 9007199254740993}')"
expect "a seed in exponent form" '"seed": 12' "$(seed '{"seed": 1.2e1}')"
expect "nulls and false" "$(token_ids hi)" \
    "$(printf '{"system": null, "greedy": false, "top-k": null, "model": null}' >"$f" && ids --raw --prompt hi --config-file "$f")"
expect "a pipe" "$(token_ids piped)" "$(ids --raw --config-file <(printf '{"prompt": "piped"}'))"
broken() { # key or pattern, file text, more options
    printf '%s' "$2" >"$f"
    bad "file $2" 65 "options.json: .*$1" "$exe" run --config-file "$f" --model "$work/nowhere" --prompt hi "${@:3}"
}
broken 'object' '[]'
broken 'invalid JSON' ''
broken 'invalid JSON' '{"top-k": 1,}'
for key in frobnicate top_k m config-file help version 'top-k\u0000'; do
    for value in 1 null false; do
        broken "${key%%\\*}" "{\"$key\": $value}"
    done
done
broken 'config-file' "{\"config-file\": \"$f\"}"
broken '"top-k": expected once' '{"top-k": 1, "seed": 3, "top-k": 1}'
broken '"quiet": expected once' '{"quiet": true, "qui\u0065t": null}'
for value in '"5"' true false '[]' '{}' 5.5 55e-1 1e300 -1 -0 2147483648; do
    broken '"top-k": expected a whole number' "{\"top-k\": $value}"
    broken '"top-k": expected a whole number' "{\"top-k\": $value}" --top-k 4
done
for value in '"0.5"' true '[0.5]' 1.5 -0.1 -0.0 1e300 -1e999; do
    broken '"top-p": expected a number' "{\"top-p\": $value}"
done
for value in '"yes"' 1 '[true]' '{}' '""'; do
    broken '"quiet": expected true or false' "{\"quiet\": $value}"
done
for value in 5 true '["a"]' '{"a": 1}' '"a\u0000b"'; do
    broken '"prompt": expected a string' "{\"prompt\": $value}"
    broken '"model": expected a path' "{\"model\": $value}"
done
broken '"model": expected a path' '{"model": ""}'
for value in '"fpga"' '""' 5 true '"cpu\u0000"' '"auto|cpu"'; do
    broken '"backend": expected one of auto' "{\"backend\": $value}"
done
bad "no file" 66 'no-such-file' "$exe" run --config-file "$work/no-such-file" --model "$m" --prompt hi
bad "a directory" 66 'directory' "$exe" run --config-file "$work" --model "$m" --prompt hi

# --- 3. numbers
for number in ' 5' '5 ' '+5' '-0' 0x10 '' 5. 1e1 five 99999999999999999999; do
    bad "--top-k '$number'" 64 "--top-k: expected a whole number in 0..2147483647, found '${number/+/\\+}'" \
        "$exe" run --model "$m" --prompt hi --top-k="$number"
    bad "--prompt-tokens '1,$number'" 64 --prompt-tokens "$exe" run --model "$m" --prompt-tokens "1,$number"
    bad "bench -b '1,$number'" 64 '-b: expected' "$exe" bench --model "$m" -b "1,$number"
done
for number in ' 0.5' '0.5 ' '+.5' '-0' '-0.0' 0x0p0 inf nan '' 1e '.5e+' 1e-; do
    bad "--top-p '$number'" 64 "--top-p: expected a number in 0..1" "$exe" run --model "$m" --prompt hi --top-p="$number"
done
for number in ' 5x' '+5' '-0' 0x10 5. 2147483648; do
    bad "--decode '1, $number'" 64 --decode "$exe" tokenize --model "$m" --decode "1, $number"
done
expect "separators of --decode" "$("$exe" tokenize --model "$m" --decode 40,41)" "$("$exe" tokenize --model "$m" --decode ' [40, 41 ]')"
for list in '' ',' '1,' ',1' '1,,2' '1, 2'; do
    bad "--prompt-tokens '$list'" 64 --prompt-tokens "$exe" run --model "$m" --prompt-tokens "$list"
    for option in p b d; do
        bad "bench -$option '$list'" 64 "-$option: expected" "$exe" bench --model "$m" -$option "$list"
    done
done
bad "nothing to measure" 64 'nothing' "$exe" bench --model "$m" -p 0,0 -n 0
expect "numbers that pass" '"prompt_token_ids": [1, 2]' "$(ids --prompt-tokens 1,2 --temperature .5 --top-p 5.e-1 --top-k 07)"

# --- 4. paths
empty() { # option, command...
    bad "an empty $1" 64 "$1: expected a path, found ''" "$exe" "${@:2}" "$1" ""
}
for option in --model --prompt-file --chat --logits --config-file; do empty $option run; done
for option in --model --config --recipe --launch-times --config-file; do empty $option bench; done
for option in --from --to --recipe; do empty $option convert; done
for option in --config --out --recipe; do empty $option synth; done
for option in --model --tokenizer --template --text-file --chat; do empty $option tokenize; done
bad "an empty directory" 64 "inspect: expected a path, found ''" "$exe" inspect ""

# --- 5. top-p 0 is one token
sampled() { # seed, more options
    "$exe" run --model "$m" --quiet --raw --prompt "Say" --max-new-tokens 16 --ignore-eos --seed "$1" "${@:2}" 2>&1
}
greedy=$(sampled 1 --greedy)
expect "--top-p 0" "$greedy" "$(sampled 2 --temperature 5 --top-p 0)"
[ "$greedy" != "$(sampled 2 --temperature 5)" ]
check $? "this model answers alike at any temperature"
printf '{"do_sample": true, "temperature": 5.0, "top_p": 0}' >"$m/generation_config.json"
"$exe" reseal "$m" >/dev/null
expect "top_p of generation_config.json" "$greedy" "$(sampled 2)"

# --- 6. errors of a chat file name it, once
chat() { # pattern, text
    printf '%s' "$2" >"$work/talk.json"
    bad "chat file $2" 65 " [^ ]*/talk.json: .*$1" "$exe" run --model "$m" --chat "$work/talk.json"
    expect "named once by $2" 1 "$(grep -o 'talk.json' "$work/err" | wc -l)"
}
chat 'role' '[{"role": "user", "content": "x"}, {"role": "alien", "content": "x"}]'
chat 'No messages' '{}'
chat 'No messages' '[]'
chat 'object or a list' '5'
chat 'expected a list' '{"messages": "hi"}'
chat 'content' '[{"role": "user", "content": 5}]'
chat 'invalid JSON' '['

# --- all ranks alike; the file of options is read once
if command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi; then
    mpi=(timeout 20 mpirun --quiet -np 3 --oversubscribe --bind-to none "$exe")
    expect "--version on 3 ranks" "$version" "$("${mpi[@]}" run --version 2>&1)"
    printf '{"top-k": "5"}' >"$f"
    bad "a bad file on 3 ranks" 65 '"top-k"' "${mpi[@]}" run --config-file "$f" --model "$m" --prompt hi
    bad "an empty path on 3 ranks" 64 '--model' "${mpi[@]}" run --model "" --prompt hi
    mkfifo "$work/fifo"
    printf '{"prompt": "piped", "raw": true, "json": true, "max-new-tokens": 0}' >"$f"
    timeout 20 cp "$f" "$work/fifo" & # does not wait for ever when nobody reads
    expect "a FIFO for 3 ranks" "$(token_ids piped)" \
        "$("${mpi[@]}" run --config-file "$work/fifo" --model "$m" --quiet 2>&1 | grep -oE '"prompt_token_ids": \[[^]]*\]|^qwen-ep:.*')"
    wait
else
    echo "mpirun not used: built without MPI"
fi
echo "options: $passed passed, $failed failed"
[ $failed = 0 ]
