#!/usr/bin/env bash
# Checks that files of a crate do not import each other in a circle, and that the files named in the documents exist.
cd "$(dirname "$0")/../.." && exec python3 tests/ops/structure.py
