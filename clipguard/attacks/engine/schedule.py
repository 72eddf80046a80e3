"""What is left to do for one image: which eps it faces, and there which units. A unit is one run of one attack.

An image's units have an order: smaller eps first (for nested eps: the other way round), then the recipe's attacks,
then their runs. What breaks an image is the first unit in that order that can. So units may run side by side when
there is room, and the outcome is that of one after the other.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from clipguard.attacks.engine.options import EpsMode
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome

Unit = tuple[int, int]  # stage, run


def schedule(mode: EpsMode, n: int) -> Generator[tuple[int, bool], bool, None]:
    """The eps an image faces: yields (eps index, full strength?), is sent whether the image was broken there.

    - ascending: from the smallest eps up, until the image breaks; it is then broken at larger ones, too.
    - independent: all eps, each on its own.
    - nested: from the largest eps down; once the image survived, smaller ones are only confirmed.

    Indices count the n eps in ascending order. An eps that is not visited has the outcome of a smaller one.
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
    """An image that is being attacked: where it stands on its schedule, and what was found so far.

    Attributes:
        example: the image.
        clean_prediction: the class that it is taken for.
        clean_margin: z_y - max z_k there.
        plan: its `schedule`.
        eps_index: the eps that it has to pass next.
        full: whether it faces the whole recipe there.
        outcomes: at the eps that it has faced, by index.
    """

    example: Example
    clean_prediction: int
    clean_margin: float
    plan: Generator[tuple[int, bool], bool, None]
    eps_index: int = 0
    full: bool = True
    outcomes: dict[int, EpsOutcome] = field(default_factory=dict)

    def advance(self, broken: bool | None) -> bool:
        """Go to the next eps to face, told how the last one went (None at the start); False after the last."""
        try:
            self.eps_index, self.full = next(self.plan) if broken is None else self.plan.send(broken)
        except StopIteration:
            return False
        return True

    def clean_outcome(self, eps: float, image: Tensor | None) -> EpsOutcome:
        """The outcome of the clean image itself."""
        wrong = self.clean_prediction != self.example.label
        by = "clean" if wrong else None
        return EpsOutcome(eps, not wrong, self.clean_prediction, by, 0.0, self.clean_margin, image)

    def outcome(self, eps_values: Sequence[float], image: Tensor | None) -> ImageOutcome:
        """At all eps: an image broken inside a smaller ball is broken inside a larger one, whatever was found there."""
        carried = self.clean_outcome(0.0, image)
        eps_outcomes = []
        for eps_index, eps in enumerate(eps_values):
            here = self.outcomes.get(eps_index)
            if here is not None and (carried.robust or not here.robust):
                carried = here
            eps_outcomes.append(carried if carried.eps == eps else replace(carried, eps=eps))
        return ImageOutcome(
            self.example.index, self.example.label, self.clean_prediction, self.clean_margin, eps_outcomes
        )


def recall(example: Example, eps_values: Sequence[float], mode: EpsMode) -> ImageOutcome | None:
    """The outcome of an image at these eps from what is known of it, 0 included; None if that is too little."""
    clean = example.known.get(0.0)
    if clean is None:
        return None
    case, broken = Case(example, clean.prediction, clean.margin, schedule(mode, len(eps_values))), None
    while clean.robust and case.advance(broken):
        known = example.known.get(eps_values[case.eps_index])
        if known is None:
            return None
        case.outcomes[case.eps_index], broken = known, not known.robust
    return case.outcome(eps_values, None)


@dataclass
class EpsState:
    """How far the units of one image at one eps are.

    Attributes:
        units: all of them, in order.
        margin: the smallest seen inside the ball.
        by: the unit that saw it; -1 for the clean image.
        image: (C, H, W) where it was seen, if images are kept.
        started: how many units were begun; they are in order.
        running: those that go on.
        success: the first unit known to break the image here.
        outcome: what it found.
    """

    units: list[Unit]
    margin: float
    by: int = -1
    image: Tensor | None = None
    started: int = 0
    running: set[int] = field(default_factory=set)
    success: int | None = None
    outcome: EpsOutcome | None = None

    def begin(self) -> int:
        """Start the next unit, and tell its number."""
        self.started += 1
        self.running.add(self.started - 1)
        return self.started - 1

    def succeed(self, unit: int, outcome: EpsOutcome) -> None:
        """A unit broke the image: those after it need not go on, those before it may still be the first."""
        self.success, self.outcome = unit, outcome
        self.running = {u for u in self.running if u < unit}

    def end(self, unit: int, margin: float, image: Tensor | None) -> None:
        """A unit ran to its end without breaking the image."""
        self.running.remove(unit)
        if (margin, unit) < (self.margin, self.by):
            self.margin, self.by, self.image = margin, unit, image

    @property
    def more(self) -> bool:
        """Whether there are units to start."""
        return self.success is None and self.started < len(self.units)

    @property
    def verdict(self) -> bool | None:
        """Broken or not; None while that is not known."""
        if self.running or self.more:
            return None
        return self.success is not None


@dataclass
class Work(Case):
    """A case in the engine, some of whose units run.

    Attributes:
        x0: clean image (C, H, W) on the model's device.
        ranking: (classes - 1,) its other classes by logit, on the model's device.
        eps_states: of those eps that were begun, by index.
    """

    x0: Tensor = field(kw_only=True)
    ranking: Tensor = field(kw_only=True)
    eps_states: dict[int, EpsState] = field(default_factory=dict, kw_only=True)

    def wants(self, eps_index: int, unit: int) -> bool:
        """Whether a unit's result still matters."""
        return eps_index in self.eps_states and unit in self.eps_states[eps_index].running

    def drop_after(self, eps_index: int) -> None:
        """Forget what was begun at larger eps: what is broken here is broken there."""
        for other in [number for number in self.eps_states if number > eps_index]:
            del self.eps_states[other]

    def open_eps(self, faced: Iterable[int]) -> Iterator[int]:
        """The eps at which units can be started now, nearest first, of those it may have to face."""
        for number in faced:
            state = self.eps_states.get(number)
            if state is None or state.more:
                yield number
            if state is not None and state.success is not None:
                return
