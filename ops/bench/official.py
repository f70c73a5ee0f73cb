#!/usr/bin/env python3
"""Times a training step of ARINAR-B in the official PyTorch code, with the shapes of `make bench`.

    git clone https://github.com/Qinyu-Allen-Zhao/Arinar
    python3 -m venv venv && venv/bin/pip install torch==2.13.0 timm scipy numpy tqdm
    venv/bin/python ops/bench/official.py --official Arinar

Run it on the same machine as `make bench` and directly before or after it, with nothing else running. It imports the
unmodified official model on the CPU and times forward, backward, clipping, AdamW and EMA, in float32 (or under bf16
autocast with --bf16). The number of masked tokens is fixed to the mean of its distribution, 222 of 256, as in our
benchmark.
"""
import argparse
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", required=True, help="folder of the official repository")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="timed steps after one warm-up step")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.official)

    import torch

    torch.Tensor.cuda = lambda self, *_, **__: self  # the official code calls .cuda() in a few places
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    model = official_model()
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [parameter for _, parameter in named]
    plain = [p for name, p in named if p.ndim == 1 or name.endswith(".bias") or "arhead" in name]
    plain_ids = {id(p) for p in plain}
    decayed = [p for p in parameters if id(p) not in plain_ids]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    averages = [parameter.detach().clone() for parameter in parameters]
    latents = torch.randn(arguments.batch, 16, 16, 16)
    labels = torch.randint(0, 1000, (arguments.batch,))
    model.mask_ratio_generator = FixedRatio()

    seconds = []
    for step in range(arguments.steps + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.bf16):
            loss = model(latents, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average, parameter in zip(averages, parameters):
                average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
        elapsed = time.perf_counter() - started
        print(f"step {step}: loss {loss.item():.4f}, {elapsed:.2f} s{' (warm-up)' if step == 0 else ''}", flush=True)
        if step:
            seconds.append(elapsed)
    median = sorted(seconds)[len(seconds) // 2]
    count = sum(parameter.numel() for parameter in parameters)
    kind = "bf16 autocast" if arguments.bf16 else "float32"
    print(f"official ARINAR-B, {count} parameters, batch {arguments.batch}, {torch.get_num_threads()} threads, "
          f"{kind}: {arguments.batch / median:.3f} images/s")


class FixedRatio:
    """Replaces the truncated normal distribution; always gives its mean number of masked tokens."""

    def rvs(self, _count):
        return [222 / 256]


def official_model():
    """Creates ARINAR-B from either layout of the official repository."""
    sizes = dict(img_size=256, vae_stride=16, patch_size=1, vae_embed_dim=16, mask_ratio_min=0.7, label_drop_prob=0.1,
                 class_num=1000, attn_dropout=0.1, proj_dropout=0.1, buffer_size=64, num_gaussians=4,
                 grad_checkpointing=False, inner_ar_width=768, inner_ar_depth=1, head_width=768, head_depth=1)
    try:
        from backbone import mar
        model = mar.mar_base(head_type="ar_gmm", enc_dec_depth=-1, **sizes)
    except ImportError:
        from models import mar
        model = mar.mar_base(head_type="ar_gmm", **sizes)
    return model.train()


if __name__ == "__main__":
    main()
