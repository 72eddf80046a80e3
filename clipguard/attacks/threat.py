"""What the adversary may do: an Lp ball around the clean image, inside [0,1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from clipguard.core.eps import Norm

NORMS: tuple[Norm, ...] = get_args(Norm)
# Slack of the ball check, in pixel units: x0 + eps and x - x0 each round once in float32.
TOLERANCE = 1e-6


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast over `like`'s other dimensions."""
    return values.view(-1, *[1] * (like.ndim - 1))


def choose(rows: Tensor, new: Tensor, old: Tensor) -> None:
    """Write those `rows` (B,) bool of `new` (B, ...) over the ones of `old`."""
    torch.where(per_row(rows, new), new, old, out=old)


def l2_norm(x: Tensor) -> Tensor:
    """(B, ...) -> (B,) Euclidean norms."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms


def largest(x: Tensor) -> Tensor:
    """(B, ...) -> (B,) largest absolute values."""
    flat = x.flatten(1)
    return torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))


@dataclass(frozen=True)
class ThreatModel:
    """What an adversarial image may be. Its eps is not part of it, but differs by row.

    All images are (B, C, H, W) in [0,1] and every `eps` is (B,) in the same pixel units (8/255, not 8).

    Attributes:
        norm: of the ball around the clean image.
        quantize: whether adversarial images must be 8-bit images, all of whose values are k/255.
    """

    norm: Norm = "linf"
    quantize: bool = False

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        """(B,) distances in this norm."""
        return largest(x - x0) if self.norm == "linf" else l2_norm(x - x0)

    def contains(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """(B,) bool: inside the ball (to `TOLERANCE`, relative for l2) and inside [0,1]."""
        slack = TOLERANCE if self.norm == "linf" else TOLERANCE * (1 + eps)
        valid = (x.flatten(1).amin(dim=1) >= 0) & (x.flatten(1).amax(dim=1) <= 1)
        return valid & (self.distance(x, x0) <= eps + slack)

    def project(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """Onto the ball, then onto [0,1] (for l2 the box comes second, which keeps the point in the ball)."""
        return self.projection(x0, eps)(x)

    def projection(self, x0: Tensor, eps: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` with the same balls for several calls."""
        eps = per_row(eps, x0)
        if self.norm == "linf":
            low, high = (x0 - eps).clamp_(min=0), (x0 + eps).clamp_(max=1)
            return lambda x: torch.clamp(x, low, high)

        def onto_l2_ball(x: Tensor) -> Tensor:
            delta = x - x0
            length = per_row(l2_norm(delta), x)
            return delta.mul_((eps / length.clamp_min(1e-12)).clamp_max(1)).add_(x0).clamp_(0, 1)

        return onto_l2_ball

    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit-norm ascent direction: sign for linf, normalised for l2; zero where the gradient is zero."""
        if self.norm == "linf":
            return gradient.sign()
        # Scaled first: the squares of a saturated softmax's gradients would underflow.
        scaled = gradient / per_row(largest(gradient), gradient).clamp_min(1e-38)
        return scaled.div_(per_row(l2_norm(scaled), gradient).clamp_min(1e-12))

    def admissible(self, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """`x` as the model will see it: unchanged, or an 8-bit image (all values k/255) next to it, inside the ball.

        The image is `x0` itself where there is no such image, which cannot happen if `x0` is an 8-bit image.
        """
        if not self.quantize:
            return x
        levels, clean = x * 255, x0 * 255
        # The small slack keeps a value that is an integer but for float rounding where it is.
        down, up = torch.floor(levels + 1e-3), torch.ceil(levels - 1e-3)
        inward, outward = torch.where(levels >= clean, down, up), torch.where(levels >= clean, up, down)
        if self.norm == "linf":
            near = torch.where((levels - inward).abs() < (levels - outward).abs(), inward, outward)
            fits = (near / 255 - x0).abs() <= per_row(eps, x) + TOLERANCE
        else:
            # A perturbation is often smaller than one grey level everywhere, and rounding each value on its own would
            # erase it. So the values nearest to their outward level go there, as many as keep the perturbation's
            # length.
            near = outward
            base, cost = (inward - clean).square(), (outward - clean).square() - (inward - clean).square()
            order = (levels - outward).abs().flatten(1).argsort(dim=1, stable=True)
            spare = (levels - clean).square().flatten(1).sum(dim=1) - base.flatten(1).sum(dim=1)
            spent = cost.flatten(1).gather(1, order).cumsum(dim=1)
            fits = torch.zeros_like(spent).scatter(1, order, (spent <= spare[:, None] + 1e-3).float()).view_as(x) > 0
        # A plain number would be multiplied by as 1/255 on CUDA, which is not what a PNG file reads back as.
        rounded = torch.where(fits, near, inward).clamp_(0, 255).div_(torch.full((), 255.0, device=x.device))
        return torch.where(per_row(self.contains(rounded, x0, eps), x), rounded, x0)
