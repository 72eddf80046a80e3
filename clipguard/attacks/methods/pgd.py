"""FGSM, PGD and CW: signed (or normalised) gradient steps of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.random import Draws
from clipguard.attacks.state import Rows
from clipguard.attacks.threat import ThreatModel, l2_norm, per_row


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018): x <- P(x + step_size * steepest(grad loss)).

    `step_size` is a fraction of eps; None means 2.5 / iterations, at most 1. Every iterate counts, the random
    start (uniform in the ball) and the last one too.
    """

    name: ClassVar[str] = "pgd"
    iterations: int = 10
    restarts: int = 1
    step_size: float | None = None
    random_start: bool = True
    loss: losses.Loss = losses.cross_entropy

    def start(self, rows: Rows, threat: ThreatModel, draws: Draws) -> None:
        rows["x"] = rows["x0"]
        if self.random_start:
            rows["x"] = threat.project(uniform_in_ball(rows, threat, draws), rows["x0"], rows["eps"])

    def query(self, rows: Rows) -> Tensor:
        return rows["x"]

    def update(self, rows: Rows, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor) -> None:
        del logits, loss
        fraction = min(1.0, 2.5 / self.iterations) if self.step_size is None else self.step_size
        moved = x + per_row(fraction * rows["eps"], x) * threat.steepest(grad)
        rows["x"] = threat.project(moved, rows["x0"], rows["eps"])


class RandomRows(Protocol):
    """Random numbers for a batch of rows; `Draws` is one."""

    def uniform(self, *shape: int) -> Tensor:
        """(rows, *shape) in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape), standard normal."""


def uniform_in_ball(rows: Rows, threat: ThreatModel, draws: RandomRows) -> Tensor:
    """Clean images plus noise uniform in the ball (l2: uniform direction, radius ~ u^(1/d))."""
    x0 = rows["x0"]
    shape = tuple(x0.shape[1:])
    eps = per_row(rows["eps"], x0)
    if threat.norm == "linf":
        return x0 + eps * (2 * draws.uniform(*shape) - 1)
    direction = draws.normal(*shape)
    dimension = x0[0].numel()
    radius = draws.uniform(1).squeeze(1) ** (1 / dimension)
    return x0 + eps * direction * per_row(radius / l2_norm(direction).clamp_min(1e-12), x0)


@dataclass(frozen=True)
class CW(PGD):
    """PGD on the margin max_{k != y} z_k - z_y (the loss f_6 of Carlini & Wagner 2017), as CLIP papers use it."""

    name: ClassVar[str] = "cw"
    loss: losses.Loss = losses.negative_margin


@dataclass(frozen=True)
class FGSM(PGD):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size eps from the clean image."""

    name: ClassVar[str] = "fgsm"
    fixed: ClassVar[tuple[str, ...]] = ("iterations", "restarts", "step_size", "random_start")
    iterations: int = 1
    step_size: float | None = 1.0
    random_start: bool = False
