#!/bin/bash
# setup.sh build|test: installs the Debian packages that building (or also testing) needs, when some
# are missing. Nothing is touched when all are there.
set -euo pipefail

build_packages=(build-essential cmake libopenmpi-dev openmpi-bin libzstd-dev libcjson-dev
    libpcre2-dev libutf8proc-dev libxxhash-dev)
test_packages=(procps zstd check libsubunit-dev clang llvm libclang-rt-dev clang-format shellcheck)

packages=("${build_packages[@]}")
case ${1:-build} in
build) ;;
test) packages+=("${test_packages[@]}") ;;
*)
    echo "usage: setup.sh build|test" >&2
    exit 64
    ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "setup: no apt-get here; needed are your system's packages for: ${packages[*]}" >&2
    exit 0 # they may well be there: the build says what is missing
fi

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup: packages are missing, and this is neither root nor is there sudo. As root:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 69
    fi
    as_root=(sudo)
fi

echo "setup: installing ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qq -o Dpkg::Use-Pty=0 "$@"
}
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get could not install the packages (is there a network?)" >&2
    exit 69
fi
