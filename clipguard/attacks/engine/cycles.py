"""Attacks that come back to a point they have been at: from there on they only repeat themselves.

With signed steps of one size the iterates of PGD are few enough to repeat exactly, often with period 2 (Heinrich et
al., arXiv:2503.19347). A row whose next point has the very bits of an earlier one cannot find anything new, if its
attack is `memoryless` and the model gives a row the same bits in every pass. It ends there, with the same outcome.

Points are compared with one earlier point, the anchor, which is renewed after 4 steps, later after a quarter of the
steps taken: no hashes and no history are kept, and a cycle is seen a few steps after it has closed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipguard.attacks.state import AttackState, asking_is_free
from clipguard.attacks.threat import choose

PART = 256  # values that are compared first where that is asked for free
SHORTEST = 4  # steps that an anchor stays at least: longer than the usual cycle


def watch(state: AttackState, x: Tensor) -> None:
    """Begin with the first points x (B, C, H, W) of rows that start."""
    state["anchor"], state["anchor_step"] = x.clone(), state["step"].clone()


def repeated(state: AttackState, x: Tensor) -> Tensor:
    """(B,) bool, rows whose next point x (B, C, H, W) they have been at; asked once a step, after it was counted."""
    step, anchor, anchor_step = state["step"], state["anchor"], state["anchor_step"]
    now, then = (points.view(torch.int32).flatten(1) for points in (x, anchor))  # bits: 0.0 is not -0.0
    renew = step - anchor_step >= (anchor_step // SHORTEST).clamp_min(SHORTEST)
    state["anchor_step"] = torch.where(renew, step, anchor_step)
    if not asking_is_free(x):
        same = (now == then).all(dim=1)
        choose(renew, x, anchor)
        return same
    middle = slice(now.shape[1] // 2, now.shape[1] // 2 + PART)
    same = (now[:, middle] == then[:, middle]).all(dim=1)
    if len(likely := same.nonzero().squeeze(1)):
        same[likely] = (now[likely] == then[likely]).all(dim=1)
    due = renew.nonzero().squeeze(1)
    anchor[due] = x[due]
    return same
