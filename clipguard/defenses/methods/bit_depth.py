"""Bit depth reduction (Xu, Evans and Qi, NDSS 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from clipguard.defenses.base import Backward, Classifier, Purifier, View
from clipguard.defenses.gradients import smooth_round
from clipguard.defenses.options import between


@dataclass(frozen=True)
class BitDepth(Purifier):
    """Rounds every value to one of 2^bits levels: round(x (2^bits - 1)) / (2^bits - 1) (section III.A).

    The default is theirs for ImageNet. Their detector, which compares the predictions before and after, is not here.
    Others of the name have other levels: 2^bits + 1 of them (Guo et al. 2018), or bits cut off, which darkens the image
    (Athalye et al. 2018).

    Attributes:
        bits: of a value, 1 to 8.
    """

    name: ClassVar[str] = "bit-depth"
    summary: ClassVar[str] = "pixels rounded to fewer bits (Xu et al. 2018)"
    citation: ClassVar[str] = (
        "Xu, Evans and Qi. Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks. NDSS 2018. "
        "arXiv:1704.01155"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("identity", "surrogate")
    bits: int = 5

    def __post_init__(self) -> None:
        between(self, bits=(1, 8))

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return (x * self._largest).round() / self._largest

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        """Smooth rounding."""
        return smooth_round(x * self._largest) / self._largest

    @property
    def _largest(self) -> int:
        return (1 << self.bits) - 1
