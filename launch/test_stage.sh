#!/bin/bash
# test_stage.sh NAME: one stage of test.sh, which sets work, logs, jobs, fuzz_seconds and junit.
# Exit 0: passed; 77: skipped, the last line says why.
set -uo pipefail
: "${work:?}" "${logs:?}" "${jobs:?}" "${fuzz_seconds:?}" "${junit:?}"

configure() { # DIR CMAKE_ARGS...: -Werror everywhere; nvcc only where a stage asks for it
    local dir=$work/$1
    shift
    cmake -S . -B "$dir" -DQEP_WERROR=ON -DQEP_CUDA=OFF "$@"
}

build() { # DIR CMAKE_ARGS...
    configure "$@" && cmake --build "$work/$1" --parallel "$jobs"
}

run_ctest() { # DIR CTEST_ARGS...
    local dir=$work/$1
    shift
    ctest --test-dir "$dir" --output-on-failure --no-tests=error --parallel "$jobs" \
        --output-junit "$junit" "$@"
}

need() { # TOOL...
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || { echo "no $tool" && exit 77; }
    done
}

source_files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files -z '*.c' '*.h' '*.cu' '*.cuh' '*.cpp'
    else
        find src kernels tests bench -regex '.*\.\(c\|h\|cu\|cuh\|cpp\)' -print0 2>/dev/null
    fi
}

stage_format() {
    need clang-format
    clang-format --version | grep -q 'version 14\.' ||
        { echo "clang-format is not version 14, whose style counts" && exit 77; }
    source_files | xargs -0 clang-format --dry-run -Werror
}

stage_shell() {
    need shellcheck
    find launch tests .ci -type f \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run \) -print0 |
        xargs -0 shellcheck -x -S warning
}

stage_gcc() { build gcc -DCMAKE_C_COMPILER=gcc -DCMAKE_BUILD_TYPE=Release; }
stage_unit() { run_ctest gcc --label-regex '^(unit|mpi)$' --label-exclude '^e2e$'; }
stage_e2e() { run_ctest gcc --label-regex '^(e2e|fault)$' --label-exclude '^(unit|mpi)$'; }

# The suite for machines with a GPU, over the emulator and with canned programs: its shell code, the
# program end to end and the benchmarks. The kernels' own tests are unit tests.
stage_emu() { tests/gpu/test_suite.sh "$work/gcc"; }

# The tests of the CUDA backend must see planted faults.
stage_defects() {
    need g++
    tests/seeded_defects.sh --build "$work/gcc"
}

stage_no_mpi() {
    configure no-mpi -DCMAKE_BUILD_TYPE=Release -DQEP_MPI=OFF -DQEP_TESTS=OFF &&
        cmake --build "$work/no-mpi" --parallel "$jobs" -t qwen-ep || return 1
    ldd "$work/no-mpi/qwen-ep" | grep libmpi && echo "linked with MPI" && return 1
    tests/e2e/chat.sh "$work/no-mpi/qwen-ep" && tests/e2e/ranks.sh "$work/no-mpi/qwen-ep"
}

# What tests/gpu_suite.sh builds where it has no pack, and the programs that it then runs.
make_gpu_targets() { # OPTIONS...
    local targets
    read -ra targets <<<"$(sed -n 's/^targets=(\(.*\))$/\1/p' tests/gpu/steps.sh)"
    mapfile -t -O ${#targets[@]} targets <"$work/nvcc/tests/gpu_tests.txt"
    [ ${#targets[@]} -gt 10 ] || { echo "FAILED: only ${targets[*]}" && return 1; }
    cmake --build "$work/nvcc" -t "${targets[@]}" "$@"
}

# Real kernels for every architecture; they run only where there is a GPU.
stage_nvcc() {
    local program=$work/nvcc/qwen-ep
    [ -x /usr/local/cuda/bin/nvcc ] && PATH=$PATH:/usr/local/cuda/bin
    need nvcc
    configure nvcc -DCMAKE_BUILD_TYPE=Release -DQEP_CUDA=ON && make_gpu_targets --parallel "$jobs" &&
        make_gpu_targets -- -n >/dev/null || return 1
    ldd "$program" | grep -E 'libcuda|libnccl|libstdc' && echo "needs what other machines lack" && return 1
    "$program" --version
}

# The pack for a rented GPU, and what the suite says of it on a machine without one. Minutes: for
# test.sh --full.
stage_pack() {
    local pack=$work/gpu-pack.tar.xz out=$work/gpu-pack-out
    [ -x /usr/local/cuda/bin/nvcc ] && PATH=$PATH:/usr/local/cuda/bin
    need nvcc xz
    launch/gpu_pack.sh --build "$work/gpu-pack" "$pack" || return 1
    [ "$(wc -c <"$pack")" -lt 12000000 ] || { echo "the pack is large: $(wc -c <"$pack") bytes" && return 1; }
    if tests/gpu_suite.sh --pack "$pack" --phase 1 "$out"; then
        return 0 # there is a GPU, and all is well
    fi
    grep '^programs *passed' "$out/summary.txt" && grep '^smoke *FAILED' "$out/summary.txt" &&
        grep -E 'no NVIDIA driver|no GPU' "$out/summary.txt"
}

# Memory that runs out at every single request; the unit test takes a part of them.
stage_memory() { QEP_TEST_EVERY=1 "$work/gcc/tests/test_out_of_memory"; }
# More damaged inputs than the label fault has, others each time. For test.sh --full.
stage_hostile() {
    tests/fault/hostile.sh "$work/gcc/qwen-ep" "$work/gcc/tests/hostile_tool" --seed "$(date +%s)" --cases 5000 \
        --jobs "$jobs"
}

stage_clang() {
    need clang
    build clang -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Release -DQEP_TESTS=ON
}

# Some containers forbid the ptrace that the leak checker uses.
leak_check_works() {
    echo 'int main(void) { return 0; }' | clang -fsanitize=address -x c - -o "$work/leak-probe" &&
        ASAN_OPTIONS=detect_leaks=1 "$work/leak-probe"
}

stage_asan() {
    need clang
    leak_check_works || export ASAN_OPTIONS=detect_leaks=0
    # Open MPI leaks, and its frames cannot be named: leaks are looked for in ranks without it only.
    export OMPI_MCA_mca_base_env_list=ASAN_OPTIONS=detect_leaks=0
    build asan -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DQEP_SANITIZE=address,undefined && run_ctest asan --label-exclude '^long$' --timeout 600
}

stage_tsan() {
    need clang
    export TSAN_OPTIONS=halt_on_error=1
    build tsan -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DQEP_MPI=OFF \
        -DQEP_SANITIZE=thread && run_ctest tsan --label-regex '^threads$' --timeout 600
}

# shellcheck disable=SC2317 # called by name
fuzz_one() { # PROGRAM
    local name=${1##*/fuzz_} corpus seeds
    corpus=$work/fuzz-corpus/$name seeds=tests/fuzz/corpus/$name
    mkdir -p "$corpus"
    [ -d "$seeds" ] || seeds=
    "$1" -max_total_time="$fuzz_seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$work/fuzz-found-$name-" "$corpus" ${seeds:+"$seeds"} \
        >"$logs/fuzz-$name.log" 2>&1 && return 0
    echo "fuzz_$name found something:"
    tail -n 40 "$logs/fuzz-$name.log"
    return 1
}

stage_fuzz() {
    need clang
    build fuzz -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DQEP_MPI=OFF \
        -DQEP_FUZZ=ON -DQEP_SANITIZE=address,undefined || return 1
    local programs
    mapfile -t programs < <(find "$work/fuzz/tests/fuzz" -maxdepth 1 -type f -name 'fuzz_*' -perm -u+x)
    [ ${#programs[@]} -gt 0 ] || { echo "no fuzz targets" && exit 77; }
    printf '%s\0' "${programs[@]}" | xargs -0 -n 1 -P "$jobs" launch/test_stage.sh fuzz_one
}

case ${1:-} in
fuzz_one) fuzz_one "$2" ;;
format | shell | gcc | unit | e2e | emu | defects | no-mpi | nvcc | pack | hostile | clang | asan | tsan | fuzz) "stage_${1//-/_}" ;;
*)
    echo "usage: test_stage.sh NAME" >&2
    exit 64
    ;;
esac
