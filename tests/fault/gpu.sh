#!/bin/bash
# What goes wrong with GPUs: none, too little memory, two ranks on one, NCCL versions, a kernel that fails, a
# peer that is lost: one error line, the right exit code, within seconds. Over the emulator.
# usage: gpu.sh path/to/qwen-ep-emu path/to/qwen-ep
set -u
exe=$1 plain=$2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
have_mpi=0
command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi && have_mpi=1

"$plain" convert --from tests/data/tiny-chat --to "$work/q4" --recipe q4 2>"$work/err" ||
    { cat "$work/err" && exit 1; }
run=(run --quiet --greedy --model "$work/q4" --backend cuda --prompt Hello --max-new-tokens 4)

# Processes that fail at the same moment, each by itself, may each speak before the launcher ends them.
most_lines=1
bad() { # name, expected code, pattern of the line, command...
    local name=$1 want=$2 pattern=$3 start=$SECONDS code lines
    shift 3
    timeout -k 2 60 "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    lines=$(grep -c '^qwen-ep:' "$work/err")
    if [ "$code" = "$want" ] && [ "$lines" -ge 1 ] && [ "$lines" -le $most_lines ] &&
        grep -Eq "^qwen-ep:.*$pattern" "$work/err" && [ $((SECONDS - start)) -le 30 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: exit $code (expected $want), $lines error lines, pattern '$pattern'"
        head -5 "$work/err" | cut -c1-300
    fi
}

good() { # name, command...: prints what one GPU prints
    local name=$1
    shift
    if timeout -k 2 120 "$@" >"$work/out" 2>"$work/err" </dev/null && cmp -s "$work/out" "$work/one"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: $(head -1 "$work/err"), $(head -c 60 "$work/out")"
    fi
}

timeout -k 2 120 "$exe" "${run[@]}" >"$work/one" 2>"$work/err" || { cat "$work/err" && exit 1; }
[ -s "$work/one" ] || { echo "FAILED: no text" && exit 1; }

# Without a GPU: said, or the CPU where the choice is free.
if ! "$plain" "${run[@]}" >/dev/null 2>"$work/err" && grep -q 'no CUDA backend' "$work/err"; then
    bad "build without CUDA" 69 'no CUDA backend' "$plain" "${run[@]}"
fi
bad "no GPU" 69 'no GPU found' env QEP_EMU_DEVICES=0 "$exe" "${run[@]}"
bad "nccl without GPU" 69 'between GPUs' env QEP_EMU_DEVICES=0 "$exe" "${run[@]}" --backend auto --transport nccl
QEP_EMU_DEVICES=0 timeout 60 "$exe" "${run[@]}" --backend auto >/dev/null 2>"$work/err" && passed=$((passed + 1)) ||
    { failed=$((failed + 1)) && echo "FAILED: auto without a GPU: $(head -1 "$work/err")"; }
# Compute capability 8.6 and 8.9.
bad "little shared memory" 69 '99 KB of shared memory.*163' env QEP_EMU_SHARED=101376 "$exe" "${run[@]}"
QEP_EMU_SHARED=101376 timeout 60 "$exe" "${run[@]}" --backend auto >/dev/null 2>"$work/err" && passed=$((passed + 1)) ||
    { failed=$((failed + 1)) && echo "FAILED: auto with little shared memory: $(head -1 "$work/err")"; }
bad "int8 activations" 64 'activations int8' "$exe" "${run[@]}" --activations int8
bad "fp32 activations" 64 'activations fp32' "$exe" "${run[@]}" --activations fp32

# Too little memory is said before loading, with what would do.
bad "little memory" 69 'too little GPU memory.*ranks on GPUs of their own' \
    env QEP_EMU_MEMORY=2000000 "$exe" "${run[@]}"
bad "very little memory" 69 'too little GPU memory.*no number' env QEP_EMU_MEMORY=20000 "$exe" "${run[@]}"
bad "a context too long" 69 'too little GPU memory.*1 x 4096 positions.*--ctx [0-9]+ would do' \
    env QEP_EMU_MEMORY=3000000 "$exe" "${run[@]}" --ctx 4096 --prefill-chunk 64
bad "too many sequences" 69 'too little GPU memory.*16 x 64 positions.*--slots [0-9]+ would do' \
    env QEP_EMU_MEMORY=3000000 "$exe" "${run[@]}" --ctx 64 --slots 16
bad "a chunk too large" 69 'too little GPU memory.*--prefill-chunk 128 would do' \
    env QEP_EMU_MEMORY=3500000 "$exe" "${run[@]}" --ctx 256 --prefill-chunk 512
good "the chunk that would do" env QEP_EMU_MEMORY=3500000 "$exe" "${run[@]}" --ctx 256 --prefill-chunk 128

# Two ranks on one GPU: NCCL refuses, auto stages through the host.
bad "two ranks on one GPU" 69 'share one GPU' "$exe" "${run[@]}" --transport nccl --ranks 2
good "threads on one GPU" "$exe" "${run[@]}" --transport threads --ranks 2
good "nccl, one rank" "$exe" "${run[@]}" --transport nccl
bad "nccl, one rank, init fails" 69 ncclCommInit env QEP_FAKE_NCCL=init_fail=0 "$exe" "${run[@]}" --transport nccl
good "nccl over threads" env QEP_EMU_DEVICES=3 "$exe" "${run[@]}" --transport nccl --ranks 3
good "nccl, sequences" env QEP_EMU_DEVICES=2 "$exe" "${run[@]}" --transport nccl --ranks 2 --attention sequences
if [ $have_mpi = 1 ]; then
    good "mpirun on one GPU" mpirun --quiet -np 2 --oversubscribe --bind-to none "$exe" "${run[@]}"
    bad "mpirun, no GPU" 69 'no GPU found' env QEP_EMU_DEVICES=0 mpirun --quiet -np 2 --oversubscribe \
        --bind-to none "$exe" "${run[@]}"
    most_lines=2 bad "mpirun, a kernel fails" 69 'illegal' env QEP_EMU_FAIL_LAUNCH=150 mpirun --quiet -np 2 \
        --oversubscribe --bind-to none "$exe" "${run[@]}" --cuda-graphs off
fi

# NCCL's own failures.
bad "init fails" 69 'ncclCommInit' env QEP_EMU_DEVICES=2 QEP_FAKE_NCCL=init_fail=1 "$exe" "${run[@]}" \
    --transport nccl --ranks 2 --timeout 3
bad "a rank never joins" 75 'rank' env QEP_EMU_DEVICES=2 QEP_FAKE_NCCL=init_hang=1 "$exe" "${run[@]}" \
    --transport nccl --ranks 2 --timeout 2
bad "an operation fails" 69 'nccl' env QEP_EMU_DEVICES=2 QEP_FAKE_NCCL=fail_rank=1,fail_op=20 "$exe" \
    "${run[@]}" --transport nccl --ranks 2
bad "a peer dies in a collective" 69 'nccl' env QEP_EMU_DEVICES=2 QEP_FAKE_NCCL=lost_rank=1,lost_op=20 \
    "$exe" "${run[@]}" --transport nccl --ranks 2
# While tokens are waited for, long before the watchdog looks.
for graphs in on off; do
    for ranks in 2 3; do
        bad "a peer of $ranks dies in a decode step, graphs $graphs" 69 \
            'failed: remote process exited.*connection to rank 1.*in step' env QEP_EMU_DEVICES=3 \
            QEP_FAKE_NCCL=lost_rank=1,lost_op=200 "$exe" "${run[@]}" --max-new-tokens 100 --ignore-eos \
            --transport nccl --ranks $ranks --cuda-graphs $graphs --timeout 20
    done
done
bad "a peer hangs in a collective" 75 'no progress' env QEP_EMU_DEVICES=2 \
    QEP_FAKE_NCCL=stuck_rank=1,stuck_op=20 "$exe" "${run[@]}" --transport nccl --ranks 2 --timeout 3

# A kernel that touches bad memory.
bad "a kernel fails" 69 'illegal.*step' env QEP_EMU_FAIL_LAUNCH=400 "$exe" "${run[@]}" --cuda-graphs off

# What is timed must be work: logits that are NaN, and rows that end on the way, are no figures.
cp -r tests/data/tiny-chat "$work/nan" && chmod -R u+w "$work/nan"
perl -e 'open F, "+<:raw", $ARGV[0] or die; { local $/; $f = <F>; } $n = unpack "Q<", $f;
    substr($f, 8, $n) =~ /"[^"]*language_model\.norm\.weight":\{[^}]*"data_offsets":\[(\d+)/ or die "no norm";
    seek F, 8 + $n + $1, 0; print F "\xc0\x7f" x 2;' "$work/nan/model.safetensors" || failed=$((failed + 1))
"$plain" convert --from "$work/nan" --to "$work/nan-q4" --recipe q4 --allow-nan 2>"$work/err" || { cat "$work/err" && exit 1; }
timed=(bench --quiet --model "$work/nan-q4" -b 2 -n 3 -r 1)
bad "bench, a prompt's logits are NaN" 65 'logits: NaN' "$exe" "${timed[@]}" --backend cuda -p 64
bad "bench, decoded rows are NaN" 65 'sequence 0 of 2 has no token in step 0' "$exe" "${timed[@]}" --backend cuda -p 0
bad "bench on the host, NaN" 65 'logits: NaN' "$plain" "${timed[@]}" --backend cpu --activations bf16 -p 0
bad "launches of graphs" 64 'cuda-graphs off' "$exe" "${timed[@]}" --backend cuda --launch-times "$work/times"
bad "launches of a host" 64 'no launches' "$plain" "${timed[@]::6}" --backend cpu --model "$work/q4" -p 64 -n 0 -r 1 \
    --cuda-graphs off --launch-times "$work/times"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
