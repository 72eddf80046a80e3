"""What goes into the engine and what comes out: images, how they fared, and which radii each has to face."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError

Fill = Literal["least", "multiple", "full", "alone"]  # how passes are filled up: see invariance.py
EpsMode = Literal["ascending", "independent", "nested"]
EPS_MODES: tuple[EpsMode, ...] = ("ascending", "independent", "nested")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Example:
    """One image (C, H, W) in [0,1], its label, and its index in the data set (which seeds its attacks).

    `known` are outcomes of the attack by radius, from an earlier run: those radii are not attacked again.
    """

    index: int
    image: Tensor
    label: int
    known: Mapping[float, LevelOutcome] = field(default_factory=dict)


@dataclass
class LevelOutcome:
    """How an image fared at one radius. `broken_by`: "clean", the attack's name, or None if it is robust.

    `distance` is that of the adversarial image (0 for robust ones), `margin` the smallest z_y - max z_k seen inside
    the ball, `image` the strongest image found if images were asked for.
    """

    eps: float
    robust: bool
    prediction: int
    broken_by: str | None
    distance: float
    margin: float
    image: Tensor | None = None


@dataclass
class ImageOutcome:
    """One image at all radii, in ascending order of the radii."""

    index: int
    label: int
    clean_prediction: int
    clean_margin: float
    levels: list[LevelOutcome]


# Told of each outcome as it is found: the image, its clean prediction, and how it fared at one radius on its own,
# whatever was found at smaller ones. Eps 0 is the clean image.
Note = Callable[[Example, int, LevelOutcome], None]


@dataclass(frozen=True)
class EngineOptions:
    """How to run. Only `seed` and nested `eps_mode` are meant to change outcomes; `precision` and `compile` round
    differently, so an image at the edge may go the other way. `batch_size` None: what fits. `fill`: see invariance.py.
    """

    batch_size: int | None = 64
    seed: int = 0
    eps_mode: EpsMode = "ascending"
    precision: str = "float32"
    compile: bool = False
    keep_images: bool = False
    fill: Fill = "least"

    def __post_init__(self) -> None:
        check_type("batch_size", self.batch_size, int | None, AttackError)
        check_type("seed", self.seed, int, AttackError)
        if self.batch_size is not None and self.batch_size < 1:
            raise AttackError(f"The batch size must be at least 1, not {self.batch_size}.")
        for what, value, known in (("eps mode", self.eps_mode, EPS_MODES), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise AttackError(f"Unknown {what} {value!r}; use one of {', '.join(known)}.")


def schedule(mode: EpsMode, n: int) -> Generator[tuple[int, bool], bool, None]:
    """The radii an image faces: yields (level, full strength?), is sent whether the image was broken there.

    Levels count the radii in ascending order. A level that is not visited has the outcome of a smaller one.
    """
    if mode == "nested":
        survived = False
        for level in reversed(range(n)):
            broken = yield level, not survived
            survived = survived or not broken
        return
    for level in range(n):
        broken = yield level, True
        if broken and mode == "ascending":
            return


@dataclass
class Case:
    """An image that is being attacked: where it stands on its schedule, and what was found so far."""

    example: Example
    clean_prediction: int
    clean_margin: float
    plan: Generator[tuple[int, bool], bool, None]
    level: int = 0
    full: bool = True
    found: dict[int, LevelOutcome] = field(default_factory=dict)

    def advance(self, broken: bool | None) -> bool:
        """Go to the next radius to face, told how the last one went (None at the start); False after the last."""
        try:
            self.level, self.full = next(self.plan) if broken is None else self.plan.send(broken)
        except StopIteration:
            return False
        return True

    def unharmed(self, eps: float, image: Tensor | None) -> LevelOutcome:
        """The outcome of the clean image itself."""
        wrong = self.clean_prediction != self.example.label
        by = "clean" if wrong else None
        return LevelOutcome(eps, not wrong, self.clean_prediction, by, 0.0, self.clean_margin, image)

    def outcome(self, radii: list[float], image: Tensor | None) -> ImageOutcome:
        """All radii: an image broken inside a smaller ball is broken inside a larger one, whatever was found there."""
        levels, carried = [], self.unharmed(0.0, image)
        for level, eps in enumerate(radii):
            own = self.found.get(level)
            if own is not None and (carried.robust or not own.robust):
                carried = own
            levels.append(replace(carried, eps=eps))
        return ImageOutcome(self.example.index, self.example.label, self.clean_prediction, self.clean_margin, levels)


def recall(example: Example, radii: list[float], mode: EpsMode) -> ImageOutcome | None:
    """The outcome of an image at these radii from what is known of it, 0 included; None if that is too little."""
    clean = example.known.get(0.0)
    if clean is None:
        return None
    case, broken = Case(example, clean.prediction, clean.margin, schedule(mode, len(radii))), None
    while clean.robust and case.advance(broken):
        own = example.known.get(radii[case.level])
        if own is None:
            return None
        case.found[case.level], broken = own, not own.robust
    return case.outcome(radii, None)
