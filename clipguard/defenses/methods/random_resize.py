"""Random resizing and padding (Xie et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipguard.defenses.base import Backward, Classifier, Defense, View
from clipguard.defenses.draws import RowDraws
from clipguard.defenses.resampling import linear, nearest, resampled

SIZE, SMALLEST, CANVAS = 299, 310, 331  # theirs
GREY = 0.5


@dataclass(frozen=True)
class RandomResize(Defense):
    """Enlarges an image by a random factor, and puts it at a random place of a grey canvas (section 3).

    They resize from 299 pixels to 310..330, with nearest neighbours, and pad to 331; all of these are scaled to the
    images at hand (at 224: 232..247 and 248). Grey is zero in their [-1,1].

    Decided here: the canvas is resized back by linear interpolation, since CLIP's towers take images of one size alone;
    one draw, where their submission to the challenge adds up 30 and flips half of them.
    """

    name: ClassVar[str] = "random-resize"
    summary: ClassVar[str] = "images resized and padded at random (Xie et al. 2018)"
    citation: ClassVar[str] = (
        "Xie, Wang, Zhang, Ren and Yuille. Mitigating Adversarial Effects Through Randomization. ICLR 2018. "
        "arXiv:1711.01991"
    )
    random: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("unrolled",)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return classifier.logits(self.resized(x, view.draws.rows(x)), view)

    def embed(self, classifier: Classifier, x: Tensor, view: View, *, normalize: bool) -> Tensor:
        return classifier.embed(self.resized(x, view.draws.rows(x)), view, normalize=normalize)

    def resized(self, x: Tensor, draws: RowDraws) -> Tensor:
        """The changed images, differentiable in x: the padding is linear once grey is zero."""
        factor, top, left = draws.uniform(3).unbind(dim=1)
        with torch.autocast(x.device.type, enabled=False):  # a search in half precision is of the classifier alone
            rows, columns = _weights(x.shape[-2], factor, top), _weights(x.shape[-1], factor, left)
            return resampled(x - GREY, rows, columns) + GREY


def _weights(size: int, factor: Tensor, place: Tensor) -> Tensor:
    """(B, size, size): enlarged by a factor, put at a place of the canvas, and the canvas made `size` pixels again.

    Args:
        size: of the image.
        factor: (B,) in [0, 1), from the smallest to the largest.
        place: (B,) in [0, 1), from the first to the last.
    """
    canvas = -(-size * CANVAS // SIZE)
    smallest = size * SMALLEST // SIZE
    length = smallest + (factor * (canvas - smallest)).long()
    start = (place * (canvas - length + 1)).long()
    whole = torch.zeros(1, dtype=torch.long, device=factor.device)
    return linear(whole, whole + canvas, size, canvas) @ nearest(start, length, canvas, size)
