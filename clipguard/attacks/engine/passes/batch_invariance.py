"""Does an image's result depend on which others share its batch? Found by trying it, for a model on this processor.

Libraries choose their kernels by processor and by shape, and kernels round differently. So passes are filled up with
black images until the shapes are such that a row's bits are the same wherever it stands; which shapes these are
(`Fill`) is measured, cheapest first. Where none will do, a success is decided by a pass of that image alone.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from clipguard.attacks.engine.options import Fill
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen

FILLS: tuple[Fill, ...] = get_args(Fill)
# The fills worth trying, cheapest first, by type of device.
CANDIDATES: dict[str, tuple[Fill, ...]] = {"cpu": ("least", "multiple", "full"), "cuda": ("least", "full")}
SEED = 0  # of the random images


def find_fill(
    model: nn.Module,
    shape: tuple[int, ...],
    batch_size: int,
    *,
    precision: str = "float32",
    compiled: bool = False,
    gradients: bool = True,
) -> tuple[Fill, bool]:
    """The cheapest fill with which rows do not depend on their batch, and whether that holds for the whole run.

    A few batches of random images are passed through the model, whole and in parts, whose rows stand elsewhere.

    Args:
        model: frozen, in eval mode: pixels (B, *shape) in [0,1] -> logits (B, classes).
        shape: (C, H, W) of an image.
        batch_size: of the run.
        precision: of the search for adversarial images.
        compiled: whether the search runs a compiled model, which has kernels of its own for every shape: then only
            the float32 passes that decide are examined, and the whole run does not hold.
        gradients: whether the run needs gradients.

    Returns:
        The fill, and whether the whole run is then the same for every batch.
    """
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    x = torch.rand((batch_size, *shape), generator=torch.Generator().manual_seed(SEED)).to(device)
    for fill in CANDIDATES.get(device.type, ("full",)):
        evaluator = Evaluator(model, batch_size, precision, fill=fill)
        with frozen(model):
            if _holds(evaluator, x, search=gradients and not compiled):
                return fill, not compiled
    return "alone", False


def _holds(evaluator: Evaluator, x: Tensor, *, search: bool) -> bool:
    """Whether the last rows of a batch (one, half, all but one), reversed, have the bits they have in the whole."""
    whole = _look(evaluator, x, search)
    for n in sorted({1, len(x) // 2 + 1, max(1, len(x) - 1)}):
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
