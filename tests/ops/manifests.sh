#!/usr/bin/env bash
# Checks the files for Kubernetes and containers without running either: the manifests against the published schemas,
# the launcher's arguments with the launcher, and the Containerfile with hadolint.
set -euo pipefail
cd "$(dirname "$0")/../.."
. ops/env.sh
home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
export PATH=$PWD/target/release:$PATH

"$home/test-venv/bin/hadolint" --no-color ops/container/Containerfile
"$home/test-venv/bin/python" -B tests/ops/manifests.py
