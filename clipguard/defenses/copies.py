"""Several changed copies of each image, passed through a classifier with the memory of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipguard.defenses.base import View

Copy = Callable[[Tensor, int], Tensor]  # images (B, C, H, W) and the number of a copy -> as many images
Run = Callable[[Tensor, View], Tensor]  # images (N, C, H, W) -> (N, D)
ROWS = 64  # of a pass, if that is more than there are images


def outputs_of_copies(run: Run, x: Tensor, view: View, count: int, copy: Copy, *, least_rows: int) -> Iterator[Tensor]:
    """(B, D) of each copy of the images x, in order.

    Passes hold whole sets of copies: as many as fit into `ROWS`, and at least one, whose size the caller has chosen.
    Where a gradient is taken, passes are checkpointed: they are made again on the way back.

    Args:
        run: the classifier's logits or embeddings.
        x: (B, C, H, W).
        view: of the images, from which that of copies follows.
        count: of copies.
        copy: makes one; the same one whenever it is asked for it.
        least_rows: of a pass; missing ones are black images.
    """
    with_gradient = torch.is_grad_enabled() and x.requires_grad
    group = max(1, ROWS // len(x))
    for start in range(0, count, group):
        numbers = range(start, min(start + group, count))
        if with_gradient:
            out = checkpoint(
                _one_pass, run, x, view, numbers, copy, least_rows, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = _one_pass(run, x, view, numbers, copy, least_rows)
        yield from torch.split(out, len(x))


def _one_pass(run: Run, x: Tensor, view: View, numbers: range, copy: Copy, least_rows: int) -> Tensor:
    images = torch.cat([copy(x, number) for number in numbers])
    missing = max(0, least_rows - len(images))
    filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
    return run(filled, replace(view, draws=view.draws.of_copies(numbers, missing)))[: len(images)]
