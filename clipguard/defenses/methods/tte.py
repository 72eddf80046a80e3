"""Test-time ensembling of flips and crops (Perez et al., ICCV workshops 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Backward, Classifier, Defense, View
from clipguard.defenses.copies import outputs_of_copies
from clipguard.defenses.options import at_least

Offset = tuple[int, int]


@dataclass(frozen=True)
class TTE(Defense):
    """The mean of the logits of the image, of crops of it, and of the mirror images of all of these (section 3).

    A crop is the image moved by up to an eighth of its size in each direction, black where nothing is left (4 of 32
    pixels there, 28 of 224). Which way is drawn once, from `seed`: the defence is deterministic.

    Decided here: the crops differ from each other and from the image. In the authors' code all crops use the offset
    drawn last (the functions share the loop's variable), so that its 10 views are 4, and the largest offset is never
    drawn. The blur that the paper tries, too, is left out, as in its best setting.

    Attributes:
        crops: how many.
        flip: whether mirror images take part.
        seed: of the offsets.
    """

    name: ClassVar[str] = "tte"
    summary: ClassVar[str] = "mean over crops and mirror images (Perez et al. 2021)"
    citation: ClassVar[str] = (
        "Perez, Alfarra, Jeanneret, Rueda, Thabet, Ghanem and Arbelaez. Enhancing Adversarial Robustness via Test-time "
        "Transformation Ensembling. ICCV Workshops 2021. arXiv:2107.14110"
    )
    backwards: ClassVar[tuple[Backward, ...]] = ("unrolled",)
    crops: int = 4
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, crops=0, seed=0)

    def check(self, classifier: Classifier) -> None:
        super().check(classifier)
        if classifier.image_size is not None:
            self.offsets(classifier.image_size)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return (1 + self.crops) * (1 + self.flip), 0

    def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        offsets = self.offsets((x.shape[-2], x.shape[-1]))

        def copy(images: Tensor, number: int) -> Tensor:
            moved = _moved(images, offsets[number % len(offsets)])
            return moved.flip(3) if number >= len(offsets) else moved

        copies = (1 + self.flip) * len(offsets)
        outputs = outputs_of_copies(classifier.logits, x, view, copies, copy, least_rows=classifier.least_rows)
        return sum(outputs, torch.zeros(())) / copies

    def offsets(self, size: tuple[int, int]) -> tuple[Offset, ...]:
        """How far the views move down and right, the image itself first. Raises DefenseError for too small images."""
        return _offsets(size, self.crops, self.seed)


@lru_cache(maxsize=64)
def _offsets(size: tuple[int, int], crops: int, seed: int) -> tuple[Offset, ...]:
    down, right = (round(n / 8) for n in size)
    places = [(i, j) for i in range(-down, down + 1) for j in range(-right, right + 1) if (i, j) != (0, 0)]
    if crops > len(places):
        raise DefenseError(
            f"Defence 'tte': images of {size[0]}x{size[1]} pixels have {len(places)} different crops, fewer than "
            f"crops={crops}."
        )
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:crops]
    return ((0, 0), *(places[place] for place in order.tolist()))


def _moved(images: Tensor, offset: Offset) -> Tensor:
    """Down and right, black where nothing is left."""
    down, right = offset
    return F.pad(images, (right, -right, down, -down))
