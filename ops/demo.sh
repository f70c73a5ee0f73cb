#!/usr/bin/env bash
# `make demo`: pictures -> latents -> training on two ranks, stopped and resumed -> a grid of new pictures.
# Everything it makes is in out/demo, which it empties first. It expects the programs in target/release.
set -euo pipefail
cd "$(dirname "$0")/.."
. ops/env.sh
PATH=$PWD/target/release:$PATH

readonly out=out/demo # as in configs/demo.yaml
readonly stop_after_secs=40
readonly preempted=75 # the trainer's exit code for "checkpointed after a signal; start me again"

step() { printf '\n== %s\n' "$*"; }

# Starts training in the background; `$!` is mpirun.
train() {
    mpirun --quiet -n 2 arinar-trainer --config configs/demo.yaml > >(tee -a "$out/train.log") 2>&1 &
}

# The loss in the first (head) or last (tail) progress line.
loss() { sed -n 's/.*loss[ =:]*\(-\{0,1\}[0-9][0-9.]*\).*/\1/p' "$out/train.log" | "$1" -n 1; }

rm -rf "$out"
mkdir -p "$out"

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
