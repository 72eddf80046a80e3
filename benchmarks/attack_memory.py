"""How much memory does a step of an attack take, beyond a plain forward pass and input gradient on the same batch?

`python attack_memory.py` runs each attack on one batch of untrained open_clip models of real size, and the plain
pass, in processes of their own, and writes the growth of their peak resident memory to `results/attack_memory.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import torch
from common import Cell, attack, provenance, save, untrained
from torch.nn import functional as F

from clipguard.attacks.engine.outcome import Example
from clipguard.models.classifier import ZeroShotClassifier

MODELS = {"ViT-B-32": 64, "RN50": 16}  # batch sizes
# A robust image's steps: nothing succeeds within a radius of 1e-6.
ATTACKS = ["pgd-3", "apgd-ce(iterations=3)", "apgd-t(iterations=3,targets=1)", "fab-t(iterations=2,targets=1)"]
ATTACKS += ["square(queries=4)"]


def peak() -> int:
    """Peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def growth(architecture: str, what: str, n: int) -> int:
    """Bytes by which the peak grows when the batch is processed, once a single image has been."""
    classifier, size = untrained(architecture)
    images = torch.rand(n, 3, size, size)
    with torch.no_grad():
        labels = torch.cat([classifier(x[None]).argmax(dim=1) for x in images])
    work = plain if what == "plain" else lambda c, x, y: engine(c, x, y, what)
    work(classifier, images[:1], labels[:1])
    before = peak()
    work(classifier, images, labels)
    return peak() - before


def plain(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward pass and gradient of the pixels, three times, as the attacks do."""
    for _ in range(3):
        x = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(classifier(x), labels, reduction="sum"), x)


def engine(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    """The attack on all images at once."""
    examples = [Example(i, x, int(y)) for i, (x, y) in enumerate(zip(images, labels, strict=True))]
    attack(Cell("random", classifier, examples), "clipguard", name, [1e-6], "linf", batch_size=len(examples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a measurement in its own process
    args = parser.parse_args()
    if args.one:
        print(growth(*args.one, MODELS[args.one[0]]))
        return
    results = []
    for model, n in MODELS.items():
        row = {"model": model, "batch_size": n}
        for what in ["plain", *ATTACKS]:
            command = [sys.executable, __file__, "--one", model, what]
            row[what] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        results.append(row | {"ratio": {name: round(row[name] / row["plain"], 3) for name in ATTACKS}})
        print(json.dumps(results[-1]), flush=True)
        save("attack_memory", {"unit": "bytes", "models": results, "provenance": provenance()})


if __name__ == "__main__":
    main()
