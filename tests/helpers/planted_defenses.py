"""A classifier of one number, and planted defences around it whose strength is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from clipguard.defenses.base import Backward, Classifier, Defense, Purifier, View


class Brighter(nn.Module):
    """Class 1 where the mean is above one half; no change below the distance of the mean to it can move that."""

    def forward(self, x: Tensor) -> Tensor:
        mean = 40 * (x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-mean, mean], dim=1)


@dataclass(frozen=True)
class Mirror(Purifier):
    """Turns the image around one half: what was made to look bright is dark. The gradient of identity points away."""

    name: ClassVar[str] = "mirror"
    summary: ClassVar[str] = "planted"
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "unrolled")

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return 1 - x

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return 1 - x


@dataclass(frozen=True)
class Noise(Purifier):
    """Adds so much noise to the whole image that some runs go wrong."""

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "planted"
    random: ClassVar[bool] = True
    size: float = 0.02

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return x + self.size * view.draws.rows(x).normal(1, 1, 1)


@dataclass(frozen=True)
class Nothing(Defense):
    """Leaves everything as it is."""

    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "planted"
    backwards: ClassVar[tuple[Backward, ...]] = ("identity",)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return classifier.logits(x, view)
