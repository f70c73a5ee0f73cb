#!/usr/bin/env bash
# `make demo` and `make clean` delete what a demo has made, and nothing else.
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
    # shellcheck disable=SC2086 # no argument at all, if it is empty
    said=$(clean $arguments) && fail "a folder that no demo has made was taken for one"
    grep -q "out/demo is not empty and was not made by this script" <<<"$said" || fail "it said: $said"
    [ -f "$work/out/demo/samples/favourite.png" ] || fail "a file in a folder that no demo has made is gone"
done

touch "$work/out/demo/made-by-make-demo" "$work/out/demo/train.log" "$work/out/demo/notes.txt" "$work/elsewhere/dataset"
ln -s "$work/elsewhere" "$work/out/demo/dataset"
clean clean || fail "cleaning failed"
[ "$(ls -A "$work/out/demo")" = notes.txt ] || fail "left: $(ls -A "$work/out/demo")"
[ -f "$work/elsewhere/dataset" ] || fail "a link was followed"
rm "$work/out/demo/notes.txt"
clean clean || fail "cleaning failed"
[ ! -e "$work/out/demo" ] || fail "an empty folder stays"
