#!/bin/bash
# Ranks that were started for different things part with one line and exit 64, whatever it is that differs and whichever
# rank it is; what may differ between hosts does, and the answer is right.
# usage: agree.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}
if ! command -v mpirun >/dev/null || ! ldd "$exe" | grep -q libmpi; then
    echo "mpirun not used: built without MPI"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
m=$work/m hf=tests/data/tiny-chat count=0
jobs_at_once=6

"$exe" convert --from $hf --to "$m" --recipe q4 2>"$work/err" || { cat "$work/err"; exit 1; }
cp -r "$m" "$work/same"
"$exe" convert --from $hf --to "$work/q8" --recipe q8 2>"$work/err" || { cat "$work/err"; exit 1; }
echo '{"slots": 2}' >"$work/slots2.json"
echo '{"slots": 1}' >"$work/slots1.json"
printf 'top-k' >"$work/broken.json"

# Runs in the background, words after `--` on a rank of their own, after `--@DIR` on one that starts in DIR; the verdict lies
# in $work/N.bad. A launch that hangs is ended, and judged by its exit code.
judge() { # N, expected code, pattern of the line or of stdout
    local out=$work/$1.out err=$work/$1.err code
    code=$(cat "$work/$1.code")
    if [ "$2" = 0 ]; then
        [ "$code" = 0 ] && ! grep -q '^qwen-ep:' "$err" && grep -Eq "$3" "$out" && return
    else
        [ "$code" = "$2" ] && [ "$(grep -c '^qwen-ep:' "$err")" = 1 ] && grep -Eq "^qwen-ep: $3" "$err" && [ ! -s "$out" ] &&
            return
    fi
    echo "exit $code (expected $2), pattern '$3', stdout '$(head -c 100 "$out")', stderr '$(grep '^qwen-ep:' "$err" | head -3)'"
}
launch() { # expected code, pattern, words of rank 0 -- words of rank 1 ...
    local id=$((count += 1)) code=$1 pattern=$2 words=() word
    shift 2
    [[ ${1:-} = --@* ]] || words=(-np 1 "$exe")
    for word in "$@"; do
        case $word in
        --) words+=(: -np 1 "$exe") ;;
        --@*) words+=(${words[0]+:} -np 1 -wdir "${word#--@}" "$exe") ;;
        *) words+=("$word") ;;
        esac
    done
    echo "$*" >"$work/$id.name"
    while [ "$(jobs -rp | wc -l)" -ge $jobs_at_once ]; do wait -n; done
    {
        timeout 30 mpirun --quiet --oversubscribe --bind-to none "${words[@]}" >"$work/$id.out" 2>"$work/$id.err" </dev/null
        echo $? >"$work/$id.code"
        judge $id "$code" "$pattern" >"$work/$id.bad"
    } &
}
apart() { launch 64 "$@"; }

run=(run --model "$m" --prompt hi --max-new-tokens 1)
# --- options, given on one side or both, on rank 0 or not
differs() { # option, value of rank 1, value of rank 0, words of rank 1, words of rank 0
    apart "rank 1: --$1 differs: $2, rank 0 has $3\$" "${run[@]}" $5 -- "${run[@]}" $4
}
differs slots "'2'" "'1'" "--slots 2" ""
differs slots "'1'" "'3'" "" "--slots 3"
differs slots "'1'" "'2'" "--slots 1" "--slots 2"
differs isa "'avx2'" "'baseline'" "--isa avx2" "--isa baseline"
differs isa "'auto'" "'baseline'" "" "--isa baseline"
differs backend "'reference'" "'auto'" "--backend reference" ""
differs backend "'cuda'" "'auto'" "--backend cuda" ""
differs activations "'fp32'" "'auto'" "--activations fp32" ""
differs attention "'auto'" "'sequences'" "" "--attention sequences"
differs ctx "'4096'" "'0'" "--ctx 4096" "--ctx 0"
differs kv-type "'f32'" "'auto'" "--kv-type f32" ""
differs transport "'auto'" "'threads'" "" "--transport threads"
differs transport "'mpi'" "'auto'" "--transport mpi" ""
differs ranks "'2'" "'0'" "--ranks 2" ""
differs timeout "'0.1'" "'60'" "--timeout 0.1" ""
differs cuda-graphs "'off'" "'on'" "--cuda-graphs off" ""
differs prefill-chunk "'64'" "'512'" "--prefill-chunk 64" ""
differs config-file "'$work/slots1.json'" "not given" "--config-file $work/slots1.json" ""
differs config-file "not given" "'$work/slots1.json'" "" "--config-file $work/slots1.json"
differs config-file "'$work/slots2.json'" "'$work/slots1.json'" "--config-file $work/slots2.json" "--config-file $work/slots1.json"
differs slots "'1'" "'2'" "--slots 1 --config-file $work/slots2.json" "--config-file $work/slots2.json"
differs seed "'1'" "not given" "--seed 1" ""
differs top-p "'0.5'" "'0.25'" "--top-p 0.5" "--top-p 0.25"
differs greedy "given" "not given" "--greedy" ""
differs json "not given" "given" "" "--json"
differs prompt "'ho'" "'hi'" "--prompt ho" ""
differs logits "'x'" "not given" "--logits x" ""
differs interactive "given" "not given" "-i" ""
differs help "given" "not given" "--help" ""
differs help "not given" "given" "" "--help"
differs version "given" "not given" "--version" ""
apart "rank 1: --prompt differs: 'y{48}'\.\.\. \(90 bytes\), rank 0 has 'y{48}'\.\.\. \(80 bytes\)$" \
    run --model "$m" --prompt "$(printf 'y%.0s' {1..80})" -- run --model "$m" --prompt "$(printf 'y%.0s' {1..90})"
apart "rank 1: --slots differs: '2', rank 0 has '1'$" bench --model "$m" -- bench --model "$m" --slots 2
apart "rank 1: --batch differs: '1,8', rank 0 has '1'$" bench --model "$m" -- bench --model "$m" -b 1,8
apart "rank 1: --config differs: 'c.json', rank 0 has not given$" bench --model "$m" -- bench --config c.json --weights random
apart "rank 1: --shards differs: '4', rank 0 has '8'$" convert --from $hf --to "$work/no1" -- convert --from $hf --to "$work/no1" --shards 4
apart "rank 1: --recipe differs: 'q8', rank 0 has '$work/none'$" \
    convert --from $hf --to "$work/no2" --recipe "$work/none" -- convert --from $hf --to "$work/no2" --recipe q8
apart "rank 1: --recipe differs: 'q4', rank 0 has not given$" \
    synth --config $hf/config.json --out "$work/no3" -- synth --config $hf/config.json --out "$work/no3" --recipe q4
apart "rank 1: --verify differs: given, rank 0 has not given$" inspect "$m" -- inspect "$m" --verify
apart "rank 1: argument differs: '$work/q8', rank 0 has '$m'$" inspect "$m" -- inspect "$work/q8"
apart "rank 1: argument differs: '$work/q8', rank 0 has '$m'$" reseal "$m" -- reseal "$work/q8"
apart "rank 1: --text differs: not given, rank 0 has 'hi'$" tokenize --model "$m" --text hi -- tokenize --model "$m" --jsonl
apart "rank 1: weights \(manifest\) differs" "${run[@]}" -- "${run[@]}" --model "$work/q8"

# --- the odd one is rank 0, 1 or the last of 3
for odd in 0 1 2; do
    words=() help=() bad=()
    for r in 0 1 2; do
        [ $r = 0 ] || { words+=(--) help+=(--) bad+=(--); }
        words+=("${run[@]}") help+=(run) bad+=("${run[@]}")
        [ $r != $odd ] || { words+=(--slots 2) help=("${help[@]:0:${#help[@]}-1}" --help) bad+=(--frobnicate); }
    done
    apart "rank $((odd > 0 ? odd : 1)): --slots differs: '$((odd > 0 ? 2 : 1))', rank 0 has '$((odd > 0 ? 1 : 2))'$" "${words[@]}"
    apart "rank $((odd > 0 ? odd : 1)): command differs: '(help|run)', rank 0 has '(help|run)'$" "${help[@]}"
    apart "rank $odd: unknown or ambiguous option '--frobnicate'" "${bad[@]}"
done

# --- commands
for pair in "run inspect" "bench run" "inspect convert" "synth reseal" "tokenize run" "convert synth"; do
    read -r a b <<<"$pair"
    apart "rank 1: command differs: '$b', rank 0 has '$a'$" "$a" -- "$b"
done
apart "rank 1: command differs: 'inspect', rank 0 has 'run'$" run --help -- inspect "$m"
apart "rank 1: command differs: 'none', rank 0 has 'run'$" "${run[@]}" --
apart "rank 1: command differs: 'run', rank 0 has 'none'$" -- "${run[@]}"
apart "rank 1: command differs: 'frob', rank 0 has 'run'$" "${run[@]}" -- frob
apart "rank 1: command differs: 'run', rank 0 has 'help'$" --help -- run --help

# --- one of them is wrong in itself
apart "rank 1: unexpected argument 'hi'$" "${run[@]}" -- "${run[@]}" hi
apart "rank 0: --slots: expected a whole number" "${run[@]}" --slots x -- "${run[@]}"
apart "rank 1: unknown or ambiguous option '--what'" inspect --help -- inspect --what
launch 66 "rank 1: $work/nowhere: no such directory" "${run[@]}" -- "${run[@]}" --model "$work/nowhere"
launch 65 "$work/broken.json: invalid JSON" "${run[@]}" --config-file "$work/broken.json" -- "${run[@]}" --config-file "$work/broken.json"

# --- another directory by the same name
mkdir -p "$work/here" "$work/there/x/.convert" "$work/there/m"
from=(convert --from "$PWD/$hf" --to)
launch 73 "rank 1: x/.convert: not of this conversion \(is x on a file system that all ranks share\?\)$" \
    --@"$work/here" "${from[@]}" x --@"$work/there" "${from[@]}" x
launch 73 "rank 1: y: cannot open: No such file or directory$" --@"$work/here" "${from[@]}" y --@"$work/there" "${from[@]}" y
launch 66 "rank 1: m: " --@"$work" run --model m --prompt hi --@"$work/there" run --model m --prompt hi

# --- what may differ, and what only looks different
ask=(--prompt 'What is 15% of 80?')
together() { launch 0 '^15% of 80 is 12\.$' "$@"; }
together run --model "$m" "${ask[@]}" -- run "${ask[@]}" -m "$m" -n 512 --ctx=0 --slots=01 --timeout 6e1
together -m "$m" "${ask[@]}" -- run -m "$m" "${ask[@]}"
together run --model "$m" "${ask[@]}" -t 1 -v -- run --model "$m" "${ask[@]}" --threads 3 --bind keep -q --progress never
together run --model "$m" "${ask[@]}" -- run --model "$work/same" "${ask[@]}" -- run --model "$m/." "${ask[@]}"
together run --model "$m" "${ask[@]}" --config-file "$work/slots2.json" -- \
    run --model "$m" "${ask[@]}" --slots 2 --config-file "$work/slots2.json"
launch 0 '^model ' inspect "$m" --verify --jobs 1 -- inspect "$m" --jobs 2 --verify
launch 0 '^\[' tokenize --model "$m" --text hi -- tokenize --text=hi --model="$m"
launch 0 'usage' inspect --help -- inspect -h
launch 0 '^qwen-ep [0-9.]+$' --version -- run --version

wait
failed=0
for id in $(seq $count); do
    [ -s "$work/$id.bad" ] || continue
    failed=$((failed + 1))
    echo "FAILED: $(cat "$work/$id.name"): $(cat "$work/$id.bad")"
done
name=$(find "$work" -maxdepth 1 -name 'no[0-9]')
[ -z "$name" ] || { failed=$((failed + 1)); echo "FAILED: ranks that part left $name"; }
echo "agreement: $((count - failed)) passed, $failed failed"
[ $failed = 0 ]
