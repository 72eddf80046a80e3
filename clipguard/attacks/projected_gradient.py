"""What projected gradient ascent is made of (Madry et al., ICLR 2018): random start, step, and step size."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clipguard.attacks.random import RandomRows
from clipguard.attacks.threat import ThreatModel, l2_norm, per_row


def default_step_fraction(steps: int) -> float:
    """The step size as a fraction of eps where none is named: 2.5 / steps, at most 1 (as in Madry et al. 2018)."""
    return min(1.0, 2.5 / steps)


def ascent_step(
    x: Tensor, gradient: Tensor, step_size: float | Tensor, threat: ThreatModel, project: Callable[[Tensor], Tensor]
) -> Tensor:
    """P(x + step_size * steepest(gradient)).

    Args:
        x: images (B, C, H, W), of which only a new tensor is made.
        gradient: of what is to rise, (B, C, H, W).
        step_size: in pixel units; a tensor that broadcasts over `x`, or one number.
        threat: whose norm says what the steepest direction is.
        project: onto the balls, as `ThreatModel.projection` makes it.
    """
    return project(x + step_size * threat.steepest(gradient))


def uniform_in_ball(x0: Tensor, eps: Tensor, threat: ThreatModel, random: RandomRows) -> Tensor:
    """Clean images (B, C, H, W) plus noise uniform in the balls of eps (B,), which may leave [0,1].

    In l2 that is a uniform direction and a distance from the centre of eps * u^(1/d), in d dimensions.
    """
    shape = tuple(x0.shape[1:])
    row_eps = per_row(eps, x0)
    if threat.norm == "linf":
        return x0 + row_eps * (2 * random.uniform(*shape) - 1)
    direction = random.normal(*shape)
    dimension = x0[0].numel()
    distance = random.uniform(1).squeeze(1) ** (1 / dimension)
    return x0 + row_eps * direction * per_row(distance / l2_norm(direction).clamp_min(1e-12), x0)
