#!/usr/bin/env bash
# Runs the tests as on other processors: libtorch, oneDNN and MKL are limited to certain instructions, so that a machine
# can emulate processors that have fewer. Needs what `make test` needs, and takes as long for each setting. Arguments
# are passed to `cargo test`, as in: tests/ops/processors/run.sh --test golden_outer
#
#   NEIGHBOUR=1  keep one core busy with another process
#   SETTINGS     the numbers of the settings below to run (default: all)
set -uo pipefail
cd "$(dirname "$0")/../../.." || exit 1

# ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS OMP_NUM_THREADS, and the required processor feature.
readonly settings=(
    "default AVX2 SSE4_2 1 avx2"
    "avx2 AVX2 AVX2 2 avx2"
    "avx512 AVX512_CORE AVX512 1 avx512f"
    "avx512 AVX512_CORE_BF16 AVX512 2 avx512_bf16"
    "avx512 AVX512_CORE_AMX AVX512 1 amx_tile"
    "avx512 AVX512_CORE_AMX AVX512 2 amx_tile"
)

neighbour=
if [ -n "${NEIGHBOUR:-}" ]; then
    while :; do :; done &
    neighbour=$!
    trap 'kill "$neighbour"' EXIT
fi

status=0
results=()
for number in ${SETTINGS:-$(seq ${#settings[@]})}; do
    read -r aten onednn mkl threads needs <<<"${settings[number - 1]}"
    variables=(ATEN_CPU_CAPABILITY="$aten" ONEDNN_MAX_CPU_ISA="$onednn" MKL_ENABLE_INSTRUCTIONS="$mkl"
        OMP_NUM_THREADS="$threads")
    name="$number: ${variables[*]}"
    if ! grep -qw "$needs" /proc/cpuinfo; then
        results+=("not run ($needs is missing)  $name")
        continue
    fi
    echo "=== $name"
    start=$SECONDS
    if env "${variables[@]}" ops/test.sh "$@"; then
        results+=("passed in $((SECONDS - start)) s  $name")
    else
        results+=("FAILED  $name")
        status=1
    fi
done
printf '\n%s\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)${neighbour:+, with a busy process}"
printf '%s\n' "${results[@]}"
exit $status
