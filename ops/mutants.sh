#!/usr/bin/env bash
# `make mutants`: mutation testing with cargo-mutants, which changes the code in one place at a time and reports changes
# that no test detects. ops/mutants.toml lists the files. Arguments are the groups to test (default: all five);
# arguments after -- are passed to cargo-mutants, as in: ops/mutants.sh launcher -- --re decide
# All output is below target/mutants; GROUP/mutants.out has the log of each build and test.
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

# cargo-mutants copies the source tree. All copies share the compiled dependencies.
export CARGO_TARGET_DIR=$PWD/target/mutants/build CARGO_INCREMENTAL=1

groups=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    groups+=("$1")
    shift
done
[ $# = 0 ] || shift
[ ${#groups[@]} -gt 0 ] || groups=(launcher data model checkpoint trainer)

# Prints the integration tests for the mutants of a group that its unit tests do not catch.
suites() {
    case $1 in
        launcher | checkpoint) ;;
        data) echo data_order data_loader ;;
        model) echo model golden_gmm golden_outer model_seed ;;
        trainer) echo model trainer_reference ;;
        *)
            echo "ops/mutants.sh: unknown group $1; the groups are launcher, data, model, checkpoint and trainer" >&2
            return 1
            ;;
    esac
}

# Prints the number of lines of a file. cargo-mutants writes no lists if no mutant matches.
lines() { if [ -f "$1" ]; then wc -l <"$1"; else echo 0; fi; }

# Deletes the workspace's crates compiled for earlier copies. Each copy has its own path and compiles them again.
forget_copies() {
    local release=$CARGO_TARGET_DIR/release
    [ -d "$release/deps" ] || return 0
    rm -rf "$release/incremental" "$release"/{deps,.fingerprint,build}/*arinar*
    find "$release/deps" -type f -executable ! -name '*.so' -delete
}

# Runs cargo-mutants. Mutants that time out or are not caught are results, not failures.
run_mutants() {
    local code=0
    cargo mutants --config ops/mutants.toml "$@" || code=$?
    case $code in
        0 | 2 | 3) ;;
        *) return "$code" ;;
    esac
}

test_group() {
    local group=$1 out=target/mutants/$1 named caught broken more=()
    shift
    named=$(suites "$group")
    forget_copies
    mkdir -p "$out"
    echo "== $group"
    run_mutants --package "arinar-$group" --cargo-arg=--lib --output "$out" "$@"
    caught=$(lines "$out/mutants.out/caught.txt") broken=$(lines "$out/mutants.out/unviable.txt")
    if [ -n "$named" ] && { [ -s "$out/mutants.out/missed.txt" ] || [ -s "$out/mutants.out/timeout.txt" ]; }; then
        # Test the remaining mutants. --test-package would not apply to the first run, which tests the unmutated code.
        more=(--cargo-arg=--package=arinar-tests)
        for suite in $named; do
            more+=("--cargo-arg=--test=$suite")
        done
        echo "== $group, by $named"
        forget_copies
        run_mutants --package "arinar-$group" "${more[@]}" --output "$out" --iterate "$@"
        caught=$((caught + $(lines "$out/mutants.out/caught.txt")))
        broken=$((broken + $(lines "$out/mutants.out/unviable.txt")))
    fi
    out=$out/mutants.out
    summary+=("$group: $caught caught, $(lines "$out/timeout.txt") timed out, $broken do not compile, $(lines "$out/missed.txt") not caught")
    [ ! -s "$out/missed.txt" ] || mapfile -t -O ${#summary[@]} summary < <(sed 's/^/    /' "$out/missed.txt")
}

for group in "${groups[@]}"; do
    suites "$group" >/dev/null
done
summary=()
for group in "${groups[@]}"; do
    test_group "$group" "$@"
done
printf '\n'
printf '%s\n' "${summary[@]}"
