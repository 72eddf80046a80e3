"""How much of an attack's time does the model itself take, in its forward and backward passes?

`python profile_attack.py` attacks one batch of untrained models of real size, and of the embedded one, at a radius
where nothing falls, and notes every call of the model: its images, and whether a gradient was taken. Then it makes the
same passes with nothing around them. Both take turns, in one process and one thread, and are told in two ways:

- outside: processor seconds of the bare passes over those of the attack, a number for each repeat. It has the noise of
  two measurements, and can be over 100 %.
- inside: of the attack's own seconds, those within calls of the model and of `torch.autograd.grad`.

What the engine does between passes costs the more, in proportion, the fewer the iterations: a run of a hundred has a
higher share than the ones here. Writes `results/profile_attack.json` and prints a table, in ten minutes to a quarter
of an hour; `--models`, `--batch-size`, `--iterations` and `--repeats` change that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import Cell, attack, load_cell, provenance, save, untrained
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.attacks.engine.outcome import Example
from clipguard.core.environment.device import choose_device

BATCHES = {"tiny": 64, "ViT-B-32": 4, "RN50": 4, "convnext_base": 2}
RADIUS = 1e-6
AIMS = {"apgd-ce": 92, "apgd-t": 92, "fab-t": 85, "square": 80, "pgd": 92}  # per cent


class Watch(nn.Module):
    """A model whose calls are noted, with the seconds that it and its gradients take.

    Attributes:
        model: the one that is called.
        calls: rows of each call, and whether a gradient was taken.
        seconds: of the processor, within calls and gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.least_rows = model, getattr(model, "least_rows", 1)
        self.calls: list[tuple[int, bool]] = []
        self.seconds = 0.0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), torch.is_grad_enabled() and x.requires_grad))
        started = time.process_time()
        logits: Tensor = self.model(x)
        self.seconds += time.process_time() - started
        return logits

    @contextmanager
    def of_gradients(self) -> Iterator[None]:
        """A context in which gradients count, too."""
        take = torch.autograd.grad

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return take(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - started

        torch.autograd.grad = timed
        try:
            yield
        finally:
            torch.autograd.grad = take


def make_cell(name: str, n: int) -> Cell:
    """A model and images, all of which it takes for what their labels say."""
    if name == "tiny":
        cell = load_cell("tiny", "emoji-food", n)
        images = [example.image for example in cell.examples]
    else:
        classifier, size = untrained(name)
        cell = Cell("random", classifier, [])
        images = list(torch.rand(n, 3, size, size))
    with torch.no_grad():
        labels = cell.classifier(torch.stack(images)).argmax(dim=1).tolist()
    cell.examples = [Example(i, x, y) for i, (x, y) in enumerate(zip(images, labels, strict=True))]
    return cell


def bare(cell: Cell, calls: list[tuple[int, bool]]) -> float:
    """Processor seconds of the same passes, with nothing around them."""
    x = torch.stack([example.image for example in cell.examples])
    labels = torch.tensor([example.label for example in cell.examples])
    started = time.process_time()
    for rows, gradient in calls:
        if gradient:
            leaf = x[:rows].clone().requires_grad_()
            torch.autograd.grad(F.cross_entropy(cell.classifier(leaf), labels[:rows], reduction="sum"), leaf)
        else:
            with torch.no_grad():
                cell.classifier(x[:rows])
    return time.process_time() - started


def attacked(cell: Cell, name: str) -> tuple[float, Watch, int]:
    """Processor seconds of the attack, what was seen of the model, and the images of its passes."""
    watch = Watch(cell.classifier)
    started = time.process_time()
    with watch.of_gradients():
        outcomes, costs = attack(
            Cell(cell.name, watch, cell.examples), "clipguard", name, [RADIUS], "linf", batch_size=len(cell.examples)
        )
    seconds = time.process_time() - started
    if not all(outcome.eps_outcomes[0].robust for outcome in outcomes.values()):
        raise SystemExit(f"{name}: an image fell, so this is not the work of a robust batch.")
    return seconds, watch, sum(cost.forward for cost in costs.values())


def spread(values: list[float]) -> list[float]:
    """Median, smallest and largest, in per cent."""
    return [round(100 * value, 1) for value in (statistics.median(values), min(values), max(values))]


def measure(cell: Cell, name: str, repeats: int) -> dict[str, Any]:
    """Both shares of one attack on one batch."""
    _, watch, images = attacked(cell, name)  # also a warm-up
    calls = watch.calls
    if any(rows > len(cell.examples) for rows, _ in calls):
        raise SystemExit("A pass was filled up beyond the batch: take a larger --batch-size.")
    outside, inside, seconds = [], [], []
    for repeat in range(repeats):
        if repeat % 2:
            whole, watch, _ = attacked(cell, name)
            alone = bare(cell, calls)
        else:
            alone = bare(cell, calls)
            whole, watch, _ = attacked(cell, name)
        if watch.calls != calls:
            raise SystemExit(f"{name}: two runs made different passes.")
        outside.append(alone / whole)
        inside.append(watch.seconds / whole)
        seconds.append([round(alone, 2), round(whole, 2)])
    aim = next(aim for attack_name, aim in AIMS.items() if name.startswith(attack_name))
    return {
        "attack": name,
        "passes": {"forward and gradient": sum(g for _, g in calls), "forward": sum(not g for _, g in calls)},
        "rows_that_only_fill": sum(rows for rows, _ in calls) - images,
        "outside": spread(outside),
        "inside": spread(inside),
        "aim": aim,
        "reached": {"outside": spread(outside)[0] >= aim, "inside": spread(inside)[0] >= aim},
        "seconds_bare_and_attack": seconds,
    }


def names(iterations: int) -> list[str]:
    """The attacks, as short as is said."""
    return [
        f"apgd-ce(iterations={iterations})",
        f"apgd-t(iterations={iterations},targets=1)",
        f"fab-t(iterations={iterations},targets=1)",
        f"square(queries={2 * iterations})",
        f"pgd-{iterations}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BATCHES), help="tiny, or architectures of open_clip")
    parser.add_argument("--batch-size", type=int, help="default: tiny 64, convnext_base 2, others 4")
    parser.add_argument("--iterations", type=int, default=3, help="of each attack on a large model; tiny has ten more")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    choose_device("cpu")  # as every command does: the allocator keeps its memory
    results = []
    for model in args.models:
        cell = make_cell(model, args.batch_size or BATCHES.get(model, 4))
        for name in names(args.iterations + (10 if model == "tiny" else 0)):
            row = {"model": model, "batch_size": len(cell.examples), **measure(cell, name, args.repeats)}
            row["load_average"] = round(os.getloadavg()[0], 2)
            results.append(row)
            print(json.dumps(row), flush=True)
            save("profile_attack", {"unit": "per cent: median, min, max", "results": results, **provenance()})
    print(f"\n{'model':14} {'attack':32} {'inside':>7} {'outside (range)':>24} {'aim':>5}")
    for row in results:
        outside = "{:.1f} ({:.1f} to {:.1f})".format(*row["outside"])
        print(f"{row['model']:14} {row['attack']:32} {row['inside'][0]:7.1f} {outside:>24} {row['aim']:5}")


if __name__ == "__main__":
    main()
