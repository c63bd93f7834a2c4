#!/bin/bash
# What convert may do to a directory, as a user sees it, on 1 and on 4 ranks.
# usage: workdir.sh path/to/qwen-ep
set -u
exe=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
hf=tests/data/tiny-chat
passed=0 failed=0
sizes=1
command -v mpirun >/dev/null && ldd "$exe" | grep -q libmpi && sizes="1 4"

launch() { # np command...
    local np=$1
    shift
    if [ "$np" = 1 ]; then
        timeout 60 "$@"
    else
        timeout 60 mpirun --quiet -np "$np" --oversubscribe --bind-to none "$@"
    fi
}

ok() { # name, status of what was tried
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAILED: $1, np $np" && head -3 "$work/err"; fi
}

# name, expected code, pattern of the line, directory that stays as it is, options of convert
refused() {
    local name=$1 want=$2 pattern=$3 dir=$4 code
    shift 4
    rm -rf "$work/before" && cp -a "$dir" "$work/before"
    launch "$np" "$exe" convert --to "$dir" "$@" >"$work/out" 2>"$work/err" </dev/null
    code=$?
    [ "$code" = "$want" ] && [ "$(grep -c '^qwen-ep:' "$work/err")" = 1 ] && grep -Eq "^qwen-ep:.*$pattern" "$work/err"
    ok "$name: exit $code, expected $want and '$pattern'" $?
    diff -r -x .convert "$work/before" "$dir" >/dev/null
    ok "$name: files changed" $?
}

"$exe" convert --from $hf --to "$work/old" --recipe q8 --quiet 2>/dev/null || "$exe" convert --from $hf --to "$work/old" --recipe q8 2>/dev/null
"$exe" convert --from $hf --to "$work/fresh" --recipe q4 2>/dev/null
cp -r $hf "$work/nan" && chmod -R u+w "$work/nan"
perl -e 'open F, "+<:raw", $ARGV[0] or die; seek F, -2, 2; print F "\xc0\x7f"' "$work/nan/model.safetensors"

refuse_foreign() {
    cp -r $hf "$work/foreign" && chmod -R u+w "$work/foreign"
    refused foreign-checkpoint 73 'foreign/.*config.json: is in the way' "$work/foreign" --from $hf --force
    echo '{"files": [{"name": "model.safetensors"}]}' >"$work/foreign/manifest.json"
    refused foreign-manifest 73 'manifest.json: is in the way' "$work/foreign" --from $hf --force
}

keep_old() {
    cp -r "$work/old" "$work/d"
    refused nan-midway 65 'NaN' "$work/d" --from "$work/nan" --force
    "$exe" run --model "$work/d" --prompt hi --max-new-tokens 2 >/dev/null 2>"$work/err"
    ok "nan-midway: the old conversion runs" $?
    refused remains 73 'unfinished conversion of another source' "$work/d" --from $hf
    refused complete 73 'complete shard directory already .--force' "$work/old" --from $hf
}

replace() { # what the directory must look like, options of convert
    local like=$1
    shift
    launch "$np" "$exe" convert --to "$work/d" --from $hf --force "$@" 2>"$work/err" && diff -r "$work/d" "$like" >/dev/null
    ok "force replaces $*" $?
}

refuse_state() {
    mkdir "$work/precious" && echo mine >"$work/precious/identity"
    ln -s ../precious "$work/d/.convert"
    refused linked-state 73 '.convert: is a symbolic link' "$work/d" --from $hf --recipe q8 --force
    [ "$(cat "$work/precious/identity")" = mine ]
    ok "linked-state: the link's target" $?
    rm "$work/d/.convert" && mkfifo "$work/d/.convert"
    refused fifo-state 73 '.convert' "$work/d" --from $hf --recipe q8 --force
    rm "$work/d/.convert"
}

# Somebody holds the lock: F_OFD_SETLK with a write lock on the whole file.
refuse_second() {
    mkdir "$work/d/.convert"
    perl -MIO::Handle -e 'open F, "+>", $ARGV[0]; $l = pack "s s x4 q q l x4", 1, 0, 0, 0, 0;
        fcntl F, 37, $l or die; print F "qwen-ep, pid $$ on host elsewhere\n"; F->flush();
        print "locked\n"; STDOUT->flush(); sleep 60' "$work/d/.convert/lock" >"$work/holder" &
    local holder=$!
    for _ in $(seq 100); do grep -q locked "$work/holder" && break || sleep 0.05; done
    refused in-use 75 'in use by pid [0-9]+ on host elsewhere' "$work/d" --from $hf --recipe q8 --force
    kill $holder
    wait $holder 2>/dev/null
}

# Stops a conversion of $work/s that has begun to write, runs a command there, and lets it go on.
changed_midway() { # name, expected code, command
    rm -rf "$work/s" "$work/d" && cp -r $hf "$work/s" && chmod -R u+w "$work/s"
    perl -e 'use POSIX ":sys_wait_h"; my ($dir, $change, @convert) = @ARGV;
        for (1 .. 50) {
            system "rm", "-rf", "$dir/d";
            my $pid = fork;
            exec @convert or die if !$pid;
            1 until glob("$dir/d/.convert/*.part") or waitpid $pid, WNOHANG;
            kill "STOP", $pid or next; # it has ended
            system "cd $dir/s && $change";
            kill "CONT", $pid;
            waitpid $pid, 0;
            exit $? >> 8;
        }
        die "no conversion was slow enough"' "$work" "$3" \
        "$exe" convert --from "$work/s" --to "$work/d" --jobs 1 --compress max >"$work/out" 2>"$work/err"
    local code=$?
    ok "$1: exit $code, expected $2" $((code != $2))
}

source_changes() {
    changed_midway touched 65 'touch -d tomorrow model.safetensors'
    grep -q '^qwen-ep: .*/model.safetensors: was written to while it was being read' "$work/err" && [ ! -e "$work/d/manifest.json" ]
    ok "touched: its line, and no conversion" $?
    changed_midway written 65 'printf xx | dd of=model.safetensors bs=1 seek=500000 conv=notrunc status=none'
    changed_midway template 0 'echo other >chat_template.jinja'
    cmp -s $hf/chat_template.jinja "$work/d/chat_template.jinja"
    ok "template: the one that was there at the start" $?
    rm -rf "$work/d"
}

np=1
source_changes
refuse_foreign
keep_old
replace "$work/fresh"
refuse_state
refuse_second
replace "$work/old" --recipe q8
[ "$sizes" = 1 ] || for np in 2 4; do # what only rank 0 sees ends all ranks alike
    rm -rf "$work/d" && cp -r "$work/old" "$work/d"
    refuse_second
    replace "$work/fresh"
done
if [ "$sizes" != 1 ]; then # ranks that see different sources
    cp -r $hf "$work/copy" && chmod -R u+w "$work/copy" && touch -d yesterday "$work/copy/model.safetensors"
    timeout 60 mpirun --quiet --oversubscribe --bind-to none -np 1 "$exe" convert --from $hf --to "$work/two" : \
        -np 1 "$exe" convert --from "$work/copy" --to "$work/two" >"$work/out" 2>"$work/err"
    [ $? = 64 ] && [ ! -e "$work/two" ] && grep -q '^qwen-ep: rank 1: the source (or an option) differs' "$work/err"
    ok "sources that differ" $?
fi
[ "$sizes" != 1 ] || echo "mpirun not used: built without MPI"
echo "work directories: $passed passed, $failed failed"
[ $failed = 0 ]
