#!/usr/bin/env bash
# `make test`: runs every test, even after a failure, and lists all failures at the end.
# The programs must be in target/release. Arguments are passed to `cargo test`, as in: ops/test.sh --test launcher
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. ops/env.sh || exit 1

# Results must not depend on the caller's environment: a proxy for the servers that tests start on this machine,
# credentials of a real cloud, an enclosing job of Slurm or mpirun, colours, or GPUs, whose results differ by rounding.
export NO_PROXY=127.0.0.1,localhost,::1 no_proxy=127.0.0.1,localhost,::1 CUDA_VISIBLE_DEVICES=
unset CLICOLOR_FORCE ARINAR_STORE_PATIENCE "${!AWS_@}" "${!SLURM_@}" "${!PMIX_@}" "${!OMPI_COMM_@}"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()

echo "== cargo test"
if ! cargo test --release --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$log"; then
    mapfile -t failed < <(
        sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log"
        # If a target does not compile or is killed by a signal, no test is named; cargo prints the target in
        # backquotes.
        # shellcheck disable=SC2016
        sed -n 's/^    `\(-p .*\)`$/\1/p' "$log"
    )
    [ ${#failed[@]} -gt 0 ] || failed=("cargo test")
fi

# The scripts test the complete system, so they are skipped if only some tests were selected.
if [ $# = 0 ]; then
    for script in tests/ops/*.sh; do
        echo "== $script"
        "$script" || failed+=("$script")
    done
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed:\n'
    printf '    %s\n' "${failed[@]}"
    exit 1
fi
