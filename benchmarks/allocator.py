"""What do passes cost when freed memory goes back to the kernel, and when the process keeps it, as clipguard has it?

`python allocator.py` runs forward passes with input gradients of untrained towers in processes of their own, with
glibc's defaults and with `keep_memory`, in turns, and writes CPU seconds, page faults and peak memory to
`results/allocator.json`. `--model NAME=BATCH` takes other open_clip architectures. Outputs are the same to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import open_clip
import torch
from common import provenance, save

from clipguard.core.environment.allocator import keep_memory

MODELS = {"tiny": 64, "MobileCLIP-S1": 16, "RN50": 16, "ViT-B-32": 4}
PASSES = 4


def build(name: str) -> tuple[torch.nn.Module, int]:
    """An image tower without training, and the side of its images; "tiny" is the embedded model's."""
    if name == "tiny":
        import clipguard

        loaded = clipguard.load_model("tiny")
        return loaded.model.visual, loaded.info.image_size[0]
    torch.manual_seed(0)
    return open_clip.create_model(name).visual.eval(), open_clip.get_model_config(name)["vision_cfg"]["image_size"]


def measure(name: str, n: int, keep: bool) -> dict[str, Any]:
    """CPU seconds and page faults of the passes after two, the peak in MiB, and a hash of the gradient."""
    if keep and not keep_memory():
        raise SystemExit("This C library's allocator cannot be told.")
    tower, size = build(name)
    tower.requires_grad_(False)
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))

    def one() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        out = tower(leaf)
        (grad,) = torch.autograd.grad((out if isinstance(out, torch.Tensor) else out[0]).sum(), leaf)
        return grad

    for _ in range(2):
        grad = one()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(PASSES):
        grad = one()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "in_kernel": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": after.ru_maxrss // 1024,
        "gradient": hashlib.sha256(grad.numpy().tobytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="NAME=BATCH, repeatable")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a measurement in its own process
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.one[2] == "keep")))
        return
    chosen = dict(text.split("=") for text in args.model) if args.model else MODELS
    results = []
    for name, n in chosen.items():
        runs: dict[str, list[dict[str, Any]]] = {"default": [], "keep": []}
        for _ in range(args.repeats):
            for how, found in runs.items():
                command = [sys.executable, __file__, "--one", name, str(n), how]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        if len({run["gradient"] for found in runs.values() for run in found}) > 1:
            raise SystemExit(f"{name}: gradients differ")
        row: dict[str, Any] = {"model": name, "batch_size": int(n), "passes": PASSES}
        for how, found in runs.items():
            row[how] = {
                key: round(statistics.median(run[key] for run in found), 3)
                for key in ("seconds", "in_kernel", "faults", "peak_mib")
            }
        ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["default"], runs["keep"], strict=True)]
        row["time"] = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
        row["peak"] = round(row["keep"]["peak_mib"] / row["default"]["peak_mib"], 3)
        results.append(row)
        print(json.dumps(row), flush=True)
    save("allocator", {"provenance": provenance(), "results": results})


if __name__ == "__main__":
    main()
