#!/usr/bin/env bash
# docs/operations.md quotes the programs' messages word by word.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -B tests/ops/run_book.py
