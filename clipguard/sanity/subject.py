"""Who is examined: a model on a few images, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.losses import Loss
from clipguard.attacks.projected_gradient import ascent_step, default_step_fraction, uniform_in_ball
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm


@dataclass
class Subject:
    """A model and the images it is examined on.

    Attributes:
        evaluator: passes through the model.
        x: images (N, C, H, W) in [0,1], all of one shape.
        labels: (N,) class numbers.
        indices: of the images in their data set, N of them; they seed the images' random numbers.
        norm: of the ball.
        eps: whose robustness is in doubt, in pixel units.
        seed: of all random numbers.
        class_names: for the words of findings.
    """

    evaluator: Evaluator
    x: Tensor
    labels: Tensor
    indices: Sequence[int]
    norm: Norm
    eps: float
    seed: int = 0
    class_names: Sequence[str] | None = None

    @property
    def n(self) -> int:
        """How many images."""
        return len(self.x)

    @property
    def threat(self) -> ThreatModel:
        """The ball, of any eps."""
        return ThreatModel(self.norm)

    def eps_tensor(self, eps: float) -> Tensor:
        """(N,) the same eps for all."""
        return torch.full((self.n,), eps, device=self.x.device)

    def noise(self, number: int) -> Tensor:
        """(N, C, H, W) the images with the `number`-th noise of theirs, uniform in the ball."""
        random = PerImageRandom(self.seed, "doctor", self.indices, [number] * self.n, self.x.device)
        eps = self.eps_tensor(self.eps)
        return self.threat.project(uniform_in_ball(self.x, eps, self.threat, random), self.x, eps)

    def gradient(self, x: Tensor, loss: Loss, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (N,) at x and its gradient (N, C, H, W). Raises NoGradientError if there is none."""

        def objective(logits: Tensor, start: int, stop: int) -> Tensor:
            return loss(logits, self.labels[start:stop], targets[start:stop])

        _, values, gradient = self.evaluator.gradient(x, objective)
        return values, gradient

    def only(self, keep: Tensor) -> Subject:
        """The same model on some of the images: those where `keep` (N,) bool says so."""
        indices = [index for index, kept in zip(self.indices, keep.tolist(), strict=True) if kept]
        return replace(self, x=self.x[keep], labels=self.labels[keep], indices=indices)


def ascend(subject: Subject, eps: float, steps: int, loss: Loss = losses.negative_margin) -> tuple[Tensor, Tensor]:
    """Plain gradient ascent from the clean image that never stops.

    Args:
        subject: the model and the images.
        eps: in pixel units.
        steps: how many.
        loss: what each step raises.

    Returns:
        The last images (N, C, H, W), and the losses (steps + 1, N) on the way.
    """
    x, project = subject.x, subject.threat.projection(subject.x, subject.eps_tensor(eps))
    step_size = default_step_fraction(steps) * eps
    values = []
    for _ in range(steps):
        value, gradient = subject.gradient(x, loss, subject.labels)
        values.append(value)
        x = ascent_step(x, gradient, step_size, subject.threat, project)
    values.append(loss(subject.evaluator.verify(x), subject.labels, subject.labels))
    return x, torch.stack(values)
