"""The pool's bookkeeping: attacks hold the state of many images at once, each image a row of its own.

A row's update reads nothing but that row, so an image's trajectory is the same alone and in a crowd. Updates write
in place where few rows change, so no two columns that an attack writes to may share memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from clipguard.attacks.losses import Loss
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel

# What the engine keeps for every row, whatever the attack:
#   item, eps_index, unit (B,) int64   image, eps and unit in the engine's lists (see schedule.py)
#   x0 (B, C, H, W)       clean image;  label, target (B,) int64;  eps (B,) in pixel units
#   ranking (B, C) int64  classes from the largest clean logit to the smallest, without the label
#   run (B,) int64        which restart x target of this attack;  step (B,) int64 within the run
#   best_margin (B,), best_x   the strongest image so far in this run


class Attack(ABC):
    """One attack of a recipe. An instance is immutable; all that changes lives in `AttackState`."""

    name: ClassVar[str]
    fixed: ClassVar[tuple[str, ...]] = ()  # parameters of the implementation that are no options
    loss: Loss
    iterations: int
    restarts: int = 1
    targets: int = 0  # 0: untargeted; else classes ranked 2nd, 3rd ... on the clean image

    def runs(self, n_classes: int) -> int:
        """How often one image is attacked: restarts x targets, never more targets than other classes."""
        return self.restarts * max(1, min(self.targets, n_classes - 1))

    def choose_target(self, state: AttackState) -> Tensor:
        """(B,) the class a run aims at (the runner-up for untargeted attacks, which ignore it)."""
        n_targets = max(1, min(self.targets, state["ranking"].shape[1]))
        return state["ranking"].gather(1, (state["run"] % n_targets)[:, None]).squeeze(1)

    @abstractmethod
    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        """Set this attack's own columns for rows that begin a run; all rows of the table do."""

    @abstractmethod
    def query(self, state: AttackState) -> Tensor:
        """The next points to evaluate (B, C, H, W)."""

    def wants_gradient(self, state: AttackState) -> Tensor:
        """(B,) bool: which rows need the loss gradient at their query; the rest get zeros."""
        return state["step"] < self.iterations

    @abstractmethod
    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        """Move on from the points `x` that `query` gave; the engine counts `step` afterwards.

        `logits`, `loss` and `grad` are those of the admissible points next to `x` (8-bit images, if the threat says
        so), while `x` is what `query` gave: steps smaller than one grey level would otherwise be rounded away. `x` and
        `grad` may be overwritten.
        """

    def finished(self, state: AttackState) -> Tensor:
        """(B,) bool, asked after `step` was counted."""
        return state["step"] > self.iterations
