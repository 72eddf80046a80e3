"""How much less does an attack on few images take where the model's kernels round alike from 4 or 8 rows on?

`python few_images.py` attacks one image, or `--images`, of untrained models of real size, at a radius where nothing
falls: with passes filled up to 16 rows, and to the fewest that the self-test of a run finds here. Both take turns, in
one process and one thread. They must agree in every bit of every margin. Iterations are few; each takes as long as one
of a hundred. Writes `results/few_images.json` in five minutes or so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import Cell, attack, provenance, save, untrained

from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.engine.passes.batch_invariance import Filling, find_fill
from clipguard.core.environment.device import choose_device

RADIUS = 1e-6


def make_cell(name: str, n: int) -> Cell:
    """A model and random images, labelled by what it takes them for."""
    classifier, size = untrained(name)
    images = torch.rand(n, 3, size, size)
    with torch.no_grad():
        labels = classifier(images).argmax(dim=1).tolist()
    return Cell("random", classifier, [Example(i, x, y) for i, (x, y) in enumerate(zip(images, labels, strict=True))])


def timed(cell: Cell, name: str, **options: Any) -> tuple[float, list[tuple[float, float]]]:
    """Processor seconds, and the margins of every image."""
    started = time.process_time()
    outcomes, _ = attack(cell, "clipguard", name, [RADIUS], "linf", **options)
    seconds = time.process_time() - started
    if not all(outcome.eps_outcomes[0].robust for outcome in outcomes.values()):
        raise SystemExit(f"{name}: an image fell, so this is not the work of survivors.")
    return seconds, [(o.clean_margin, o.eps_outcomes[0].margin) for _, o in sorted(outcomes.items())]


def measure(cell: Cell, filling: Filling, name: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """Seconds of both ways, and their ratio."""
    before, after = [], []
    for _ in range(repeats):
        options: dict[str, Any] = {"batch_size": batch_size, "fill": filling.fill}
        was, margins = timed(cell, name, **options)
        now, same = timed(cell, name, small_rows=filling.small_rows, **options)
        if margins != same:
            raise SystemExit(f"{name}: the margins differ: {margins} and {same}.")
        before.append(round(was, 2))
        after.append(round(now, 2))
    ratios = [b / a for b, a in zip(before, after, strict=True)]
    spread = [round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios))]
    return {"images": len(cell.examples), "attack": name, "times faster": spread, "before": before, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32"], help="architectures of open_clip")
    parser.add_argument("--images", nargs="+", type=int, default=[1])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    choose_device("cpu")  # as every command does: the allocator keeps its memory
    attacks = {
        "apgd-ce": f"apgd-ce(iterations={args.iterations})",
        "autoattack-fast": f"apgd-ce(iterations={args.iterations})+apgd-t(iterations={args.iterations})",
    }
    content: dict[str, Any] = provenance() | {"results": []}
    for model in args.models:
        cell = make_cell(model, max(args.images))
        shape = tuple(cell.examples[0].image.shape)
        started = time.process_time()
        filling = find_fill(cell.classifier, shape, args.batch_size)
        print(model, filling, f"{time.process_time() - started:.1f} s", flush=True)
        for n in args.images:
            few = Cell(cell.name, cell.classifier, cell.examples[:n])
            for title, name in attacks.items():
                row = measure(few, filling, name, args.batch_size, args.repeats)
                entry = {"model": model, "rows": filling.small_rows or 16, "title": title, **row}
                content["results"].append(entry)
                print(entry, flush=True)
                save("few_images", content)


if __name__ == "__main__":
    main()
