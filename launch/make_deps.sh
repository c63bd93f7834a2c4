#!/bin/bash
# make_deps.sh [--check] DIR: unpacks the libraries that building needs into DIR, for a machine that
# has a compiler but neither these packages nor a network: cmake -DQEP_DEPS=DIR. Runs where apt-get
# works, without root. --check adds what the tests need. Open MPI is not part of it.
set -euo pipefail

packages=(libzstd-dev libxxhash-dev libcjson-dev libpcre2-dev libutf8proc-dev)
runtime='^lib(zstd|xxhash|cjson|pcre2-8-|utf8proc|subunit)[0-9]'
dir=
for arg in "$@"; do
    case $arg in
    --check) packages+=(check libsubunit-dev) ;;
    -*) dir='' && break ;;
    *) dir=$arg ;;
    esac
done
if [ -z "$dir" ]; then
    echo "usage: make_deps.sh [--check] DIR" >&2
    exit 64
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "make_deps: needs apt-get and dpkg-deb" >&2
    exit 69
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt's own user reads here
mkdir -p "$dir" "$work/deb" "$work/lists/partial" "$work/cache/archives/partial"
dir=$(cd "$dir" && pwd)
options=()
say() { echo "make_deps: $*" >&2; }
apt() { (cd "$work/deb" && LC_ALL=C "$@") >>"$work/log" 2>&1; }

# The machine's package lists, or, where it has none, lists of our own.
known() { LC_ALL=C apt-cache "${options[@]}" show "$1" >/dev/null 2>&1; }
for package in "${packages[@]}"; do
    known "$package" && continue
    say "fetching package lists"
    options=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
    if ! apt apt-get "${options[@]}" -q update; then
        tail -n 5 "$work/log" >&2
        say "apt-get update failed (is there a network?)"
        exit 69
    fi
    break
done

# Shared libraries lie in packages whose names carry versions: those that -dev packages depend on.
read -ra libraries <<<"$(LC_ALL=C apt-cache "${options[@]}" depends --no-recommends "${packages[@]}" |
    sed -n 's/^ *Depends: //p' | grep -E "$runtime" | sort -u | tr '\n' ' ')"
say "unpacking ${packages[*]} ${libraries[*]} into $dir"
if ! apt apt-get "${options[@]}" -q download "${packages[@]}" "${libraries[@]}"; then
    tail -n 5 "$work/log" >&2
    say "apt-get download failed"
    exit 69
fi
for deb in "$work"/deb/*.deb; do
    dpkg-deb -x "$deb" "$dir"
done

# Headers and libraries are all that a build looks at; a shared library is left where there is no
# static one, as plain files: links do not survive every way of copying.
rm -rf "${dir:?}"/usr/{share,bin}
find "$dir" \( -name pkgconfig -o -name cmake \) -prune -exec rm -rf {} +
find "$dir" \( -name 'libpcre2-16*' -o -name 'libpcre2-32*' -o -name 'libpcre2-posix*' \) -delete
find "$dir" -name 'lib*.a' | while IFS= read -r static; do
    rm -f "${static%.a}".so*
done
find "$dir" -type l | while IFS= read -r link; do
    cp --remove-destination "$(readlink -f "$link")" "$link"
done
say "$(du -sm "$dir" | cut -f1) MB in $dir"
