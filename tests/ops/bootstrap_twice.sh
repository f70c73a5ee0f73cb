#!/usr/bin/env bash
# Checks that a second run of ops/bootstrap.sh prints nothing, changes no file and runs no package manager.
set -euo pipefail
cd "$(dirname "$0")/../.."

home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}

# Prints the path, size, modification time and inode change time of every file that a bootstrap may write.
listing() {
    find "$home" -printf '%p %s %T@ %C@\n' | sort
    stat -c '%n %s %y' /var/lib/dpkg/status /var/lib/apt/lists 2>/dev/null || true
}

fail() {
    echo "bootstrap_twice: $*" >&2
    exit 1
}

ops/bootstrap.sh --tests
before=$(listing)
[ -n "$before" ] || fail "$home is empty after a bootstrap"

stand_ins=$(mktemp -d)
trap 'rm -rf "$stand_ins"' EXIT
for program in apt-get dpkg-deb pip pip3 sudo; do
    printf '#!/bin/sh\necho "%s was called" >&2\nexit 1\n' $program >"$stand_ins/$program"
    chmod +x "$stand_ins/$program"
done
output=$(PATH=$stand_ins:$PATH ops/bootstrap.sh --tests 2>&1) || fail "the second run failed: $output"

[ -z "$output" ] || fail "the second run printed: $output"
changed=$(diff <(echo "$before") <(listing)) || fail "the second run changed files: $(head -n 5 <<<"$changed")"
ops/bootstrap.sh --tests --check || fail "--check reports a missing item"
