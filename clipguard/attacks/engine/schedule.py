"""What is left to do for one image: a unit is one run of one attack at one eps.

An image's units have an order: smaller eps first (for nested eps: the other way round), then the recipe's attacks,
then their runs. What breaks an image is the first unit in that order that can. So units may run side by side when
there is room, and the outcome is that of one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from clipguard.attacks.engine.outcome import Case, EpsOutcome

Unit = tuple[int, int]  # stage, run


@dataclass
class EpsState:
    """One eps of one image."""

    units: list[Unit]
    margin: float  # smallest seen inside the ball, and by which unit
    by: int = -1
    image: Tensor | None = None  # where it was seen, if images are kept
    started: int = 0  # units are started in order
    running: set[int] = field(default_factory=set)
    success: int | None = None  # the first unit known to break the image here
    outcome: EpsOutcome | None = None  # what it found

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
    """An image in the engine: `eps_states` are of those begun, by number; `eps_index` is the one it has to pass next.

    x0 (C, H, W), ranking (classes - 1,): clean image and its other classes by logit, on the model's device.
    """

    x0: Tensor = field(kw_only=True)
    ranking: Tensor = field(kw_only=True)
    eps_states: dict[int, EpsState] = field(default_factory=dict, kw_only=True)

    def wants(self, eps_index: int, unit: int) -> bool:
        """Whether a unit's result still matters."""
        return eps_index in self.eps_states and unit in self.eps_states[eps_index].running

    def drop_after(self, eps_index: int) -> None:
        """Forget what was begun at larger eps_values: what is broken here is broken there."""
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
