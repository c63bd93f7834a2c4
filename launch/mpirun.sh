#!/bin/bash
# mpirun.sh -np P PROGRAM ARGS...: mpirun as qwen-ep likes it. The ranks bind themselves (--bind), so
# the launcher does not; more ranks than cores are allowed; root is, in containers.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/mpi_env.sh
. "$here/mpi_env.sh"

np=1
for ((i = 1; i < $#; i++)); do
    case ${!i} in
    -np | -n | --np | --n)
        next=$((i + 1))
        np=${!next}
        break
        ;;
    -*) ;;
    esac
done
case $np in
'' | *[!0-9]*)
    echo "usage: mpirun.sh -np P PROGRAM ARGS..." >&2
    exit 64
    ;;
esac
options=(--bind-to none)
[ "$np" -le "$(nproc)" ] || options+=(--oversubscribe)
exec mpirun "${options[@]}" "$@"
