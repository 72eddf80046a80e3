"""What goes into the engine and what comes out: images, and how they fared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One image to attack.

    Attributes:
        index: of the image in the data set; it seeds the image's attacks.
        image: (C, H, W) in [0,1].
        label: its class number.
        known: outcomes of the attack by eps, from an earlier run: those eps are not attacked again.
    """

    index: int
    image: Tensor
    label: int
    known: Mapping[float, EpsOutcome] = field(default_factory=dict)


@dataclass(slots=True)
class EpsOutcome:
    """How an image fared at one eps.

    Attributes:
        eps: in pixel units.
        robust: whether the model is right on everything that was tried.
        prediction: the class that the adversarial image is taken for; that of the clean image if it is robust.
        broken_by: "clean", the attack's full name, or None if it is robust.
        distance: of the adversarial image from the clean one, in pixel units; 0 for robust ones.
        margin: the smallest z_y - max z_k seen inside the ball.
        image: the strongest image found (C, H, W), if images were asked for.
    """

    eps: float
    robust: bool
    prediction: int
    broken_by: str | None
    distance: float
    margin: float
    image: Tensor | None = None


@dataclass(slots=True)
class ImageOutcome:
    """One image at all eps, in ascending order of eps."""

    index: int
    label: int
    clean_prediction: int
    clean_margin: float
    eps_outcomes: list[EpsOutcome]


# Told of each outcome as it is found: the image, its clean prediction, and how it fared at one eps on its own,
# whatever was found at smaller ones. Eps 0 is the clean image.
Note = Callable[[Example, int, EpsOutcome], None]


def ignore_outcome(example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
    """A `Note` for whoever keeps nothing on the way."""
