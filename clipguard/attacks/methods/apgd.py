"""Auto-PGD (Croce & Hein, ICML 2020, algorithm 1), on cross-entropy, DLR and targeted DLR."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel, choose, l2_norm, per_row

MOMENTUM = 0.75  # weight of the gradient step against the last move
RHO = 0.75  # share of increases in a period below which the step is halved


def checkpoints(iterations: int) -> list[int]:
    """Iterations after which a step may be halved: periods of .22 N, shorter by .03 N each time, at least .06 N.

    100 -> [22, 41, 57, 70, 80, 87, 93, 99].
    """
    period = max(int(0.22 * iterations), 1)
    shrink = max(int(0.03 * iterations), 1)
    shortest = max(int(0.06 * iterations), 1)
    steps, at = [], period
    while at <= iterations:
        steps.append(at)
        period = max(period - shrink, shortest)
        at += period
    return steps


@lru_cache(maxsize=64)
def period_ends(iterations: int, device: torch.device | None = None) -> Tensor:
    """(N + 1,) for every step 0 ... N the length of the period that ends there, 0 where none does."""
    ends = torch.zeros(iterations + 1, dtype=torch.int64)
    for start, end in itertools.pairwise([0, *checkpoints(iterations)]):
        ends[end] = end - start
    return ends.to(device)


@dataclass(frozen=True)
class APGD(Attack):
    """Step size starts at 2 eps and is halved, with a return to the best point, when progress stalls.

    As the reference does, the first step of the first period counts as an increase if its loss is positive (its
    memory of losses starts with zeros), and a return to the best point keeps the momentum's last point.
    Unlike the reference, a row ends at its first misclassified iterate instead of running on.

    Attributes:
        iterations: steps of one run.
        restarts: runs from another random start.
        targets: classes aimed at, one run for each; 0 if untargeted.
    """

    name: ClassVar[str] = "apgd-ce"
    summary: ClassVar[str] = "Auto-PGD on cross-entropy, 100 iterations (Croce & Hein 2020)"
    citation: ClassVar[str] = (
        "Croce & Hein. Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free "
        "attacks (AutoAttack). ICML 2020. arXiv:2003.01690"
    )
    iterations: int = 100
    restarts: int = 1
    targets: int = 0
    loss: losses.Loss = losses.cross_entropy

    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        x0, n = state["x0"], state.n
        shape = tuple(x0.shape[1:])
        if threat.norm == "linf":
            noise = 2 * random.uniform(*shape) - 1
            noise = noise / per_row(noise.flatten(1).abs().amax(dim=1), x0)
        else:
            noise = random.normal(*shape)
            noise = noise / per_row(l2_norm(noise), x0)
        x = (x0 + per_row(state["eps"], x0) * noise).clamp(0, 1)
        lowest = torch.full((n,), -torch.inf, dtype=x0.dtype, device=x0.device)
        state.update(
            {
                "x": x,
                "x_previous": x.clone(),
                "x_best": x.clone(),
                "grad_best": torch.zeros_like(x),
                "loss_best": lowest,
                "loss_best_at_checkpoint": lowest.clone(),
                "loss_previous": torch.zeros_like(lowest),
                "increases": torch.zeros_like(lowest),
                "just_halved": torch.ones_like(lowest, dtype=torch.bool),
                "step_size": 2 * state["eps"],
            }
        )

    def query(self, state: AttackState) -> Tensor:
        return state["x"]

    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        del logits
        first = state["step"] == 0
        better = loss > state["loss_best"]
        choose(better, x, state["x_best"])
        choose(better, grad, state["grad_best"])
        choose(better, loss, state["loss_best"])
        state["loss_best_at_checkpoint"] = torch.where(first, loss, state["loss_best_at_checkpoint"])
        state["increases"] = state["increases"] + ((loss > state["loss_previous"]) & ~first)
        state["loss_previous"] = torch.where(first, state["loss_previous"], loss)
        halve = self._halve_at_checkpoint(state)
        choose(halve, state["x_best"], x)
        choose(halve, state["grad_best"], grad)
        project = threat.projection(state["x0"], state["eps"])
        stepped = project(threat.steepest(grad).mul_(per_row(state["step_size"], x)).add_(x))
        keep = per_row(torch.where(first, 1.0, MOMENTUM), x)
        # x + keep (stepped - x) + (1 - keep) (x - x_previous), in place
        moved = stepped.sub_(x).mul_(keep).add_(x).add_((x - state["x_previous"]).mul_(1 - keep))
        state["x"], state["x_previous"] = project(moved), x

    def _halve_at_checkpoint(self, state: AttackState) -> Tensor:
        """(B,) rows whose step is halved now, by either condition of the paper's section 3.1."""
        period = period_ends(self.iterations, state["step"].device)[state["step"]]
        due = period > 0
        stalled = state["increases"] <= RHO * period
        unimproved = ~state["just_halved"] & (state["loss_best_at_checkpoint"] >= state["loss_best"])
        halve = due & (stalled | unimproved)
        state["just_halved"] = torch.where(due, halve, state["just_halved"])
        state["loss_best_at_checkpoint"] = torch.where(due, state["loss_best"], state["loss_best_at_checkpoint"])
        state["increases"] = torch.where(due, 0.0, state["increases"])
        state["step_size"] = torch.where(halve, state["step_size"] / 2, state["step_size"])
        return halve


@dataclass(frozen=True)
class APGDDLR(APGD):
    """APGD on the untargeted DLR loss."""

    name: ClassVar[str] = "apgd-dlr"
    summary: ClassVar[str] = "Auto-PGD on the difference of logits ratio"
    loss: losses.Loss = losses.dlr


@dataclass(frozen=True)
class APGDTargeted(APGD):
    """APGD on the targeted DLR loss, one run for each of the classes ranked 2nd to 10th on the clean image.

    Any misclassification counts as success, not only the target.
    """

    name: ClassVar[str] = "apgd-t"
    summary: ClassVar[str] = "Auto-PGD on the targeted DLR, 9 targets"
    targets: int = 9
    loss: losses.Loss = losses.dlr_targeted
