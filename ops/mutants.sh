#!/usr/bin/env bash
# `make mutants`: changes the code in one place at a time, and looks whether a test notices (cargo-mutants; which files,
# .cargo/mutants.toml says). Arguments are the groups to try, all four by default; what follows a -- goes to cargo-mutants,
# as in: ops/mutants.sh launcher -- --re decide
# All that it makes is below target/mutants: GROUP/mutants.out has the output of each build and test.
set -euo pipefail
cd "$(dirname "$0")/.."

version=27.1.0
if ! cargo mutants --version >/dev/null 2>&1; then
    echo "ops/mutants.sh: cargo-mutants is missing; run cargo install cargo-mutants --locked --version $version" >&2
    exit 1
fi
. ops/env.sh

# As in ops/test.sh.
export CUDA_VISIBLE_DEVICES=
unset ARINAR_STORE_PATIENCE "${!AWS_@}" "${!SLURM_@}" "${!PMIX_@}" "${!OMPI_COMM_@}"

# cargo-mutants copies the tree. What it depends on is compiled once for all copies.
export CARGO_TARGET_DIR=$PWD/target/mutants/build CARGO_INCREMENTAL=1

groups=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    groups+=("$1")
    shift
done
[ $# = 0 ] || shift
[ ${#groups[@]} -gt 0 ] || groups=(launcher data model trainer)

# The quick suites of tests/ that try a group once its crate's own tests have.
suites() {
    case $1 in
        launcher) ;;
        data) echo data_order data_loader ;;
        model) echo golden_schedule golden_gmm golden_outer golden_head golden_train golden_full_sample model_seed ;;
        trainer) echo golden_train trainer_reference ;;
        *)
            echo "ops/mutants.sh: no group $1; there are launcher, data, model and trainer" >&2
            return 1
            ;;
    esac
}

lines() { wc -l <"$1"; }

# Each copy has a name of its own, so what was compiled of an earlier one is of no use.
forget_copies() {
    local release=$CARGO_TARGET_DIR/release
    [ -d "$release/deps" ] || return 0
    rm -rf "$release/incremental" "$release"/{deps,.fingerprint,build}/*arinar*
    find "$release/deps" -type f -executable ! -name '*.so' -delete
}

# Has cargo-mutants try a group. Where some changes are not noticed, or make tests wait too long, it is no failure.
look() {
    local code=0
    cargo mutants "$@" || code=$?
    case $code in
        0 | 2 | 3) ;;
        *) return "$code" ;;
    esac
}

try() {
    local group=$1 out=target/mutants/$1 named noticed broken more=()
    shift
    named=$(suites "$group")
    forget_copies
    mkdir -p "$out"
    echo "== $group"
    look --package "arinar-$group" --cargo-arg=--lib --output "$out" "$@"
    noticed=$(lines "$out/mutants.out/caught.txt") broken=$(lines "$out/mutants.out/unviable.txt")
    if [ -n "$named" ] && { [ -s "$out/mutants.out/missed.txt" ] || [ -s "$out/mutants.out/timeout.txt" ]; }; then
        # What the crate's own tests, built in seconds, do not notice. Not --test-package: the first run, of the code as it
        # is, would be without it.
        more=(--cargo-arg=--package=arinar-tests)
        for suite in $named; do
            more+=("--cargo-arg=--test=$suite")
        done
        echo "== $group, by $named"
        forget_copies
        look --package "arinar-$group" "${more[@]}" --output "$out" --iterate "$@"
        noticed=$((noticed + $(lines "$out/mutants.out/caught.txt")))
        broken=$((broken + $(lines "$out/mutants.out/unviable.txt")))
    fi
    out=$out/mutants.out
    summary+=("$group: $noticed noticed, $(lines "$out/timeout.txt") ran too long, $broken do not compile, $(lines "$out/missed.txt") not noticed")
    mapfile -t -O ${#summary[@]} summary < <(sed 's/^/    /' "$out/missed.txt")
}

for group in "${groups[@]}"; do
    suites "$group" >/dev/null
done
summary=()
for group in "${groups[@]}"; do
    try "$group" "$@"
done
printf '\n'
printf '%s\n' "${summary[@]}"
