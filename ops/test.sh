#!/usr/bin/env bash
# `make test`: every test, even after one has failed; at the end every failure by name.
# It expects the programs in target/release. Arguments go to `cargo test`, as in: ops/test.sh --test chaos
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
. ops/env.sh || exit 1

# What the tests find must not depend on who runs them: a proxy for the servers that they start on this machine, keys of
# a real cloud, a job of Slurm or mpirun that this is part of, colours, and GPUs, on which results differ by rounding.
export NO_PROXY=127.0.0.1,localhost,::1 no_proxy=127.0.0.1,localhost,::1 CUDA_VISIBLE_DEVICES=
unset CLICOLOR_FORCE ARINAR_STORE_PATIENCE "${!AWS_@}" "${!SLURM_@}" "${!PMIX_@}" "${!OMPI_COMM_@}"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()

echo "== cargo test"
if ! cargo test --release --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$log"; then
    mapfile -t failed < <(
        sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log"
        # A target that does not compile or that a signal ends names no test. cargo puts it between backquotes.
        # shellcheck disable=SC2016
        sed -n 's/^    `\(-p .*\)`$/\1/p' "$log"
    )
    [ ${#failed[@]} -gt 0 ] || failed=("cargo test")
fi

# Scripts are tests of the whole: not where some of it was asked for.
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
