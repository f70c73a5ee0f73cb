#!/usr/bin/env bash
# `make demo`: encodes images to latents, trains on two ranks with a stop and a resume, and samples a grid of images.
# All output is in out/demo; the output of an earlier demo is deleted first. The programs must be in target/release.
# `ops/demo.sh clean` only deletes the output.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly out=out/demo # as in configs/demo.yaml
readonly made=("$out/dataset" "$out/run" "$out/samples" "$out/train.log")
readonly mark=$out/made-by-make-demo # marks the folder as the demo's, so that its output may be deleted
readonly stop_after_secs=40
readonly preempted=75 # the trainer's exit code after a signal and a checkpoint

step() { printf '\n== %s\n' "$*"; }

# Deletes the output of an earlier demo. Refuses to touch a folder that no demo has created.
clear_out() {
    if [ -n "$(ls -A "$out" 2>/dev/null)" ] && [ ! -f "$mark" ]; then
        echo "demo: $out is not empty and was not made by this script (no ${mark##*/} in it); move or delete it" >&2
        exit 1
    fi
    rm -rf "${made[@]}"
}

# Starts training in the background; `$!` is the pid of mpirun.
train() {
    mpirun --quiet -n 2 arinar-trainer --config configs/demo.yaml > >(tee -a "$out/train.log") 2>&1 &
}

# Prints the loss in the first (head) or last (tail) progress line.
loss() { sed -n 's/.*loss[ =:]*\(-\{0,1\}[0-9][0-9.]*\).*/\1/p' "$out/train.log" | "$1" -n 1; }

clear_out
if [ "${1:-}" = clean ]; then
    rm -f "$mark"
    rmdir "$out" 2>/dev/null || true # it may not exist or contain other files
    exit
fi
. ops/env.sh
PATH=$PWD/target/release:$PATH
mkdir -p "$out"
echo "make demo and make clean delete the output of the demo from this folder" >"$mark"

step "Encoding 1,906 images to latents"
arinar-data encode --images tests/data/noto-emoji-32.tar --image-size 32 \
    --vae data/assets/emoji-vae.safetensors --out "$out/dataset"

step "Training on two ranks, to be stopped on purpose after $stop_after_secs s"
train
trainer=$!
# mpirun forwards SIGUSR1 unchanged, but after a SIGTERM it kills its ranks within a second.
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

step "Sampling a grid of images with the averaged weights"
arinar-sample --run "$out/run" --out "$out/samples"

step "Done"
cat <<END
grid         $out/samples/grid.png
TensorBoard  tensorboard --logdir $out/run/tensorboard
checkpoint   $(find "$out/run" -maxdepth 2 -type d -name 'step-*' | sort | tail -n 1)
loss         $(loss head) at the start, $(loss tail) at the end
END
