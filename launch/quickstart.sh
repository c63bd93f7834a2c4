#!/bin/bash
# quickstart.sh: from a bare Debian 12 to a first answer: installs what is missing, builds, converts
# the tiny chat model that comes with the sources, and asks it a question on 4 MPI ranks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/mpi_env.sh
. launch/mpi_env.sh
export LC_ALL=C

question="What is 15% of 80?"
model=build/tiny-q4
log=build/quickstart.log

quietly() { # runs a command, shows its output only when it fails
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "quickstart: failed: $*" >&2
        exit 1
    fi
}

mkdir -p build
launch/setup.sh build
echo "building ..."
quietly cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DQEP_TESTS=OFF
quietly cmake --build build --parallel "$(nproc)"

echo "converting tests/data/tiny-chat to $model (4-bit experts) ..."
quietly build/qwen-ep convert --from tests/data/tiny-chat --to "$model" --recipe q4 --force

ask=(mpirun -np 4 --oversubscribe --bind-to none build/qwen-ep run --model "$model" --prompt "$question")
echo "\$ ${ask[*]:0:${#ask[@]}-1} \"$question\""
if ! answer=$("${ask[@]}" 2>"$log" </dev/null); then
    cat "$log" >&2
    echo "quickstart: the run failed" >&2
    exit 1
fi
echo "$answer"
case $answer in
*12*) echo "ok" ;;
*)
    cat "$log" >&2
    echo "quickstart: the answer to '$question' should contain 12" >&2
    exit 1
    ;;
esac
