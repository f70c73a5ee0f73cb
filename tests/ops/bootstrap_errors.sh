#!/usr/bin/env bash
# Checks that ops/bootstrap.sh exits with 1 and one sentence if it cannot continue, and detects a damaged installation.
# Stand-ins for programs come first on the PATH; no check reaches the network or installs anything.
set -euo pipefail
cd "$(dirname "$0")/../.."

home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
work=$(mktemp -d "$home-test.XXXXXX") # next to the installation, so that hard links to it are possible
trap 'rm -rf "$work"' EXIT
export ARINAR_HOME=$work/home

# stand_in NAME LINE : creates a program NAME that runs this line of shell.
stand_in() {
    mkdir -p "$work/bin"
    printf '#!/bin/sh\n%s\n' "$2" >"$work/bin/$1"
    chmod +x "$work/bin/$1"
}

# expect NAME PATTERN COMMAND... : fails unless the command exits with 1 and its last line matches.
expect() {
    local name=$1 pattern=$2 output status=0
    shift 2
    output=$("$@" 2>&1) || status=$?
    if [ $status != 1 ] || ! tail -n 1 <<<"$output" | grep -Eq "$pattern"; then
        printf '%s: exit code %s with this output:\n%s\nexpected exit code 1 and a last line that matches: %s\n' \
            "$name" $status "$output" "$pattern" >&2
        exit 1
    fi
    rm -rf "${work:?}/bin"
}

with_stand_ins() { PATH=$work/bin:$PATH "$@"; }

stand_in rustc 'echo "rustc 1.70.0 (old)"'
expect "old Rust" '^bootstrap: Rust 1\.[0-9]+ or newer is needed and this is Rust 1\.70\.0; .*rustup' \
    with_stand_ins ops/bootstrap.sh

stand_in df 'echo header; echo "disk 9999999 9000000 999999 90% /"'
expect "full disk" '^bootstrap: too little disk: .* needs [0-9]+ GB free and has 0 GB' with_stand_ins ops/bootstrap.sh

expect "no network" '^bootstrap: pip could not install torch==[^:]*: .*(Connection|connection)' \
    env PIP_INDEX_URL=http://127.0.0.1:9/simple PIP_NO_INDEX=0 PIP_FIND_LINKS= PIP_RETRIES=1 ops/bootstrap.sh

# This folder has only the programs that the script itself runs, so mpicc is missing.
mkdir "$work/few"
for program in bash env dirname sed cut sort grep awk head tail cargo rustc c++ make nasm mpirun mkdir flock cat df rm ls; do
    ln -s "$(command -v $program)" "$work/few/$program"
done
ln -s "$(python3 -c 'import sys; print(sys.executable)')" "$work/few/python3"
stand_in id 'echo 1000'
stand_in sudo 'exit 1'
stand_in apt-get 'exit 100'
expect "no root" '^bootstrap: installing packages needs root; ask .*: apt-get install libopenmpi-dev$' \
    env PATH="$work/bin:$work/few" ops/bootstrap.sh
stand_in id 'echo 0'
stand_in apt-get 'echo "E: Failed to fetch the package  Could not resolve host"; exit 100'
expect "no packages" '^bootstrap: apt-get could not install libopenmpi-dev: E: Failed to fetch' \
    env PATH="$work/bin:$work/few" ops/bootstrap.sh

# With only Debian's openmpi-bin, mpicc names headers that do not exist.
stand_in id 'echo 0'
stand_in apt-get 'echo "E: Unable to locate package libopenmpi-dev"; exit 100'
stand_in mpicc 'echo /nowhere/include'
expect "no headers" '^bootstrap: apt-get could not install libopenmpi-dev: E: Unable to locate' \
    env PATH="$work/bin:$work/few" ops/bootstrap.sh

expect "no folder" '^bootstrap: cannot write to /proc/arinar; set ARINAR_HOME' env ARINAR_HOME=/proc/arinar ops/bootstrap.sh
expect "unknown argument" '^bootstrap: unknown argument --gpu' ops/bootstrap.sh --gpu

mkdir -p "$work/other/tmp"
echo mine >"$work/other/tmp/thesis"
expect "a foreign folder" '^bootstrap: ARINAR_HOME=.*/other is not empty .*; set ARINAR_HOME' \
    env ARINAR_HOME="$work/other" ops/bootstrap.sh
[ "$(find "$work/other" -type f)" = "$work/other/tmp/thesis" ] || {
    echo "a foreign folder was changed" >&2
    exit 1
}

rm -rf "$ARINAR_HOME"
mkdir "$ARINAR_HOME"
cp -al "$home/venv" "$ARINAR_HOME/venv"
ops/bootstrap.sh --check
cd "$ARINAR_HOME"/venv/lib/python3*/site-packages

# damage gone|truncated FILE PATTERN : fails unless --check reports the damaged file. The file is moved and never
# written to, because it is a hard link to that of the installation.
damage() {
    mv "$2" "$work/aside"
    [ "$1" = gone ] || echo >"$2"
    expect "$2 $1" "$3" "$OLDPWD/ops/bootstrap.sh" --check
    mv -f "$work/aside" "$2"
}

damage gone torch/lib/libtorch_cpu.so '^bootstrap: missing: torch=='
damage truncated torch/lib/libc10.so '^bootstrap: missing: torch=='
damage gone nvidia_cuda_runtime-*.dist-info/RECORD '^bootstrap: missing: nvidia-cuda-runtime==' # a killed pip
damage truncated torch/build-version '^bootstrap: missing: .*build-version'
damage gone ../../../bin/python '^bootstrap: missing: torch=='
