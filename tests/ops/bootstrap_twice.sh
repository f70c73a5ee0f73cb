#!/usr/bin/env bash
# ops/bootstrap.sh a second time says nothing, changes no file and takes seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."

home=${ARINAR_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/arinar}
most_secs=15 # a busy machine; alone it is one second

# Path, size, and times of change of contents and of the inode, of every file that a bootstrap may write.
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

start=$SECONDS
output=$(ops/bootstrap.sh --tests 2>&1) || fail "the second run failed: $output"
elapsed=$((SECONDS - start))

[ -z "$output" ] || fail "the second run said: $output"
changed=$(diff <(echo "$before") <(listing)) || fail "the second run changed files: $(head -n 5 <<<"$changed")"
[ "$elapsed" -le "$most_secs" ] || fail "the second run took $elapsed s"
ops/bootstrap.sh --tests --check || fail "--check finds something missing"
