#!/bin/bash
# seeded_defects.sh [--build DIR] [--only NAME]... [--list]: do the CUDA backend's tests see faults?
# Every file of tests/cuda_emu/defects plants one (docs/testing.md says how they are written); the
# test program it names must then fail by a check of its own or by a report of the emulator. A
# defect that no longer applies or compiles, a crash and a timeout count as failures of this script.
# DIR: a build directory of this tree, made where it is missing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export LC_ALL=C QEP_EMU_ABORT=1
root=$PWD
defects=tests/cuda_emu/defects
build=build/defects
seconds=120 # for one run of a test program
jobs=$(nproc)
only=()

die() {
    echo "seeded_defects.sh: $*" >&2
    exit 1
}

# ---- the defects ----

# Of defects/NAME: its first line; the value of a line "KEY VALUE" of its head; the lines of part
# was or is of its pair number N.
what_of() { head -n 1 "$defects/$1"; }
field() { sed -n "1,/^--- was\$/s/^$2 //p" "$defects/$1"; }
part() { # NAME was|is N
    awk -v part="--- $2" -v n="$3" '
        /^--- (was|is)$/ { at = $0; i += at == "--- was"; next }
        at == part && i == n' "$defects/$1"
}

# plant NAME DIR: the changed file below DIR, under the name it has in the tree.
plant() {
    local file text rest was i pairs
    file=$(field "$1" file) pairs=$(grep -c '^--- was$' "$defects/$1")
    [ -f "$file" ] && [ "$pairs" -gt 0 ] || { echo "no file '$file' or no text" && return 1; }
    text=$(<"$file")
    for ((i = 1; i <= pairs; i++)); do
        was=$(part "$1" was "$i") rest=${text#*"$was"}
        if [ -z "$was" ] || [ "$rest" = "$text" ]; then
            echo "does not apply: text $i is not in $file" && return 1
        elif [[ $rest == *"$was"* ]]; then
            echo "does not apply: text $i is in $file more than once" && return 1
        fi
        text=${text%%"$was"*}$(part "$1" is "$i")$rest
    done
    mkdir -p "$2/$(dirname "$file")" && printf '%s\n' "$text" >"$2/$file"
}

# ---- building ----

# compile OBJECT DIR: OBJECT (a source file) as the build compiles it, what lies below DIR first;
# the name of the result is DIR/OBJECT.o.
compile() {
    local command source=$root/$1
    # Some are compiled twice: for the emulator, and for builds without it.
    command=$(grep -F "\"command\": " "$build/compile_commands.json" | grep -F " -c $source\"" |
        awk '/QEP_CUDA_EMU/ && !emu { emu = $0 } !any { any = $0 } END { print emu ? emu : any }' |
        sed 's/^ *"command": "//; s/",$//; s/\\\(["\\]\)/\1/g')
    [ -n "$command" ] || { echo "$1 is not in $build/compile_commands.json" && return 1; }
    [ ! -f "$2/$1" ] || source=$root/$2/$1
    mkdir -p "$2/$(dirname "$1")"
    command="${command%% *} -I$root/$2 -I$root/$2/src -I$root/$2/tests ${command#* }"
    command="${command% -c *} -w -O1 -o $root/$2/$1.o -c $source"
    [[ $source != *.cu ]] || command="${command% -c *} -x c++ -c $source"
    (cd "$build" && eval "$command") >"$2/compile.log" 2>&1 && return 0
    echo "does not compile: $(grep -m 1 'error' "$2/compile.log")"
    return 1
}

# relink PROGRAM DIR OBJECT...: the program with DIR/OBJECT.o in place of each OBJECT's.
relink() {
    local program=$1 out=$2 dir=$build/tests command object
    shift 2
    if [ -f "$dir/CMakeFiles/$program.dir/link.txt" ]; then
        command=$(<"$dir/CMakeFiles/$program.dir/link.txt")
    else
        dir=$build
        command=$(ninja -C "$build" -t commands "$program" | tail -n 1 |
            sed 's/^: && //; s/ && :$//')
    fi
    for object in "$@"; do
        command=$(sed "s# [^ ]*/$object\.o # #" <<<"$command ")
        command="${command%% *} $root/$out/$object.o ${command#* }"
    done
    (cd "$dir" && eval "$command -o $root/$out/program") >"$out/link.log" 2>&1 && return 0
    echo "does not link: $(tail -n 1 "$out/link.log")"
    return 1
}

# ---- running ----

# run_cases PROGRAM CASE LOG: until its first failure. 0: passed; 1: failed by a check or a report,
# said on stdout; 2: anything else.
run_cases() {
    local pid rc said log=$3
    : >"$log"
    [ -z "$2" ] || export CK_RUN_CASE=$2
    CK_TAP_LOG_FILE_NAME=$log timeout -k 5 "$seconds" "$1" >"$log.out" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null && ! grep -q '^not ok' "$log"; do sleep 0.1; done
    if grep -q '^not ok' "$log"; then
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
        said=$(grep -m 1 -E '^(cuda_emu|fake NCCL|rank [0-9]+ of [0-9]+): ' "$log.out") ||
            said=$(sed -n 's/^not ok [0-9]* - //p' "$log" | head -n 1)
        sed "s/ (launched at [^)]*)//; s# /[^ ]*/# #g; s#^/[^ ]*/##" <<<"$said"
        [[ $said != *"Received signal"* && $said != *"timeout expired"* ]] || return 2
        return 1
    fi
    wait "$pid"
    rc=$?
    grep -q '^ok' "$log" || { echo "no test ran" && return 2; }
    [ "$rc" -ne 124 ] || echo "took longer than $seconds s"
    [ "$rc" -eq 0 ] || { echo "exit status $rc" && return 2; }
}

# build_defect NAME DIR PROGRAM: the program with the defect in it.
build_defect() {
    local object objects
    read -r -a objects <<<"$(field "$1" objects)"
    [ ${#objects[@]} -gt 0 ] || objects=("$(field "$1" file)")
    plant "$1" "$2" || return 1
    for object in "${objects[@]}"; do
        compile "$object" "$2" || return 1
    done
    relink "$3" "$2" "${objects[@]}"
}

# one NAME: plants it, and leaves a line of the table in out/NAME.
one() {
    local dir=$work/$1 program cases said rc=2
    read -r program cases <<<"$(field "$1" test)"
    rm -rf "$dir" && mkdir -p "$dir" || exit 1
    if said=$(build_defect "$1" "$dir" "$program"); then
        said=$(run_cases "$dir/program" "$cases" "$dir/log")
        rc=$?
    fi
    rm -rf "$dir/program" "$dir/kernels" "$dir/src"
    case $rc in
    0) said="NOT CAUGHT" ;;
    1) ;;
    *) said="FAILED: $said" ;;
    esac
    printf '%-28s %-36s %-24s %s\n' "$1" "$(field "$1" file)" "${program#test_cuda_}${cases:+ $cases}" \
        "$said" >"$work/out/$1"
    [ "$rc" -eq 1 ]
}

# clean PROGRAM CASE: must pass as it is.
clean() {
    local said log=$work/clean-$1-${2:-all}
    said=$(run_cases "$build/tests/$1" "${2:-}" "$log") && return 0
    echo "without a defect $1 ${2:-} fails: $said"
    return 1
}

make_programs() { # PROGRAM...
    if [ ! -f "$build/CMakeCache.txt" ]; then
        cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DQEP_CUDA=OFF || return 1
    fi
    grep -q qep_kernels_cuda_emu "$build/compile_commands.json" || return 77
    cmake --build "$build" --parallel "$jobs" -t "$@"
}

# ---- ----

list=0 step=all
while [ $# -gt 0 ]; do
    case $1 in
    --list) list=1 ;;
    --only) only+=("${2:?}") && shift ;;
    --build) build=${2:?} && shift ;;
    --one | --clean) # of this script's own: one step
        step=${1#--} && shift
        break
        ;;
    *) die "usage: seeded_defects.sh [--build DIR] [--only NAME]... [--list]" ;;
    esac
    shift
done
[[ $build == /* ]] && build=$(realpath --relative-to="$root" "$build")
work=$build/seeded
if [ "$step" != all ]; then
    "$step" "$@"
    exit
fi

[ ${#only[@]} -gt 0 ] || mapfile -t only < <(ls "$defects")
for name in "${only[@]}"; do
    [ -f "$defects/$name" ] || die "no defect $name"
    [ "$list" -eq 0 ] || printf '%-28s %s\n' "$name" "$(what_of "$name")"
done
[ "$list" -eq 0 ] || exit 0

tests=$(for name in "${only[@]}"; do field "$name" test; done | sort -u)
# shellcheck disable=SC2046 # one word a program
log=$(make_programs $(cut -d' ' -f1 <<<"$tests" | sort -u) 2>&1)
case $? in
0) ;;
77) echo "the emulator is not built here" && exit 77 ;;
*) tail -n 20 <<<"$log" && die "the tests do not build" ;;
esac
rm -rf "$work" && mkdir -p "$work/out" || exit 1
if ! xargs -P "$jobs" -L 1 "$0" --build "$build" --clean <<<"$tests"; then exit 1; fi
printf '%s\n' "${only[@]}" | xargs -P "$jobs" -n 1 "$0" --build "$build" --one
missed=$?
printf '%-28s %-36s %-24s %s\n' defect file 'caught by' 'what was reported'
cat "$work"/out/*
echo "${#only[@]} defects, $(cat "$work"/out/* | grep -c 'NOT CAUGHT\|FAILED: ') not caught"
[ "$missed" -eq 0 ]
