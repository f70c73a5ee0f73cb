#!/usr/bin/env bash
# The files for Kubernetes and containers, as far as they can be checked without either: against the published schemas, and
# the launcher's arguments against the launcher. No engine builds the image here: hadolint reads its recipe.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ops/env.sh
home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
export PATH=$PWD/target/release:$PATH

"$home/test-venv/bin/hadolint" --no-color ops/container/Containerfile
"$home/test-venv/bin/python" -B tests/ops/manifests.py
