"""The training attack: projected gradient ascent on a method's own objective, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipguard.attacks.projected_gradient import ascent_step, uniform_in_ball
from clipguard.attacks.threat import ThreatModel


class Noise:
    """Random numbers that depend on each row's key alone, made where they are used: a GPU need not wait for the CPU.

    `PerImageRandom` of the attacks draws on the CPU instead, for numbers that are the same on every device.

    Args:
        keys: one a row.
        device: where the numbers are drawn.
        use: what they are for, such as 0 or 4; no two uses have a number in common.
    """

    def __init__(self, keys: Sequence[int], device: torch.device, use: int = 0) -> None:
        self._use = use
        self._keys, self._device = keys, device
        self._generator = torch.Generator(device)

    def uniform(self, *shape: int) -> Tensor:
        """(rows, *shape) float32 in [0, 1)."""
        return self._rows(shape, Tensor.uniform_, 1)

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape) float32, standard normal."""
        return self._rows(shape, Tensor.normal_, 2)

    def _rows(self, shape: tuple[int, ...], fill: Callable[..., Tensor], stream: int) -> Tensor:
        rows = torch.empty(len(self._keys), *shape, device=self._device)
        for row, key in zip(rows, self._keys, strict=True):
            self._generator.manual_seed(
                key ^ self._use ^ stream
            )  # a stream of its own: direction and distance are independent
            fill(row, generator=self._generator)
        return rows


@dataclass(frozen=True)
class TrainingAttack:
    """PGD (Madry et al. 2018) on pixels in [0,1], before normalisation; returns the last iterate, as the papers do.

    Args:
        threat: norm of the ball.
        eps: in pixels of [0,1].
        steps: how many; each takes a forward and a backward pass.
        step_size: in pixels of [0,1].
        random_start: whether to start uniformly in the ball, not at the clean image.
    """

    threat: ThreatModel
    eps: float
    steps: int
    step_size: float
    random_start: bool

    def __call__(self, objective: Callable[[Tensor], Tensor], x: Tensor, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Attack a batch.

        Args:
            objective: images -> (B,) values to maximise, differentiable in the images and, for speed, in nothing else.
            x: clean images (B, C, H, W) in [0,1].
            keys: of the random starts, one a row.

        Returns:
            Adversarial images (B, C, H, W), and the mean objective at the last point that was evaluated, a scalar.
        """
        project, x_adv = self._projection(x), self.start(x, keys)
        for _ in range(self.steps):
            x_adv = x_adv.detach().requires_grad_()
            with torch.enable_grad():
                values = objective(x_adv)
                (gradient,) = torch.autograd.grad(values.sum(), x_adv)
            with torch.no_grad():
                x_adv = ascent_step(x_adv, gradient, self.step_size, self.threat, project)
        return x_adv.detach(), values.detach().mean()

    def start(self, x: Tensor, keys: Sequence[int]) -> Tensor:
        """(B, C, H, W) where the attack on these images begins; without a random start, the images."""
        if not self.random_start:
            return x
        return self._projection(x)(uniform_in_ball(x, self._eps(x), self.threat, Noise(keys, x.device)))

    def _projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return self.threat.projection(x, self._eps(x))

    def _eps(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.eps, device=x.device)
