#!/usr/bin/env bash
# `make demo`: pictures -> latents -> training on two ranks, stopped and resumed -> a grid of new pictures.
# Everything it makes is in out/demo; what an earlier demo has made there is deleted first. It expects the programs in
# target/release. `ops/demo.sh clean` only deletes.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly out=out/demo # as in configs/demo.yaml
readonly made=("$out/dataset" "$out/run" "$out/samples" "$out/train.log")
readonly mark=$out/made-by-make-demo # the folder is the demo's, so that what it has made may be deleted
readonly stop_after_secs=40
readonly preempted=75 # the trainer's exit code for "checkpointed after a signal; start me again"

step() { printf '\n== %s\n' "$*"; }

# Deletes what an earlier demo has made, and nothing in a folder that no demo has made.
clear_out() {
    if [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -f "$mark" ]; then
        echo "demo: $out is not empty and was not made by this script (no ${mark##*/} in it); move or delete it" >&2
        exit 1
    fi
    rm -rf "${made[@]}"
}

# Starts training in the background; `$!` is mpirun.
train() {
    mpirun --quiet -n 2 arinar-trainer --config configs/demo.yaml > >(tee -a "$out/train.log") 2>&1 &
}

# The loss in the first (head) or last (tail) progress line.
loss() { sed -n 's/.*loss[ =:]*\(-\{0,1\}[0-9][0-9.]*\).*/\1/p' "$out/train.log" | "$1" -n 1; }

clear_out
if [ "${1:-}" = clean ]; then
    rm -f "$mark"
    rmdir "$out" 2>/dev/null || true # not there, or somebody keeps something else in it
    exit
fi
. ops/env.sh
PATH=$PWD/target/release:$PATH
mkdir -p "$out"
echo "make demo and make clean delete what they have made in this folder" >"$mark"

step "Encoding 1,906 pictures to latents"
arinar-data encode --images tests/data/noto-emoji-32.tar --image-size 32 \
    --vae data/assets/emoji-vae.safetensors --out "$out/dataset"

step "Training on two ranks; stopped on purpose after $stop_after_secs s"
train
trainer=$!
# Not SIGTERM: mpirun passes that on with one second to live, but SIGUSR1 as it is.
(sleep "$stop_after_secs" && kill -USR1 "$trainer" 2>/dev/null) &
alarm=$!
status=0
wait "$trainer" || status=$?
kill "$alarm" 2>/dev/null || true

if [ "$status" = "$preempted" ]; then
    step "Stopped with a checkpoint (exit code $preempted); the same command resumes from it"
    train
    wait $!
elif [ "$status" != 0 ]; then
    echo "demo: training failed with exit code $status; see $out/train.log" >&2
    exit "$status"
fi

step "Sampling a grid from the averaged weights"
arinar-sample --run "$out/run" --out "$out/samples"

step "Done"
cat <<END
grid         $out/samples/grid.png
TensorBoard  tensorboard --logdir $out/run/tensorboard
checkpoint   $(find "$out/run" -maxdepth 2 -type d -name 'step-*' | sort | tail -n 1)
loss         $(loss head) at the start, $(loss tail) at the end
END
