# Source this file (`. ops/env.sh` in sh or bash) before cargo or mpirun. It sets LIBTORCH to the libtorch installed by
# ops/bootstrap.sh, and lets Open MPI run as root and with more ranks than cores.
# shellcheck shell=sh

# Without this, `mpirun -n 4` refuses to start on two cores.
export OMPI_MCA_rmaps_base_oversubscribe=1
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# The loop succeeds even if libtorch is absent; otherwise `set -e` would end the shell before the message below.
LIBTORCH=$(
    for torch in "${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}"/venv/lib/python3*/site-packages/torch; do
        if [ -f "$torch/lib/libtorch_cpu.so" ]; then
            echo "$torch"
            break
        fi
    done
)
if [ -n "$LIBTORCH" ]; then
    export LIBTORCH
else
    unset LIBTORCH
    echo "ops/env.sh: libtorch is not installed; run ops/bootstrap.sh" >&2
    return 1
fi
