"""FGSM, PGD and CW: signed (or normalised) gradient steps of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.projected_gradient import ascent_step, default_step_fraction, uniform_in_ball
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel, per_row


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018): x <- P(x + step_size * steepest(grad loss)).

    Every iterate counts, the random start and the last one too.

    Attributes:
        iterations: steps of one run.
        restarts: runs from another random start.
        step_size: a fraction of eps, above 0 and at most 2; None means 2.5 / iterations, at most 1.
        random_start: whether to start uniformly in the ball, not at the clean image.
    """

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = "K projected gradient steps on cross-entropy, random start (Madry et al. 2018)"
    citation: ClassVar[str] = (
        "Madry et al. Towards deep learning models resistant to adversarial attacks. ICLR 2018. arXiv:1706.06083"
    )
    steps_in_name: ClassVar[bool] = True
    memoryless: ClassVar[bool] = True
    iterations: int = 10
    restarts: int = 1
    step_size: float | None = None
    random_start: bool = True
    loss: losses.Loss = losses.cross_entropy

    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        state["x"] = state["x0"]
        if self.random_start:
            state["x"] = threat.project(
                uniform_in_ball(state["x0"], state["eps"], threat, random), state["x0"], state["eps"]
            )

    def query(self, state: AttackState) -> Tensor:
        return state["x"]

    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        del logits, loss
        fraction = default_step_fraction(self.iterations) if self.step_size is None else self.step_size
        step_size = per_row(fraction * state["eps"], x)
        state["x"] = ascent_step(x, grad, step_size, threat, threat.projection(state["x0"], state["eps"]))


@dataclass(frozen=True)
class CW(PGD):
    """PGD on the margin max_{k != y} z_k - z_y (the loss f_6 of Carlini & Wagner 2017), as CLIP papers use it."""

    name: ClassVar[str] = "cw"
    summary: ClassVar[str] = "K projected gradient steps on the margin loss (Carlini & Wagner 2017)"
    citation: ClassVar[str] = (
        "Carlini & Wagner. Towards evaluating the robustness of neural networks. IEEE S&P 2017. arXiv:1608.04644"
    )
    loss: losses.Loss = losses.negative_margin


@dataclass(frozen=True)
class FGSM(PGD):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of size eps from the clean image."""

    name: ClassVar[str] = "fgsm"
    summary: ClassVar[str] = "one signed gradient step (Goodfellow et al. 2015)"
    citation: ClassVar[str] = (
        "Goodfellow et al. Explaining and harnessing adversarial examples. ICLR 2015. arXiv:1412.6572"
    )
    steps_in_name: ClassVar[bool] = False
    fixed: ClassVar[tuple[str, ...]] = ("iterations", "restarts", "step_size", "random_start")
    iterations: int = 1
    step_size: float | None = 1.0
    random_start: bool = False
