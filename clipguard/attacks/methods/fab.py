"""FAB-T (Croce & Hein, ICML 2020: Minimally distorted adversarial examples with a fast adaptive boundary attack)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.state import AttackState, asking_is_free
from clipguard.attacks.threat import ThreatModel, l2_norm, largest, per_row
from clipguard.core.eps import Norm

ALPHA_MAX = 0.1  # largest pull towards the clean image
OVERSHOOT = 1.05  # eta
NEWTON_STEPS = 50  # enough for any row; three are usual
UNASKED_STEPS = 12  # where asking whether they were enough would make a GPU wait
BACKWARD = 0.9  # beta


def project_on_hyperplane(x: Tensor, w: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """Smallest d with <w, x + d> = <w, x> - offset and x + d in [0,1]; the box corner nearest to it if none exists.

    x, w: (B, D); offset: (B,), the signed amount by which <w, x> must fall. Coordinate i moves by
    min(t g_i, room_i) against the gradient, g = 1 (linf) or |w| (l2), so t solves
    sum_i |w_i| min(t g_i, room_i) = |offset|: concave and piecewise linear in t, and Newton's method from t = 0
    climbs to the solution in finitely many steps. No sorting, unlike the reference (appendix A of the paper).
    """
    # The plane is the same at any scale of (w, offset), and the squares of small gradients would underflow.
    weight = w.abs()
    scale = weight.amax(dim=1).clamp_min(1e-38)
    weight.div_(scale[:, None])
    need = offset.abs() / scale
    down = w.sign().mul_(offset.sign()[:, None])  # against the gradient, or along it where <w, x> must rise
    room = torch.where(down > 0, x, 1 - x)
    gain = weight * room  # the fall of <w, x> where a coordinate uses all of its room
    linf = norm == "linf"
    slopes, limit = (weight, room) if linf else (weight.square(), room / weight.clamp_min(1e-38))
    t = need / slopes.sum(dim=1).clamp_min(1e-38)  # Newton's first step, as if all coordinates had room
    settled = exhausted = gain.sum(dim=1) <= need
    may_ask = asking_is_free(x)
    for _ in range(NEWTON_STEPS if may_ask else UNASKED_STEPS):
        moving = (limit > t[:, None]).to(x.dtype)
        slope = (slopes * moving).sum(dim=1)
        used = (gain * moving.neg_().add_(1)).sum(dim=1)
        following = torch.where(slope > 0, torch.maximum((need - used) / slope.clamp_min(1e-38), t), t)
        # A row that is settled stays, so that its result does not depend on how long the others take. What is missing
        # after a last step of 1e-4 t is of the order of its square.
        previous, t = t, torch.where(settled, t, following)
        settled = settled | (t <= previous * (1 + 1e-4))
        if may_ask and settled.all():
            break
    t = torch.where(exhausted, torch.inf, t)[:, None]
    moved = torch.minimum(t if linf else (t * weight).nan_to_num_(0.0), room)
    return moved.mul_(down).neg_()


@dataclass(frozen=True)
class FABTargeted(Attack):
    """Walks along the decision boundary between the label and a target, always pulled towards the clean image.

    A minimum-norm attack: it succeeds when it passes through the ball on its way. Starts at the clean image (restarts
    after the first, at a random point half way out). One forward pass less an iteration than the reference
    where the last point was not adversarial: the check of the new point and the next gradient are then one pass.

    Attributes:
        iterations: steps of one run.
        restarts: runs from another start.
        targets: classes aimed at, one run for each.
    """

    name: ClassVar[str] = "fab-t"
    summary: ClassVar[str] = "targeted fast adaptive boundary attack, 9 targets (Croce & Hein 2020)"
    citation: ClassVar[str] = (
        "Croce & Hein. Minimally distorted adversarial examples with a fast adaptive boundary attack. ICML 2020. "
        "arXiv:1907.02044"
    )
    iterations: int = 100
    restarts: int = 1
    targets: int = 9
    loss: losses.Loss = losses.target_difference

    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        x0, n = state["x0"], state.n
        state["x"] = x0
        if self.restarts > 1:
            restarted = state["run"] >= max(1, min(self.targets, state["ranking"].shape[1]))
            shape = tuple(x0.shape[1:])
            noise = 2 * random.uniform(*shape) - 1 if threat.norm == "linf" else random.normal(*shape)
            out = noise / per_row(threat.distance(noise, torch.zeros_like(noise)), noise)
            halfway = (x0 + 0.5 * per_row(state["eps"], noise) * out).clamp(0, 1)
            state["x"] = torch.where(per_row(restarted, x0), halfway, x0)
        state["walked"] = torch.zeros_like(state["step"])  # steps taken
        state["settled"] = torch.ones(n, dtype=torch.bool, device=x0.device)  # the next step starts at x
        state["across"] = torch.zeros(n, dtype=torch.bool, device=x0.device)  # what the last check found

    def query(self, state: AttackState) -> Tensor:
        return state["x"]

    def wants_gradient(self, state: AttackState) -> Tensor:
        """A new point is first checked by a forward pass alone if the one before it was across the boundary (this
        one probably is, too, and then its gradient is of no use); else check and gradient are one pass."""
        return (state["settled"] | ~state["across"]) & (state["walked"] < self.iterations)

    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        settled, adversarial = state["settled"], losses.margin(logits, state["label"]) < 0
        step = self.wants_gradient(state) & (settled | ~adversarial)
        # A new point across the boundary but outside the ball (else the engine takes the row) is pulled back.
        back = per_row(~settled & adversarial, x)
        x_next = torch.where(back, torch.lerp(state["x0"], x, BACKWARD), x)
        on = step.nonzero().squeeze(1) if asking_is_free(x) else None
        if on is None or len(on) == state.n:  # a row that takes no step is projected for nothing
            projected = self._towards_boundary(x, state["x0"], loss, grad, threat.norm)
            x_next = torch.where(per_row(step, x), projected, x_next)
        elif len(on):
            x_next[on] = self._towards_boundary(x[on], state["x0"][on], loss[on], grad[on], threat.norm)
        state["x"] = x_next
        state["across"] = torch.where(settled, state["across"], adversarial)
        state["settled"] = ~step
        state["walked"] = state["walked"] + step

    @staticmethod
    def _towards_boundary(x: Tensor, x0: Tensor, loss: Tensor, grad: Tensor, norm: Norm) -> Tensor:
        """One step of the paper's equation 9: the projections of x and x0 on the linearised boundary, mixed."""
        flat, clean, w = x.flatten(1), x0.flatten(1), grad.flatten(1)
        # The boundary is loss = z_t - z_y = 0, linearised at x: loss + <w, p - x> = 0.
        here = project_on_hyperplane(flat, w, loss, norm)
        origin = project_on_hyperplane(clean, w, loss + (w * (clean - flat)).sum(dim=1), norm)
        size = largest if norm == "linf" else l2_norm
        a, b = size(here).clamp_min(1e-8), size(origin).clamp_min(1e-8)
        alpha = (a / (a + b)).clamp_max(ALPHA_MAX)[:, None]
        there = here.mul_(OVERSHOOT).add_(flat)
        return torch.lerp(there, origin.mul_(OVERSHOOT).add_(clean), alpha).clamp_(0, 1).view_as(x)

    def most_passes(self) -> int:
        """Two a step, where each lands across the boundary and is pulled back; the first needs no check before it, and
        the last one a check after it.
        """
        return 2 * self.iterations

    def finished(self, state: AttackState) -> Tensor:
        """All steps taken, and the point the last one led to evaluated."""
        return (state["walked"] >= self.iterations) & state["settled"]
