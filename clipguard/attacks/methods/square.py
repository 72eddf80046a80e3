"""Square Attack (Andriushchenko et al., ECCV 2020): random search over squares, no gradients."""

from __future__ import annotations

import math
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

P_INIT = 0.8  # share of the pixels that the first square covers
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which p is halved, of 10,000
DRAWS_PER_QUERY = 5  # random numbers: two corners and a transpose; then comes one sign a channel


@lru_cache(maxsize=8)
def side_lengths(queries: int, height: int, width: int, norm: str, device: torch.device | None = None) -> Tensor:
    """(queries,) side of the square at each query: sqrt(p * pixels), p halved on the schedule for 10,000 queries.

    AutoAttack keeps that schedule for its 5,000 queries instead of shrinking it, and so do we.
    """
    sides = []
    for i in range(queries):
        p = P_INIT / 2 ** sum(i > h for h in HALVINGS)
        side = round(math.sqrt(p * height * width))
        if norm == "l2":
            side = max(side, 3)
            side += 1 - side % 2
        sides.append(max(1, min(side, height, width)))
    return torch.tensor(sides, device=device)


@lru_cache(maxsize=64)
def bump(side: int) -> Tensor:
    """(side, side) unit-norm pattern of the l2 attack: a positive and a negative pyramid (paper, figure 3)."""

    def pyramid(height: int, width: int) -> Tensor:
        out = torch.zeros(height, width)
        x, y = height // 2, width // 2
        for k in range(max(x, y) + 1):
            out[max(x - k, 0) : x + k + 1, max(y - k, 0) : y + k + 1] += 1 / (k + 1) ** 2
        return out / l2_norm(out[None])

    half = side // 2
    both = torch.cat([pyramid(half, side), -pyramid(side - half, side)]) if half else torch.ones(1, 1)
    return both / l2_norm(both[None])


@dataclass(frozen=True)
class Square(Attack):
    """Keeps a change of one square if the margin z_y - max z_k falls.

    Differs from the reference on purpose: every image draws its own squares (one position for the whole batch there),
    squares reach the last row and column (never there), images need not be square, and the position is drawn
    before the colours in one fixed-size draw, so that a run can be replayed for one image.

    Attributes:
        queries: after the start, each a forward pass.
        restarts: runs from another random start.
    """

    name: ClassVar[str] = "square"
    summary: ClassVar[str] = "black-box random search, 5000 queries (Andriushchenko et al. 2020)"
    citation: ClassVar[str] = (
        "Andriushchenko et al. Square Attack: a query-efficient black-box adversarial attack via random search. "
        "ECCV 2020. arXiv:1912.00049"
    )
    black_box: ClassVar[bool] = True
    queries: int = 5000
    restarts: int = 1
    loss: losses.Loss = losses.negative_margin

    @property
    def iterations(self) -> int:  # type: ignore[override]
        """Queries after the start."""
        return self.queries

    def wants_gradient(self, state: AttackState) -> Tensor:
        return torch.zeros_like(state["step"], dtype=torch.bool)

    def start(self, state: AttackState, threat: ThreatModel, random: PerImageRandom) -> None:
        x0 = state["x0"]
        channels, width = x0.shape[1], x0.shape[3]
        eps = per_row(state["eps"], x0)
        if threat.norm == "linf":
            stripes = torch.where(random.uniform(channels, 1, width) < 0.5, -1.0, 1.0)
            start = (x0 + eps * stripes).clamp(0, 1)
        else:
            start = (x0 + eps * self._tiles(state, random)).clamp(0, 1)
        state["x"], state["candidate"] = start.clone(), start
        state["margin"] = torch.full_like(state["eps"], torch.inf)
        state["draws"] = random.uniform(self.queries, DRAWS_PER_QUERY + channels)

    def query(self, state: AttackState) -> Tensor:
        return state["candidate"]

    def update(
        self, state: AttackState, threat: ThreatModel, x: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        del logits, grad
        improved = -loss < state["margin"]
        choose(improved, x, state["x"])
        choose(improved, -loss, state["margin"])
        step = state["step"].clamp_max(self.queries - 1)
        sides = side_lengths(self.queries, x.shape[2], x.shape[3], threat.norm, x.device)[step]
        u = state["draws"][torch.arange(state.n, device=x.device), step]
        if threat.norm == "linf":
            state["candidate"] = self._square_linf(state["x"], state["x0"], state["eps"], u, sides)
            return
        candidate = torch.empty_like(x)
        for side in sorted(set(sides.tolist())):
            group = (sides == side).nonzero().squeeze(1)
            members = (state["x"][group], state["x0"][group], state["eps"][group], u[group])
            candidate[group] = self._square_l2(*members, side)
        state["candidate"] = candidate

    @staticmethod
    def _square_linf(x: Tensor, x0: Tensor, eps: Tensor, u: Tensor, sides: Tensor) -> Tensor:
        """+-2 eps in one square, one sign a channel, clipped to the ball: the square becomes +-eps."""
        sign = torch.where(u[:, DRAWS_PER_QUERY:] < 0.5, -1.0, 1.0)[:, :, None, None]
        return torch.where(window(x, u[:, :2], sides), (x0 + per_row(eps, x) * sign).clamp_(0, 1), x)

    @staticmethod
    def _square_l2(x: Tensor, x0: Tensor, eps: Tensor, u: Tensor, side: int) -> Tensor:
        """Moves the l2 norm of a second window, and what is unused, into a bump in the first one."""
        delta = x - x0
        n, channels, height, width = x.shape
        sides = torch.full((n,), side, device=x.device)
        second = window(x, u[:, 2:4], sides)
        squares = delta.square()
        free = (eps.square() - squares.flatten(1).sum(dim=1)).clamp_min_(0)[:, None, None] / channels
        # The places (n, C, side * side) of the first window's pixels: its corner, then down and across.
        place = torch.arange(side, device=x.device)
        inside = (place[:, None] * width + place).flatten()
        at = (corner(u[:, 0], height, sides) * width + corner(u[:, 1], width, sides))[:, None] + inside
        at = at[:, None].expand(-1, channels, -1)
        in_second = (squares * second).sum(dim=(2, 3))[:, :, None]
        in_first_alone = (squares * ~second).flatten(2).gather(2, at).sum(dim=2, keepdim=True)
        sign = torch.where(u[:, DRAWS_PER_QUERY:] < 0.5, -1.0, 1.0)[:, :, None]
        shape = bump(side).to(x)
        pattern = torch.where((u[:, 4] < 0.5)[:, None], shape.flatten(), shape.T.flatten())[:, None] * sign
        new = _unit(pattern + _unit(delta.flatten(2).gather(2, at)))
        new = new * (free + in_second + in_first_alone).sqrt()
        delta = (delta * ~second).flatten(2).scatter_(2, at, new).view_as(x)
        return delta.mul_(per_row(eps / l2_norm(delta).clamp_min(1e-12), x)).add_(x0).clamp_(0, 1)

    @staticmethod
    def _tiles(state: AttackState, random: PerImageRandom) -> Tensor:
        """(B, C, H, W) of unit norm: a five by five grid of bumps."""
        x0 = state["x0"]
        _, channels, height, width = x0.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        sign = torch.where(random.uniform(channels, down, across) < 0.5, -1.0, 1.0)
        flip = random.uniform(1, down, across) < 0.5
        shape = bump(side).to(x0)
        tiles = torch.where(flip[..., None, None], shape, shape.T) * sign[..., None, None]
        grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(len(x0), channels, down * side, across * side)
        out = torch.zeros_like(x0)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        out[:, :, top : top + down * side, left : left + across * side] = grid
        return out / per_row(l2_norm(out), out)


def _unit(x: Tensor) -> Tensor:
    """(n, C, pixels) with unit norm in every channel."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return x / norms.clamp_min(1e-12)


def corner(u: Tensor, length: int, sides: Tensor) -> Tensor:
    """(B,) first row or column of a square, at the fraction u (B,) of the possible ones."""
    return (u * (length - sides + 1)).long()


def window(x: Tensor, u: Tensor, sides: Tensor) -> Tensor:
    """(B, 1, H, W) bool: a square with side `sides` (B,), its corner at the fractions u (B, 2)."""
    height, width = x.shape[2:]
    top, left = corner(u[:, :1], height, sides[:, None]), corner(u[:, 1:], width, sides[:, None])
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows = (row >= top) & (row < top + sides[:, None])
    columns = (column >= left) & (column < left + sides[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
