"""How much faster do two workers of one thread attack than one process of one thread?

`python workers.py` attacks images of the embedded model that nearly all survive. One process and two workers take
turns, on a machine with two processors that are otherwise idle. They must agree in every row. Seconds are those of
the run, without the start of its first worker, with that of the second. Writes `results/workers.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, too

import torch
from common import provenance, save

import clipguard

# At an eps where nearly nothing falls.
ATTACKS: dict[str, dict[str, Any]] = {"apgd-ce": {"n_samples": 200}, "apgd-t": {"n_samples": 60}}


def measure(attack: str, options: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    options = {"datasets": "emoji-food", "attacks": attack, "eps": "0.25", **options}
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
    for attack, options in ATTACKS.items():
        results.append({"model": "tiny", "attack": attack, **measure(attack, options, repeats)})
        print(results[-1], flush=True)
        save("workers", {**provenance(), "results": results})
