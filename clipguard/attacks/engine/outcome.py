"""What goes into the engine and what comes out: images, how they fared, and which eps each has to face."""

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

    `known` are outcomes of the attack by eps, from an earlier run: those eps are not attacked again.
    """

    index: int
    image: Tensor
    label: int
    known: Mapping[float, EpsOutcome] = field(default_factory=dict)


@dataclass
class EpsOutcome:
    """How an image fared at one eps. `broken_by`: "clean", the attack's name, or None if it is robust.

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
    """One image at all eps_values, in ascending order of the eps_values."""

    index: int
    label: int
    clean_prediction: int
    clean_margin: float
    eps_outcomes: list[EpsOutcome]


# Told of each outcome as it is found: the image, its clean prediction, and how it fared at one eps on its own,
# whatever was found at smaller ones. Eps 0 is the clean image.
Note = Callable[[Example, int, EpsOutcome], None]


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
    """The eps an image faces: yields (eps index, full strength?), is sent whether the image was broken there.

    Indices count the eps in ascending order. An eps that is not visited has the outcome of a smaller one.
    """
    if mode == "nested":
        survived = False
        for eps_index in reversed(range(n)):
            broken = yield eps_index, not survived
            survived = survived or not broken
        return
    for eps_index in range(n):
        broken = yield eps_index, True
        if broken and mode == "ascending":
            return


@dataclass
class Case:
    """An image that is being attacked: where it stands on its schedule, and what was found so far."""

    example: Example
    clean_prediction: int
    clean_margin: float
    plan: Generator[tuple[int, bool], bool, None]
    eps_index: int = 0
    full: bool = True
    found: dict[int, EpsOutcome] = field(default_factory=dict)

    def advance(self, broken: bool | None) -> bool:
        """Go to the next eps to face, told how the last one went (None at the start); False after the last."""
        try:
            self.eps_index, self.full = next(self.plan) if broken is None else self.plan.send(broken)
        except StopIteration:
            return False
        return True

    def unharmed(self, eps: float, image: Tensor | None) -> EpsOutcome:
        """The outcome of the clean image itself."""
        wrong = self.clean_prediction != self.example.label
        by = "clean" if wrong else None
        return EpsOutcome(eps, not wrong, self.clean_prediction, by, 0.0, self.clean_margin, image)

    def outcome(self, eps_values: list[float], image: Tensor | None) -> ImageOutcome:
        """At all eps: an image broken inside a smaller ball is broken inside a larger one, whatever was found there."""
        eps_outcomes, carried = [], self.unharmed(0.0, image)
        for eps_index, eps in enumerate(eps_values):
            own = self.found.get(eps_index)
            if own is not None and (carried.robust or not own.robust):
                carried = own
            eps_outcomes.append(replace(carried, eps=eps))
        return ImageOutcome(
            self.example.index, self.example.label, self.clean_prediction, self.clean_margin, eps_outcomes
        )


def recall(example: Example, eps_values: list[float], mode: EpsMode) -> ImageOutcome | None:
    """The outcome of an image at these eps from what is known of it, 0 included; None if that is too little."""
    clean = example.known.get(0.0)
    if clean is None:
        return None
    case, broken = Case(example, clean.prediction, clean.margin, schedule(mode, len(eps_values))), None
    while clean.robust and case.advance(broken):
        own = example.known.get(eps_values[case.eps_index])
        if own is None:
            return None
        case.found[case.eps_index], broken = own, not own.robust
    return case.outcome(eps_values, None)
