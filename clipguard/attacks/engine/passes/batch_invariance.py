"""Does an image's result depend on which others share its batch? Found by trying it, for a model on this processor.

Libraries choose their kernels by processor and by shape, and kernels round differently. So passes are filled up with
black images until the shapes are such that a row's bits are the same wherever it stands; which shapes these are
(`Fill`) is measured, cheapest first. Where none will do, a success is decided by a pass of that image alone.

On a CPU, a pass of few images takes as long as it has rows, and some towers round alike from fewer rows on than others:
so the fewest that will do are measured, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from clipguard.attacks.engine.options import Fill
from clipguard.attacks.engine.passes.batching import least_rows
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen

FILLS: tuple[Fill, ...] = get_args(Fill)
# The fills worth trying, cheapest first, by type of device.
CANDIDATES: dict[str, tuple[Fill, ...]] = {"cpu": ("least", "multiple", "full"), "cuda": ("least", "full")}
SMALL_ROWS = (4, 8)  # of passes on a CPU: worth trying in place of the model's `least_rows`, cheapest first
SEED = 0  # of the random images


@dataclass(frozen=True)
class Filling:
    """How passes are filled up so that rows do not depend on their batch: see `filled`.

    Attributes:
        fill: the cheapest that will do.
        holds: whether rows of the whole run then do not.
        small_rows: the fewest that passes of few images can be filled up to; None for the model's `least_rows`.
    """

    fill: Fill
    holds: bool
    small_rows: int | None = None


def find_fill(
    model: nn.Module,
    shape: tuple[int, ...],
    batch_size: int,
    *,
    precision: str = "float32",
    compiled: bool = False,
    gradients: bool = True,
) -> Filling:
    """The cheapest way of filling up passes with which rows do not depend on their batch.

    A few batches of random images are passed through the model, whole and in parts, whose rows stand elsewhere.

    Args:
        model: frozen, in eval mode: pixels (B, *shape) in [0,1] -> logits (B, classes).
        shape: (C, H, W) of an image.
        batch_size: of the run.
        precision: of the search for adversarial images.
        compiled: whether the search runs a compiled model, which has kernels of its own for every shape: then only
            the float32 passes that decide are examined, and the whole run does not hold.
        gradients: whether the run needs gradients.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    x = torch.rand((batch_size, *shape), generator=torch.Generator().manual_seed(SEED)).to(device)
    for fill in CANDIDATES.get(device.type, ("full",)):
        evaluator = Evaluator(model, batch_size, precision, fill=fill)
        with frozen(model):
            search = gradients and not compiled
            whole = _look(evaluator, x, search)
            if _holds(evaluator, x, whole, {1, batch_size // 2 + 1, max(1, batch_size - 1)}, search=search):
                small = _small_rows(evaluator, x, whole, search=search) if device.type == "cpu" else None
                return Filling(fill, not compiled, small)
    return Filling("alone", False)


def _small_rows(evaluator: Evaluator, x: Tensor, whole: tuple[Tensor, ...], *, search: bool) -> int | None:
    """The fewest rows whose multiples round alike; None where none are below the model's least, or none are used."""
    least = min(least_rows(evaluator.model), len(x))
    if evaluator.fill == "full":
        return None
    for small in SMALL_ROWS:
        # 1: the rest is black; and every number of rows that a pass is then filled up to
        evaluator.small_rows = small
        if small < least and _holds(evaluator, x, whole, {1, *range(small, least, small)}, search=search):
            return small
    return None


def _holds(evaluator: Evaluator, x: Tensor, whole: tuple[Tensor, ...], counts: Iterable[int], *, search: bool) -> bool:
    """Whether the last rows of a batch, so many of them and reversed, have the bits they have in the whole."""
    for n in sorted(counts):
        rows = torch.arange(len(x) - 1, len(x) - 1 - n, -1, device=x.device)
        part = _look(evaluator, x[rows], search)
        if not all(torch.equal(mine, all_of_them[rows]) for mine, all_of_them in zip(part, whole, strict=True)):
            return False
    return True


def _look(evaluator: Evaluator, x: Tensor, with_search: bool) -> tuple[Tensor, ...]:
    """Everything that the engine reads from a pass: logits as they decide and, of the search, logits and gradients."""
    decided = evaluator.verify(x)
    if not with_search:
        return (decided,)
    search = evaluator.gradient(x, lambda logits, _start, _stop: -logits.log_softmax(dim=1)[:, 0])
    return (decided, evaluator.logits(x), *search)
