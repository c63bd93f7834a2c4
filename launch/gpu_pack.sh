#!/bin/bash
# gpu_pack.sh [--arch CC] [--build DIR] FILE.tar.xz: what tests/gpu_suite.sh --pack FILE runs on a
# machine with a GPU: qwen-ep, bench_cuda and the tests of the CUDA backend, built here (nvcc,
# apt-get) for one architecture (90a), without MPI. The machine needs glibc 2.34 and a driver, no
# compiler. Takes minutes; what DIR (build/gpu-pack) holds already is not built again.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    echo "usage: gpu_pack.sh [--arch CC] [--build DIR] FILE.tar.xz" >&2
    exit 64
}
arch=90a build=build/gpu-pack file=
while [ $# -gt 0 ]; do
    case $1 in
    --arch) arch=${2:-} && shift ;;
    --build) build=${2:-} && shift ;;
    -*) usage ;;
    *) [ -z "$file" ] && file=$1 || usage ;;
    esac
    shift || usage
done
[ -n "$file" ] && [ -n "$arch" ] && [ -n "$build" ] || usage
say() { echo "gpu_pack: $*" >&2; }
[ -x /usr/local/cuda/bin/nvcc ] && PATH=$PATH:/usr/local/cuda/bin
for tool in nvcc cmake strip objdump xz; do
    command -v "$tool" >/dev/null || { say "needs $tool" && exit 69; }
done

[[ $file == /* ]] || file=$here/$file
mkdir -p "$build"
build=$(cd "$build" && pwd)
log=$build/gpu_pack.log
build_programs() {
    [ -d "$build/deps/usr" ] || launch/make_deps.sh --check "$build/deps"
    cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DQEP_CUDA=ON -DQEP_MPI=OFF -DQEP_TESTS=ON \
        "-DQEP_DEPS=$build/deps" "-DCMAKE_CUDA_ARCHITECTURES=$arch-real"
    cmake --build "$build" --parallel "$(nproc)" -t qwen-ep bench_cuda gpu_tests
}
say "building for $arch in $build ..."
if ! (build_programs) >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "the build failed: $log"
    exit 70
fi

stage=$build/pack
rm -rf "$stage" && mkdir -p "$stage/bin" "$stage/lib"
cp "$build/qwen-ep" "$build/bench/bench_cuda" "$stage/bin"
cp "$build/tests/gpu_tests.txt" "$stage/tests.txt"
sed "s#^#$build/tests/#" "$stage/tests.txt" | xargs -d '\n' cp -t "$stage/bin"
strip "$stage"/bin/*
# Debian has cJSON as a shared library only.
ldd "$stage"/bin/* | sed -n 's/^.*=> \(.*libcjson[^ ]*\) .*/\1/p' | sort -u | xargs cp -L -t "$stage/lib"

glibc=$(objdump -T "$stage"/bin/* "$stage"/lib/* | sed -n 's/.*GLIBC_\(2\.[0-9]*\).*/\1/p' | sort -Vu | tail -n 1)
others=$(ldd "$stage"/bin/* | sed -n 's/^\t\([^ ]*\) .*/\1/p' | sort -u |
    grep -vE '^(linux-vdso|lib(c|m|rt|pthread|dl|cjson)\.so|/lib)' || true)
[ -z "$others" ] || { say "needs what other machines may lack: ${others//$'\n'/ }" && exit 70; }
{
    echo "commit $(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
    echo "arch $arch"
    echo "nvcc $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
    echo "glibc $glibc"
} >"$stage/pack.txt"
# The same kernels lie in every program: a dictionary as large as the archive finds them again.
tar -C "$stage" --sort=name --owner=0 --group=0 --mtime=@0 -cf - bin lib tests.txt pack.txt |
    xz -T1 --lzma2=preset=6,dict=128MiB >"$file.part"
mv "$file.part" "$file"
say "$file: $(du -k "$file" | cut -f1) KB, $(wc -l <"$stage/tests.txt") test programs, glibc >= $glibc"
