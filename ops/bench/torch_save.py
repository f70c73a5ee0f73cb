"""Times torch.save of a training state: weights, averages and AdamW's two moments, as the official code saves them.

    python ops/bench/torch_save.py SHAPES.json OUT.pt

SHAPES.json is a list of [name, shape], written by `cargo bench -p arinar-trainer --bench checkpoint`. Any CPU build of
torch works. The best of three runs is printed, for comparison with our stall; nothing is synced to the disk.
"""

import json
import os
import sys
import time

import torch


def main(shapes_path: str, out: str) -> None:
    with open(shapes_path, encoding="utf-8") as file:
        shapes = json.load(file)

    def tensors() -> dict:
        # Random values touch every page, so that none is the kernel's shared page of zeros.
        return {name: torch.rand(shape) for name, shape in shapes}

    moments = {index: {"exp_avg": a, "exp_avg_sq": b}
               for index, (a, b) in enumerate(zip(tensors().values(), tensors().values()))}
    state = {"model": tensors(), "model_ema": tensors(), "optimizer": {"state": moments}, "epoch": 1}
    seconds = []
    for _ in range(3):
        if os.path.exists(out):
            os.remove(out)
        began = time.perf_counter()
        torch.save(state, out)
        seconds.append(time.perf_counter() - began)
    size = os.path.getsize(out)
    os.remove(out)
    print(f"torch.save: {min(seconds):.3f} s for {size / 1e9:.2f} GB (torch {torch.__version__}, not synced)")


if __name__ == "__main__":
    main(*sys.argv[1:])
