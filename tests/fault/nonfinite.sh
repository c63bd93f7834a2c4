#!/bin/bash
# Weights that are NaN, infinite or too large: convert names the element; forced in, nothing makes an answer of them, and
# --verbose names the layer they first show in, on three ranks and on a GPU. (Activation types: test_nonfinite_model.)
# usage: nonfinite.sh path/to/qwen-ep [path/to/qwen-ep-emu]
set -u
exe=$1 emu=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

says() { # name, expected code, pattern of the one line, command...
    local name=$1 want=$2 pattern=$3 code
    shift 3
    timeout -k 2 60 "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    if [ "$code" = "$want" ] && [ "$(grep -c '^qwen-ep:' "$work/err")" = 1 ] && grep -Eq "^qwen-ep:.*$pattern" "$work/err"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: exit $code (expected $want), pattern '$pattern'"
        tail -n 1 "$work/err" | cut -c1-300
    fi
}

# A copy of the checkpoint with 16 bits of one tensor (the high half, of a float32 one) replaced.
plant() { # tensor, element, four hexadecimal digits
    rm -rf "$work/hf"
    cp -r tests/data/tiny-chat "$work/hf"
    chmod -R u+w "$work/hf"
    perl -e 'my ($path, $name, $at, $hex) = @ARGV;
        open F, "+<:raw", $path or die; { local $/; $f = <F>; } $n = unpack "Q<", $f;
        substr($f, 8, $n) =~ /"[^"]*\Q$name\E":\{([^}]*)\}/ or die "no $name"; my $t = $1;
        my ($begin) = $t =~ /"data_offsets":\s*\[(\d+)/; my $wide = $t =~ /"F32"/;
        seek F, 8 + $n + $begin + ($wide ? 4 * $at + 2 : 2 * $at), 0; print F pack("v", hex $hex);' \
        "$work/hf/model.safetensors" "$@"
}

model=(--model "$work/d" --prompt "2+3=" --greedy --max-new-tokens 8)

check() { # tensor, element, "[row, column]", what convert says, what run -v says
    local name=$1 where=$3 what=$4 part=$5
    says "convert: $name" 65 "$what at \\$where of .*--allow-nan" "$exe" convert --from "$work/hf" --to "$work/d" --force
    "$exe" convert --from "$work/hf" --to "$work/d" --allow-nan --force 2>"$work/err" || cat "$work/err"
    says "run: $name" 65 'logits: .*--verbose names' "$exe" run "${model[@]}"
    says "run -v, 3 ranks: $name" 65 "logits: .*comes from: $part" "$exe" run "${model[@]}" --verbose \
        --transport threads --ranks 3
    [ -z "$emu" ] || [ "$part" = "${part/layer [02]/}" ] ||
        says "run -v, GPU: $name" 65 "logits: .*comes from: $part" "$emu" run "${model[@]}" --backend cuda --verbose
}

case_of() { # tensor, element, pattern, "[row, column]", what convert says, what run -v says
    plant "$1" "$2" "$3"
    check "$1 $3" "$2" "$4" "$5" "$6"
}

nan='NaN or infinity'
case_of layers.0.input_layernorm.weight 5 7fc0 '[0, 5]' "$nan" 'layer 0, deltanet, position 0'
case_of layers.2.linear_attn.norm.weight 3 ffc0 '[0, 3]' "$nan" 'layer 2, deltanet, position 0'
case_of layers.1.linear_attn.in_proj_qkv.weight 97 7f80 '[1, 1]' "$nan" 'layer 1, deltanet, position 0'
case_of layers.3.self_attn.k_norm.weight 2 ff80 '[0, 2]' "$nan" 'layer 3, attention, position 0'
case_of layers.2.post_attention_layernorm.weight 95 7f80 '[0, 95]' "$nan" 'layer 2, experts, position 0'
case_of layers.0.mlp.gate.weight 100 7fc0 '[1, 4]' "$nan" 'layer 0, experts, position 0'
case_of layers.1.mlp.shared_expert.up_proj.weight 0 7f7f '[0, 0]' '3.38953e.38, too large for int8,' 'layer 1, experts, position 0'
case_of language_model.norm.weight 0 7fc0 '[0, 0]' "$nan" 'the final norm or lm_head'
case_of lm_head.weight 400 ff7f '[4, 16]' '-3.38953e.38, too large for int8,' 'the final norm or lm_head'

# What is not reached changes nothing: a token's own embedding, of a token that does not come.
"$exe" convert --from tests/data/tiny-chat --to "$work/d" --force 2>/dev/null
"$exe" run "${model[@]}" >"$work/right" 2>/dev/null
plant embed_tokens.weight $((431 * 96)) 7fc0
"$exe" convert --from "$work/hf" --to "$work/d" --allow-nan --force 2>/dev/null
if "$exe" run "${model[@]}" >"$work/out" 2>"$work/err" && cmp -s "$work/out" "$work/right"; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
    echo "FAILED: a row that nobody reads: $(head -1 "$work/err")"
fi

echo "nonfinite: $passed passed, $failed failed"
[ $failed = 0 ]
