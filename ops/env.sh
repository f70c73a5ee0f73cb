# Source this (`. ops/env.sh`, sh or bash) before cargo or mpirun. It sets LIBTORCH to the libtorch that
# ops/bootstrap.sh installed, and what Open MPI needs to run as root and with more ranks than cores.
# shellcheck shell=sh

# More ranks than cores: `mpirun -n 4` on two cores refuses to start without this.
export OMPI_MCA_rmaps_base_oversubscribe=1
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Ends with success where there is none: under `set -e` the line below would not be reached otherwise.
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
