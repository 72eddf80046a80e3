"""How much faster do two workers of one thread attack than one process of one thread?

`python workers.py` attacks images that all survive: of the embedded model, and of an untrained ViT-B/32, which are
labelled by what it takes them for. One process and two workers take turns, on a machine with two processors that are
otherwise idle. They must agree in every row. Seconds are those of the run, without the imports of its own process, with
those of its workers, and with the self-test of the ViT-B/32, which every process makes. Writes `results/workers.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, too

import numpy as np
import torch
from common import provenance, save, untrained

import clipguard
from clipguard.models.preprocessing import from_8bit


def embedded() -> dict[str, Any]:
    """`tiny` at a radius where nearly nothing falls."""
    return {"datasets": "emoji-food", "n_samples": 100, "attacks": "apgd-ce", "eps": "0.25"}


def vit(n: int = 32) -> dict[str, Any]:
    """An untrained ViT-B/32 as a module, on random images."""
    classifier, size = untrained("ViT-B-32")
    classifier.eval().requires_grad_(False)
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = [int(classifier(from_8bit(torch.as_tensor(image)).movedim(-1, 0)[None]).argmax()) for image in images]
    attack = clipguard.APGD(iterations=10)
    names = ",".join(f"class {number}" for number in range(20))
    return {
        "models": classifier,
        "datasets": (images, np.array(labels)),
        "classes": names,
        "attacks": attack,
        "eps": 1e-6,
        "batch_size": 4,
    }


def measure(options: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        results = {}
        for workers in seconds:
            results[workers] = clipguard.bench(**options, workers=workers, device="cpu", probes=False)
            seconds[workers].append(results[workers].run["wall_seconds"])
        if not results[1].samples.equals(results[2].samples):
            raise SystemExit("The rows differ.")
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    spread = [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    robust = int(results[1].samples.query("attack != 'none'")["robust"].sum())
    return {"robust": robust, "times faster": spread, "one": seconds[1], "two": seconds[2]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    results = []
    for name, options in (("tiny", embedded()), ("ViT-B-32, random weights", vit())):
        results.append({"model": name, **measure(options, repeats)})
        print(results[-1], flush=True)
        save("workers", {**provenance(), "results": results})
