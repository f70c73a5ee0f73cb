#!/usr/bin/env bash
# Checks that `make demo` and `make clean` delete only the output of a demo.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/ops" "$work/out/demo/samples" "$work/elsewhere"
cp ops/demo.sh "$work/ops"
clean() { "$work/ops/demo.sh" "$@" 2>&1; }

fail() {
    echo "demo_clean: $*" >&2
    exit 1
}

echo mine >"$work/out/demo/samples/favourite.png"
for arguments in clean ""; do
    # shellcheck disable=SC2086 # an empty value must not become an argument
    output=$(clean $arguments) && fail "a folder that no demo created was accepted"
    grep -q "out/demo is not empty and was not made by this script" <<<"$output" || fail "unexpected output: $output"
    [ -f "$work/out/demo/samples/favourite.png" ] || fail "a file in a folder that no demo created was deleted"
done

touch "$work/out/demo/made-by-make-demo" "$work/out/demo/train.log" "$work/out/demo/notes.txt" "$work/elsewhere/dataset"
ln -s "$work/elsewhere" "$work/out/demo/dataset"
clean clean || fail "cleaning failed"
[ "$(ls -A "$work/out/demo")" = notes.txt ] || fail "the folder still contains: $(ls -A "$work/out/demo")"
[ -f "$work/elsewhere/dataset" ] || fail "a link was followed"
rm "$work/out/demo/notes.txt"
clean clean || fail "cleaning failed"
[ ! -e "$work/out/demo" ] || fail "an empty folder was not deleted"
