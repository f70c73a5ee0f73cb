#!/usr/bin/env bash
# Checks that docs/operations.md quotes the programs' messages verbatim.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -B tests/ops/run_book.py
