"""What exact cosines cost: forward and backward of a classifier's head, written in three ways, and a whole pass.

`python head_cost.py` times, for a batch of 64 embeddings of ViT-B/32 (512 numbers): a library's float32 product (whose
rows depend on their batch on some processors), exact sums (what clipguard does), and products and sums for each row;
and a pass with gradients through the whole untrained ViT-B/32. The three heads run in turns, in one process. Writes
`results/head_cost.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from common import provenance, save
from torch import Tensor
from torch.nn import functional as F

from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.cosine import exact_cosines, on_grid
from clipguard.models.preprocessing import Preprocessing

BATCH, WIDTH = 64, 512
CLASSES = (10, 100, 1000)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def heads(classes: int) -> dict[str, float]:
    """Median milliseconds of each head."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(BATCH, WIDTH, generator=generator), dim=1)
    text = F.normalize(torch.randn(WIDTH, classes, generator=generator), dim=0)
    labels, grid, rows = torch.arange(BATCH) % classes, on_grid(text), text.T.contiguous()

    def step(cosines: Callable[[Tensor], Tensor]) -> None:
        x = features.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(100 * cosines(x), labels, reduction="sum"), x)

    ways = {
        "product": lambda: step(lambda x: x @ text),
        "exact": lambda: step(lambda x: exact_cosines(x, grid)),
        "rows": lambda: step(lambda x: (x[:, None] * rows).sum(dim=-1)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(21):
        for name, work in ways.items():
            times[name].append(seconds(work))
    return {name: round(1e3 * statistics.median(values), 3) for name, values in times.items()}


def whole_pass() -> float:
    """Milliseconds of a forward pass and the gradient of the pixels, ViT-B/32 with 1,000 classes, median of three."""
    torch.manual_seed(0)
    text = F.normalize(torch.randn(WIDTH, 1000), dim=0)
    preprocessing = Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    classifier = ZeroShotClassifier(open_clip.create_model("ViT-B-32"), text, preprocessing, "model")
    images, labels = torch.rand(BATCH, 3, 224, 224), torch.arange(BATCH)

    def work() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(classifier(x), labels, reduction="sum"), x)

    work()
    return round(1e3 * statistics.median(seconds(work) for _ in range(3)), 1)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    results = {str(classes): heads(classes) for classes in CLASSES}
    whole = whole_pass()
    content = {
        **provenance(),
        "batch": BATCH,
        "milliseconds_by_classes": results,
        "vit_b_32_pass_milliseconds": whole,
        "exact_share_of_a_pass_1000_classes": round(results["1000"]["exact"] / whole, 5),
    }
    save("head_cost", content)


if __name__ == "__main__":
    main()
