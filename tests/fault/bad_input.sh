#!/bin/bash
# Bad input ends with the right exit code and exactly one line on stderr, within seconds, on 1 and on 4 ranks (sources:
# every third on 4).
# usage: bad_input.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
hf=tests/data/tiny-chat
passed=0 failed=0 converted=0
have_mpi=0
command -v mpirun >/dev/null && "$exe" --help >/dev/null && ldd "$exe" | grep -q libmpi && have_mpi=1

launch() { # np command...
    local np=$1
    shift
    if [ "$np" = 1 ]; then
        timeout 60 "$@"
    else
        timeout 60 mpirun --quiet -np "$np" --oversubscribe --bind-to none "$@"
    fi
}

check() { # np, expected code, pattern of the line, command...
    local np=$1 want=$2 pattern=$3 start=$SECONDS
    shift 3
    launch "$np" "$@" >"$work/out" 2>"$work/err" </dev/null
    local code=$? lines
    # mpirun's own banner is not ours; information lines of a started run are allowed before the error.
    lines=$(grep -c '^qwen-ep:' "$work/err")
    if [ "$code" = "$want" ] && [ "$lines" = 1 ] && grep -Eq "^qwen-ep:.*$pattern" "$work/err" &&
        [ $((SECONDS - start)) -le 15 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name, np $np: exit $code (expected $want), $lines error lines, pattern '$pattern'"
        head -5 "$work/err" | cut -c1-300
    fi
}

bad() { # name, expected code, pattern, command...
    name=$1
    shift
    check 1 "$@"
    [ $have_mpi = 0 ] || check 4 "$@"
}

# A copy of the checkpoint whose safetensors header is changed by a perl expression on $h (header) and $d (data).
broken_tensors() { # name, expression
    cp -r $hf "$work/$1"
    chmod -R u+w "$work/$1"
    perl -e 'open F, "+<:raw", $ARGV[0] or die; { local $/; $f = <F>; }
        $n = unpack "Q<", $f; $h = substr $f, 8, $n; $d = substr $f, 8 + $n;
        eval $ARGV[1]; die $@ if $@;
        seek F, 0, 0; truncate F, 0; print F pack("Q<", length $h), $h, $d;' "$work/$1/model.safetensors" "$2"
    echo "$work/$1"
}

broken_config() { # name, perl substitution on the whole of config.json
    cp -r $hf "$work/$1"
    chmod -R u+w "$work/$1"
    perl -0777 -pi -e "$2" "$work/$1/config.json"
    cmp -s "$work/$1/config.json" $hf/config.json && echo "config case $1 changes nothing" >&2
    echo "$work/$1"
}

# How ranks leave together does not depend on what is wrong with a source: every third on 4 ranks too.
convert() { # name, code, pattern, source directory
    converted=$((converted + 1))
    local have_mpi=$((have_mpi && converted % 3 == 1))
    bad "$1" "$2" "$3" "$exe" convert --from "$4" --to "$work/out-$1" --recipe q4
    if [ -e "$work/out-$1/manifest.json" ]; then
        failed=$((failed + 1))
        echo "FAILED: $1: left a directory that looks complete"
    fi
    rm -rf "$work/out-$1"
}

tensors() { # name, code, pattern, expression
    convert "$1" "$2" "$3" "$(broken_tensors "$1" "$4")"
}

config() { # name, pattern, substitution
    convert "$1" 65 "$2" "$(broken_config "$1" "$3")"
}

# --- safetensors
tensors truncated 65 'model.safetensors' '$d = substr $d, 0, length($d) - 100'
cp -r $hf "$work/hlen" && chmod -R u+w "$work/hlen" &&
    printf '\377\377\377\377\377\377\377\177' | dd of="$work/hlen/model.safetensors" conv=notrunc status=none
convert header-length 65 'header' "$work/hlen"
tensors overlap 65 'data_offsets|overlap|hole' '$h =~ s/"data_offsets":\s*\[(\d+),\s*(\d+)\](.*?)"data_offsets":\s*\[(\d+),\s*(\d+)\]/"data_offsets":[$1,$2]$3"data_offsets":[@{[$4-2]},@{[$5-2]}]/s'
tensors out-of-range 65 'offset|range|beyond|ends' '$n = length $d; $h =~ s/\[(\d+),\s*$n\]/"[$1,".($n+4096)."]"/e'
tensors shape-bytes 65 'bytes|shape' '$h =~ s/("model.language_model.norm.weight":\{[^}]*"shape":\s*\[)(\d+)/$1.($2+1)/e'
tensors missing 65 'missing' '$h =~ s/"model.language_model.norm.weight"/"model.visual.norm.weight"/'
tensors extra 65 'norm.bias' '$n = length $d; $h =~ s/\}\s*$/,"model.language_model.norm.bias":{"dtype":"BF16","shape":[1],"data_offsets":[$n,@{[$n + 2]}]}}/; $d .= "\0\0"'
tensors misshapen 65 'shape|expected' '$h =~ s/(q_proj.weight":\{[^}]*"shape":\s*\[)(\d+),\s*(\d+)\]/$1$3,$2]/'
tensors dtype 65 'dtype|I16' '$h =~ s/("model.language_model.norm.weight":\{[^}]*"dtype":\s*")BF16/$1I16/'
tensors nan 65 'NaN|finite' 'substr($d, 0, 4) = "\0\0\xc0\x7f"'
tensors header-json 65 'JSON|header' '$h =~ s/\{/[/'

# --- index
for kind in missing outside; do
    cp -r $hf "$work/index-$kind" && chmod -R u+w "$work/index-$kind"
    file=model-00001-of-00001.safetensors
    [ $kind = outside ] && file=../model.safetensors
    [ $kind = missing ] || mv "$work/index-$kind/model.safetensors" "$work/model.safetensors"
    perl -e 'open F, "<:raw", $ARGV[0]; { local $/; $f = <F>; } $h = substr $f, 8, unpack "Q<", $f;
        print "{\"metadata\": {\"total_size\": 1.0}, \"weight_map\": {", join(", ", map "\"$_\": \"$ARGV[1]\"", grep !/__metadata__/, $h =~ /"([\w.]+)":\s*\{/g), "}}"' \
        $hf/model.safetensors "$file" >"$work/index-$kind/model.safetensors.index.json"
    rm -f "$work/index-$kind/model.safetensors"
    [ $kind = missing ] && code='6[56]' || code=65
    name=index-$kind
    convert "index-$kind" "$([ $kind = missing ] && echo 66 || echo 65)" 'safetensors' "$work/index-$kind"
done

# --- config.json
config config-invalid 'JSON' 's/\{/{{/'
config config-empty 'JSON|empty' 's/.*//s'
config config-nested 'JSON|nest|deep' 's/.*/"[" x 100000/se'
config config-string 'hidden_size' 's/"hidden_size": *\d+/"hidden_size": "64"/'
config config-zero 'num_hidden_layers' 's/"num_hidden_layers": *\d+/"num_hidden_layers": 0/'
config config-negative 'head_dim' 's/"head_dim": *\d+/"head_dim": -32/'
config config-fraction 'hidden_size' 's/"hidden_size": *\d+/"hidden_size": 64.5/'
config config-absurd 'vocab_size' 's/"vocab_size": *\d+/"vocab_size": 2147483648/'
config config-topk 'num_experts_per_tok' 's/"num_experts_per_tok": *\d+/"num_experts_per_tok": 1000/'
config config-types-length 'layer_types' 's/"layer_types": *\[\s*"\w+",/"layer_types": [/'
config config-types-unknown 'layer_types' 's/"linear_attention"/"sliding_attention"/'
config config-heads 'num_key_value_heads|num_attention_heads' 's/"num_key_value_heads": *\d+/"num_key_value_heads": 3/'
config config-model-type 'model_type' 's/"model_type": *"qwen3_5_moe(_text)?"/"model_type": "llama"/g'
config config-activation 'hidden_act' 's/"hidden_act": *"silu"/"hidden_act": "gelu"/'
config config-rope 'rope' 's/"rope_type": *"default"/"rope_type": "yarn"/'
cp -r $hf "$work/noconfig" && chmod -R u+w "$work/noconfig" && rm "$work/noconfig/config.json"
convert no-config 66 'config.json' "$work/noconfig"
convert no-directory 66 'no-such-directory' "$work/no-such-directory"

# --- a good shard directory, then damaged copies of it
"$exe" convert --from $hf --to "$work/good" --recipe q4 --shards 2 --quiet 2>/dev/null ||
    "$exe" convert --from $hf --to "$work/good" --recipe q4 --shards 2 2>/dev/null
"$exe" convert --from $hf --to "$work/foreign" --recipe bf16 --shards 2 2>/dev/null
run() { # name, code, pattern, directory, options...
    local n=$1 code=$2 pattern=$3 dir=$4
    shift 4
    bad "$n" "$code" "$pattern" "$exe" run --model "$dir" "$@"
}
damaged() { # name: a copy of the good directory
    cp -r "$work/good" "$work/$1"
    chmod -R u+w "$work/$1"
    echo "$work/$1"
}
d=$(damaged flipped)
file=$(find "$d" -name 'layer-000.qep')
perl -e 'open F, "+<:raw", $ARGV[0] or die; seek F, (-s F) / 2, 0; read F, $b, 1; seek F, -1, 1; print F $b ^ "\x10"' "$file"
run flipped-bit 65 'layer-000.qep' "$d" --prompt hi
d=$(damaged lost) && rm "$d"/shard-01-of-02.qep
run shard-missing 65 'shard-01-of-02.qep' "$d" --prompt hi
d=$(damaged short) && truncate -s -1 "$d"/shard-00-of-02.qep
run shard-truncated 65 'shard-00-of-02.qep' "$d" --prompt hi
d=$(damaged mixed) && cp "$work/foreign/layer-001.qep" "$d/layer-001.qep"
run shard-foreign 65 'layer-001.qep' "$d" --prompt hi
d=$(damaged nomanifest) && rm "$d/manifest.json"
run no-manifest 66 'manifest.json' "$d" --prompt hi
d=$(damaged badmanifest) && perl -0777 -pi -e 's/"version"/"verSion"/; s/\}\s*$//' "$d/manifest.json"
run bad-manifest 65 'manifest.json' "$d" --prompt hi
d=$(damaged tokenizer-ids) && perl -0777 -pi -e 's/("id":\s*)\d+/${1}99999/' "$d/tokenizer.json"
run tokenizer-changed 65 'tokenizer.json: changed.*qwen-ep reseal' "$d" --prompt hi
bad tokenizer-ids 65 'tokenizer.json: token .*vocab_size' "$exe" reseal "$d"
d=$(damaged no-tokenizer) && rm "$d/tokenizer.json"
run tokenizer-missing 65 'tokenizer.json: missing.*qwen-ep reseal' "$d" --prompt hi
"$exe" reseal "$d" >/dev/null
run no-tokenizer 65 'no tokenizer.json in the model directory' "$d" --prompt hi

# --- a split regex without end: nothing waits for it, the next request of a stream is answered, and a stop is heard
d=$(damaged endless) && perl -pi -e 's/"Regex": *"[^"]*"/"Regex": "(a|a)*b|.*"/' "$d/tokenizer.json" && "$exe" reseal "$d" >/dev/null
head -c 900 /dev/zero | tr '\0' a >"$work/aaa"
run endless-regex 65 'tokenizer.json: split regex "\(a\|a\)\*b.*too many steps' "$d" --raw --prompt-file "$work/aaa"
bad endless-tokenize 65 'too many steps' "$exe" tokenize --model "$d" --text-file "$work/aaa"
printf '{"text": "%s"}\n{"text": "hi"}\n' "$(cat "$work/aaa")" | "$exe" tokenize --model "$d" --jsonl >"$work/out"
if [ $? = 0 ] && [ "$(grep -c . "$work/out")" = 2 ] && grep -q '^{"error": ".*too many steps' "$work/out" &&
    tail -1 "$work/out" | grep -q '^\[71, 72\]$'; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: --jsonl with an endless regex"; cut -c1-200 "$work/out"; fi
yes "$(cat "$work/aaa")" | head -c 50000000 >"$work/many"
"$exe" run --model "$d" --raw --prompt-file "$work/many" --quiet >/dev/null 2>"$work/err" &
pid=$!
sleep 2
kill -TERM $pid
start=$EPOCHREALTIME
wait $pid
code=$?
took=$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))
if [ $code = 75 ] && [ $took -le 2000 ] && grep -q interrupted "$work/err"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: SIGTERM within a split regex: exit $code after $took ms: $(head -1 "$work/err")"; fi
rm "$work/aaa" "$work/many"

d=$(damaged template) && echo '{{ messages }}' >"$d/chat_template.jinja" && "$exe" reseal "$d" >/dev/null
run unknown-template 65 'unknown chat template' "$d" --prompt hi

# --- the command line
run long-prompt 64 '--ctx' "$work/good" --raw --ctx 64 --prompt "$(head -c 4000 /dev/zero | tr '\0' 'x')"
run ctx-beyond-model 64 '--ctx' "$work/good" --ctx 16000000 --prompt hi
run no-input 64 'prompt' "$work/good"
run two-inputs 64 'prompt' "$work/good" --prompt hi -i
run no-model-dir 66 'nowhere' "$work/nowhere" --prompt hi
run bad-number 64 'top-k' "$work/good" --prompt hi --top-k many
run bad-choice 64 'backend' "$work/good" --prompt hi --backend fpga
run unknown-option 64 'frobnicate' "$work/good" --prompt hi --frobnicate
run bad-chunk 64 'prefill-chunk' "$work/good" --prompt hi --prefill-chunk 100
run bad-token-ids 64 'prompt-tokens' "$work/good" --prompt-tokens 1,x
run token-outside 64 'vocabulary' "$work/good" --prompt-tokens 1,999999
run empty-prompt 64 'empty' "$work/good" --raw --prompt ""
run bad-activations 64 'activations' "$work/good" --backend reference --activations int8 --prompt hi
run no-prompt-file 66 'no-such-file' "$work/good" --prompt-file "$work/no-such-file"
echo '{"messages": [' >"$work/chat.json"
run bad-chat 65 'chat.json' "$work/good" --chat "$work/chat.json"
echo '{"messages": [{"role": "alien", "content": "x"}]}' >"$work/chat.json"
run bad-role 65 'role|user' "$work/good" --chat "$work/chat.json"
run logits-dir 73 'no-such-dir' "$work/good" --prompt hi --logits "$work/no-such-dir/x"
run no-cuda 69 'cuda' "$work/good" --prompt hi --backend cuda
bad no-command 64 'command' "$exe" frobnicate
"$exe" convert --from $hf --to "$work/bf16" --recipe bf16 2>/dev/null
run int8-on-bf16 64 'activations' "$work/bf16" --activations int8 --prompt hi

# --- output that cannot be written
touch "$work/file"
bad not-a-directory 73 'file' "$exe" convert --from $hf --to "$work/file/sub" --recipe q4
bad complete-directory 73 'force' "$exe" convert --from $hf --to "$work/good" --recipe q4
limited() { # a file size limit stands in for a full disk
    ulimit -f 50
    exec "$@"
}
export -f limited
export exe hf work
name=disk-full
# shellcheck disable=SC2016
check 1 74 'write failed' bash -c 'limited "$exe" convert --from "$hf" --to "$work/full" --recipe bf16 --jobs 1'
[ ! -e "$work/full/manifest.json" ] || { failed=$((failed + 1)); echo "FAILED: disk-full left a manifest"; }
# shellcheck disable=SC2016
[ $have_mpi = 0 ] || { rm -rf "$work/full"; check 4 74 'write failed' bash -c 'limited "$exe" convert --from "$hf" --to "$work/full" --recipe bf16 --jobs 1'; }
name=stdout-full
[ -c /dev/full ] || echo "no /dev/full here: writing to a full stdout not tried"
# shellcheck disable=SC2016
[ ! -c /dev/full ] || check 1 74 'stdout' bash -c '"$exe" run --model "$work/good" --prompt hi --max-new-tokens 4 --quiet >/dev/full'

# --- fine after all: ill-formed UTF-8 is read as U+FFFD; NaN weights are taken when asked
if "$exe" run --model "$work/good" --max-new-tokens 2 --prompt $'caf\351 \377' >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: ill-formed UTF-8 prompt refused"; fi
if "$exe" convert --from "$work/nan" --to "$work/out-nan" --recipe q4 --allow-nan >/dev/null 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: --allow-nan refused"; fi

[ $have_mpi = 1 ] || echo "mpirun not used: built without MPI"
echo "bad input: $passed passed, $failed failed"
[ $failed = 0 ]
