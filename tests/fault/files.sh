#!/bin/bash
# What is read: something else than a file in a model or checkpoint directory is refused at once, what an option names
# may be a pipe, changed side files are refused until they are accepted, and text of files cannot steer a terminal.
# usage: files.sh path/to/qwen-ep
set -u
exe=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
hf=tests/data/tiny-chat
passed=0 failed=0

pass() {
    passed=$((passed + 1))
}

fail() {
    failed=$((failed + 1))
    echo "FAILED: $1"
    head -3 "$work/err" | cut -c1-300
}

try() { # command...: its exit code in $code, its output in out and err
    timeout 10 "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
}

refused() { # name, expected code, pattern of the only error line, command...
    local name=$1 want=$2 pattern=$3
    shift 3
    try "$@"
    if [ "$code" = "$want" ] && [ "$(grep -c '^qwen-ep:' "$work/err")" = 1 ] &&
        grep -Eq "^qwen-ep:.*$pattern" "$work/err"; then
        pass
    else
        fail "$name: exit $code (expected $want), pattern '$pattern'"
    fi
}

works() { # name, expected stdout, command...
    local name=$1 want=$2
    shift 2
    try "$@"
    if [ "$code" = 0 ] && [ "$(cat "$work/out")" = "$want" ]; then
        pass
    else
        fail "$name: exit $code, stdout '$(head -c 200 "$work/out")'"
    fi
}

copy() { # from, name
    cp -r "$1" "$work/$2"
    chmod -R u+w "$work/$2"
}

# --- something else in place of a file
put() { # kind, path
    rm -rf "$2"
    case $1 in
    FIFO) mkfifo "$2" ;;
    socket) perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1) or die' "$2" ;;
    directory) mkdir "$2" ;;
    dangling) ln -s no-such-file "$2" ;;
    esac
}

instead() { # file, command with DIR for a copy of directory $from...
    local file=$1 kind
    shift
    for kind in FIFO socket directory dangling; do
        rm -rf "$work/x" "$work/made"
        copy "$from" x
        put $kind "$work/x/$file"
        refused "$kind as $file: $2" 65 "$file: is a $kind" "${@/#DIR/$work/x}"
    done
}

"$exe" convert --from $hf --to "$work/good" --recipe q4 --shards 2 2>/dev/null
from=$work/good
run=(--prompt hi --max-new-tokens 2)
for file in manifest.json layer-000.qep tokenizer.json generation_config.json config.json chat_template.jinja; do
    instead $file "$exe" run --model DIR "${run[@]}"
    instead $file "$exe" inspect DIR --verify
    [ $file = layer-000.qep ] || instead $file "$exe" tokenize --model DIR --text hi
done
from=$hf
for file in config.json model.safetensors tokenizer.json chat_template.jinja; do
    instead $file "$exe" convert --from DIR --to "$work/made"
done
instead tokenizer.json "$exe" tokenize --model DIR --text hi
instead chat_template.jinja "$exe" tokenize --model DIR --text hi
copy $hf indexed && rm "$work/indexed/model.safetensors"
from=$work/indexed
instead model.safetensors.index.json "$exe" convert --from DIR --to "$work/made"
[ ! -e "$work/made/manifest.json" ] && pass || fail "a refused checkpoint left a manifest"
refused "a file as --model" 66 'is not a directory' "$exe" run --model $hf/config.json "${run[@]}"
refused "a file as --from" 66 'is not a directory' "$exe" convert --from $hf/config.json --to "$work/made"
refused "a file as tokenize's --model" 66 'is not a directory' "$exe" tokenize --model $hf/config.json --text hi
refused "a directory as --prompt-file" 66 'is a directory' "$exe" run --model "$work/good" --prompt-file $hf
mkdir "$work/cache" "$work/linked" # as the Hugging Face cache has it
cp $hf/*.json* $hf/*.jinja $hf/model.safetensors "$work/cache"
ln -s ../cache/{config,generation_config,tokenizer,tokenizer_config}.json ../cache/{chat_template.jinja,model.safetensors} \
    "$work/linked"
try "$exe" convert --from "$work/linked" --to "$work/made" --recipe q4 --shards 2
[ "$code" = 0 ] && cmp -s "$work/made/manifest.json" "$work/good/manifest.json" && pass || fail "links to files refused"

# --- options may name pipes
answer=$("$exe" run --model "$work/good" --quiet "${run[@]}")
chat='[{"role": "user", "content": "hi"}]'
pipe() { # name, expected stdout, text for the FIFO, command...
    local name=$1 want=$2 text=$3 writer
    shift 3
    rm -f "$work/fifo" && mkfifo "$work/fifo"
    timeout 10 cat "$text" >"$work/fifo" &
    writer=$!
    works "FIFO: $name" "$want" "$@"
    kill $writer 2>/dev/null
    wait $writer 2>/dev/null
}
printf hi >"$work/hi" && echo "$chat" >"$work/chat.json" && echo '{"max-new-tokens": 2, "prompt": "hi"}' >"$work/options"
model=(--model "$work/good" --quiet --max-new-tokens 2)
tiny=(--tokenizer "$hf/tokenizer.json")
pipe --prompt-file "$answer" "$work/hi" "$exe" run "${model[@]}" --prompt-file "$work/fifo"
pipe --chat "$answer" "$work/chat.json" "$exe" run "${model[@]}" --chat "$work/fifo"
pipe --config-file "$answer" "$work/options" "$exe" run --model "$work/good" --quiet --config-file "$work/fifo"
pipe --text-file '[71, 72]' "$work/hi" "$exe" tokenize "${tiny[@]}" --text-file "$work/fifo"
pipe --tokenizer '[71, 72]' $hf/tokenizer.json "$exe" tokenize --tokenizer "$work/fifo" --text hi
ids=$("$exe" tokenize --model $hf --chat "$work/chat.json")
pipe "tokenize --chat" "$ids" "$work/chat.json" "$exe" tokenize --model $hf --chat "$work/fifo"
pipe --template "$ids" $hf/chat_template.jinja "$exe" tokenize "${tiny[@]}" --template "$work/fifo" --chat "$work/chat.json"
pipe "synth --config" "" configs/tiny-random.json "$exe" synth --config "$work/fifo" --out "$work/synth-hf"
pipe "synth --recipe" "" configs/q8.json "$exe" synth --config configs/tiny-random.json --recipe "$work/fifo" --out "$work/synth"
"$exe" synth --config configs/tiny-random.json --recipe q8 --out "$work/synth-q8" 2>/dev/null
cmp -s "$work/synth/manifest.json" "$work/synth-q8/manifest.json" &&
    cmp -s "$work/synth-hf/config.json" configs/tiny-random.json && pass || fail "synth from pipes made something else"
bench=(--weights random --layers 1 -p 4 -n 1 -r 1 --quiet)
for ranks in "" "--transport threads --ranks 2"; do
    # shellcheck disable=SC2086
    try "$exe" bench --config <(cat configs/tiny-random.json) --recipe <(cat configs/q8.json) "${bench[@]}" $ranks
    [ "$code" = 0 ] && [ "$(grep -c '^| q8 ' "$work/out")" = 2 ] && pass || fail "bench from process substitution $ranks"
done
if command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi; then # rank 0 reads, once, for all
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    mpi=(mpirun --quiet -np 3 --oversubscribe --bind-to none "$exe")
    rm -rf "$work/synth"
    pipe "3 ranks: synth --config" "" configs/tiny-random.json "${mpi[@]}" synth --config "$work/fifo" --out "$work/synth" --recipe q8
    cmp -s "$work/synth/manifest.json" "$work/synth-q8/manifest.json" && pass || fail "3 ranks made something else"
    rm -rf "$work/made"
    pipe "3 ranks: convert --recipe" "" configs/q8.json "${mpi[@]}" convert --from $hf --to "$work/made" --recipe "$work/fifo"
    pipe "3 ranks: --config-file" "$answer" "$work/options" "${mpi[@]}" run --model "$work/good" --quiet --config-file "$work/fifo"
fi
works "process substitution" "$answer" "$exe" run "${model[@]}" --prompt-file <(printf hi)

# --- side files are what they were, or accepted
copy "$work/good" m
m=$work/m
perl -0777 -pi -e 's/"id": *71\b/"id": 72/ or s/"h": *71\b/"h": 87/ or die' "$m/tokenizer.json"
sed -i 's/"temperature": *[0-9.]*/"temperature": 0.5/' "$m/generation_config.json"
refused "changed generation_config.json" 65 "generation_config.json: .*: qwen-ep reseal $m\$" "$exe" run --model "$m" "${run[@]}"
cp $hf/generation_config.json "$m"
for command in "run --model $m ${run[*]}" "tokenize --model $m --text hi" "inspect $m --verify"; do
    # shellcheck disable=SC2086
    refused "changed tokenizer.json: $command" 65 "tokenizer.json: .*: qwen-ep reseal $m\$" "$exe" $command
done
cp $hf/tokenizer.json "$m" # one that loads, with a bit of a special token's text flipped
perl -0777 -pi -e 's/<\|box_end\|>|<\|endoftext\|>/my $t = $&; $t =~ s|end|eNd|; $t/e' "$m/tokenizer.json"
cmp -s $hf/tokenizer.json "$m/tokenizer.json" && fail "the tokenizer case changes nothing"
refused "flipped bit in tokenizer.json" 65 "qwen-ep reseal $m\$" "$exe" run --model "$m" "${run[@]}"
advice=$(sed -n 's/.*: qwen-ep \(reseal .*\)/\1/p' "$work/err")
# shellcheck disable=SC2086
works "the printed command" "accepted tokenizer.json" "$exe" $advice
try "$exe" run --model "$m" --quiet "${run[@]}" && [ "$code" = 0 ] && pass || fail "run after reseal"
works "reseal again" "nothing changed" "$exe" reseal "$m"
cp $hf/tokenizer.json "$m"
"$exe" reseal "$m" >/dev/null
cmp -s "$m/manifest.json" "$work/good/manifest.json" && pass || fail "resealed as converted, the manifest differs"
rm "$m/chat_template.jinja"
refused "missing template" 65 "chat_template.jinja: missing.*reseal" "$exe" run --model "$m" "${run[@]}"
works "reseal drops" "dropped chat_template.jinja" "$exe" reseal "$m"
cp $hf/chat_template.jinja "$m"
refused "added template" 65 "chat_template.jinja: was not there.*reseal" "$exe" run --model "$m" "${run[@]}"
refused "added template: inspect" 65 "chat_template.jinja: was not there.*reseal" "$exe" inspect "$m" --verify

unacceptable() { # file, text, pattern
    copy "$work/good" bad
    printf '%s' "$2" >"$work/bad/$1"
    refused "reseal of $1 with $2" 65 "$1: .*$3" "$exe" reseal "$work/bad"
    cmp -s "$work/bad/manifest.json" "$work/good/manifest.json" && pass || fail "reseal changed the manifest all the same"
    rm -rf "$work/bad"
}
unacceptable tokenizer.json '{' 'JSON'
unacceptable tokenizer.json '[]' 'expected a JSON object, found a list'
unacceptable generation_config.json '[]' 'expected a JSON object, found a list'
unacceptable generation_config.json '{"temperature": "hot"}' 'temperature'
unacceptable tokenizer_config.json '5' 'expected a JSON object, found a number'
unacceptable config.json "$(cat configs/tiny-random.json)" 'another model'
put FIFO "$m/chat_template.jinja"
refused "reseal of a FIFO" 65 'is a FIFO' "$exe" reseal "$m"
rm "$m/chat_template.jinja" && mkdir "$m/.convert" && echo x >"$m/.convert/identity"
refused "reseal during a conversion" 73 'holds an unfinished conversion' "$exe" reseal "$m"
refused "reseal of nothing" 66 'nowhere: no such directory' "$exe" reseal "$work/nowhere"
refused "reseal of a checkpoint" 66 'no manifest.json' "$exe" reseal $hf
refused "reseal without a directory" 64 'one directory' "$exe" reseal

# --- a list is no object without members
listed() { # file, command...
    local file=$1
    shift
    copy $hf list && echo '[]' >"$work/list/$file"
    refused "a list as $file" 65 "$file: .*expected a JSON object, found a list" "${@/#DIR/$work/list}"
    rm -rf "$work/list" "$work/made"
}
listed config.json "$exe" convert --from DIR --to "$work/made"
listed tokenizer.json "$exe" tokenize --model DIR --text hi
echo '[]' >"$work/indexed/model.safetensors.index.json"
refused "a list as index" 65 'index.json: expected a JSON object, found a list' "$exe" convert --from "$work/indexed" --to "$work/made"
echo '[]' >"$work/list.json"
rm -rf "$work/made"
copy $hf list && echo '[]' >"$work/list/generation_config.json"
"$exe" convert --from "$work/list" --to "$work/made" 2>/dev/null
refused "a list as generation_config.json" 65 'expected a JSON object, found a list' "$exe" run --model "$work/made" "${run[@]}"
rm -rf "$work/made"
refused "a list as recipe" 65 'expected a JSON object, found a list' "$exe" convert --from $hf --to "$work/made" --recipe "$work/list.json"
refused "a list as --config-file" 65 'expected a JSON object, found a list' "$exe" run --model "$work/good" --config-file "$work/list.json"

# --- text of files and a terminal: ESC, the one-character CSI U+009B, a character that turns text around
quiet_terminal() { # name
    if [ "$code" = 65 ] && [ "$(grep -c '^qwen-ep:' "$work/err")" = 1 ] &&
        ! LC_ALL=C grep -Pq '\x1b|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]' "$work/err" "$work/out"; then
        pass
    else
        fail "$1: exit $code, or control characters came through"
    fi
}
evil='x\u001b[31m\u009b31m\u202ey'
copy $hf evil
perl -e 'open F, "+<:raw", $ARGV[0] or die; { local $/; $f = <F>; }
    $n = unpack "Q<", $f; $h = substr $f, 8, $n; $d = substr $f, 8 + $n;
    $h =~ s/"model.language_model.norm.weight"/"$ARGV[1]"/ or die;
    seek F, 0, 0; truncate F, 0; print F pack("Q<", length $h), $h, $d;' "$work/evil/model.safetensors" "$evil"
try "$exe" convert --from "$work/evil" --to "$work/made"
quiet_terminal "tensor name"
perl -pe 's/"q4"/"'"${evil//\\/\\\\}"'"/' configs/q4.json >"$work/evil.json"
grep -q 'u009b' "$work/evil.json" || fail "the recipe case changes nothing"
try "$exe" convert --from $hf --to "$work/made" --recipe "$work/evil.json"
quiet_terminal "recipe name"

echo "files: $passed passed, $failed failed"
[ $failed = 0 ]
