"""How much faster do two workers of one thread attack than one process of one thread?

`python workers.py` attacks images that nearly all stand: of the embedded model, and of a ViT-B/32 with random weights,
of which only those images are attacked that it happens to get right. One process and two workers take turns, on a
machine with two processors that should be idle (the load before each is in the file). They must agree in every row.
Seconds are those of the run, without the start of its first worker, with that of the second. Writes
`results/workers.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, too

import open_clip
import torch
from common import provenance, save

import clipguard
from clipguard.core.environment.quiet_libraries import quiet_libraries

# At an eps where nearly nothing falls: model, attack, images.
CASES = (
    ("tiny", "apgd-ce", 200),
    ("tiny", "apgd-t", 60),
    ("ViT-B-32, untrained", "apgd-ce(iterations=5)", 200),
)


def untrained(folder: str) -> str:
    """A ViT-B/32 with random weights, as a model's name."""
    torch.manual_seed(0)
    with quiet_libraries():
        model = open_clip.create_model("ViT-B-32")
    path = Path(folder) / "untrained.pt"
    torch.save(model.state_dict(), path)
    return f"ViT-B-32:{path}"


def measure(model: str, attack: str, images: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    options: dict[str, Any] = {"datasets": "emoji-food", "attacks": attack, "n_samples": images}
    options |= {"models": model, "eps": "0.25" if model == "tiny" else "0.01/255"}
    loads = []
    clipguard.bench(**{**options, "n_samples": 20}, device="cpu", probes=False)  # the self-test is made once
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        results = {}
        for workers in seconds:
            loads.append(round(os.getloadavg()[0], 1))
            results[workers] = clipguard.bench(**options, workers=workers, device="cpu", probes=False)
            seconds[workers].append(results[workers].run["wall_seconds"])
        if not results[1].samples.equals(results[2].samples):
            raise SystemExit("The rows differ.")
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    spread = [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    robust = int(results[1].samples.query("attack != 'none'")["robust"].sum())
    return {"robust": robust, "times faster": spread, "one": seconds[1], "two": seconds[2], "load before": loads}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model, attack, images in CASES:
            name = model if model == "tiny" else untrained(folder)
            results.append({"model": model, "attack": attack, **measure(name, attack, images, repeats)})
            print(results[-1], flush=True)
            save("workers", {**provenance(), "results": results})
