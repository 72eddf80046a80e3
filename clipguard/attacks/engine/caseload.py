"""The images under attack: which wait, which units of theirs run, and what comes of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, ImageOutcome, Note
from clipguard.attacks.engine.passes.evaluator import CleanPass
from clipguard.attacks.engine.rows import Index
from clipguard.attacks.engine.schedule import EpsState, Unit, Work, schedule
from clipguard.attacks.recipes import Recipe


@dataclass(frozen=True)
class Start:
    """A unit of an image that begins: the image by its number, and where in its work the unit is."""

    number: int
    eps_index: int
    unit: int
    work: Work

    @property
    def stage_and_run(self) -> Unit:
        """Which attack, and which run of it."""
        return self.work.eps_states[self.eps_index].units[self.unit]


class Caseload:
    """Work on images, which are numbered as they come.

    Args:
        recipe: what an image faces at an eps. A confirmation is the stage after its last.
        eps_values: in pixel units, ascending.
        options: of the engine.
        note: is told what is found at each eps as soon as it is.
    """

    def __init__(self, recipe: Recipe, eps_values: Sequence[float], options: EngineOptions, note: Note) -> None:
        self.recipe, self.eps_values, self.options, self.note = recipe, eps_values, options, note
        self.waiting: deque[int] = deque()  # images that are predicted and have an eps to face
        self.done: list[ImageOutcome] = []
        self.stale = False  # whether there may be rows whose result does not matter any more
        self._work: dict[int, Work] = {}
        self._count = 0

    def add(self, clean: CleanPass) -> None:
        """Take in images of one shape whose clean predictions are known; those with an eps to face wait."""
        x, predictions, margins = clean.x, self._sure_predictions(clean), clean.margins
        others = clean.logits.scatter(1, clean.labels[:, None], -torch.inf)
        ranking = others.argsort(dim=1, descending=True, stable=True)[:, :-1]
        for i, example in enumerate(clean.examples):
            number, self._count = self._count, self._count + 1
            plan = schedule(self.options.eps_mode, len(self.eps_values))
            # Copies: a view would keep the whole batch in memory for as long as its last image is attacked.
            x0, ranked = x[i].clone(), ranking[i].clone()
            example = replace(example, image=x0)
            self._work[number] = work = Work(example, predictions[i], margins[i], plan, x0=x0, ranking=ranked)
            self.note(example, predictions[i], work.clean_outcome(0.0, None))
            if predictions[i] != example.label or not self.recipe.stages:
                self._finish(number)
            elif self._next_eps(number, None):
                self.waiting.append(number)

    def _sure_predictions(self, clean: CleanPass) -> list[int]:
        """What clean images are taken for; where that is not wrong with confidence, it is taken to be right."""
        if self.options.confidence == 0:
            return clean.predictions
        columns = zip(clean.examples, clean.predictions, clean.margins, strict=True)
        return [found if margin <= -self.options.confidence else e.label for e, found, margin in columns]

    def begin_waiting(self) -> Start:
        """The first unit of the image that waits longest."""
        number = self.waiting.popleft()
        return self._begin(number, self._work[number].eps_index)

    def begin_ahead(self, room: int) -> list[Start]:
        """Up to so many next units of the images that have begun, in turns."""
        starts: list[Start] = []
        numbers = deque(self._work)
        while numbers and len(starts) < room:
            number = numbers.popleft()
            work = self._work[number]
            eps_index = next(work.open_eps(self._eps_ahead(work)), None)
            if eps_index is not None:
                starts.append(self._begin(number, eps_index))
                numbers.append(number)
        return starts

    def wants(self, number: int, eps_index: int, unit: int) -> bool:
        """Whether a unit's result still matters."""
        return number in self._work and self._work[number].wants(eps_index, unit)

    def wanted(self, units: Index) -> Index:
        """(W,) int64, positions of the units (B, 3) whose result still matters."""
        return np.flatnonzero([self.wants(*unit) for unit in units.tolist()])

    def succeed(self, number: int, eps_index: int, unit: int, outcome: EpsOutcome) -> None:
        """A unit broke its image."""
        work = self._work[number]
        work.eps_states[eps_index].succeed(unit, outcome)
        if self.options.eps_mode == "ascending":
            work.drop_after(eps_index)
        self.stale = True

    def end_units(self, units: Index, margins: Sequence[float], images: Tensor | None) -> list[int]:
        """These units (B, 3) ended without success; returns the numbers of their images.

        Args:
            units: image, eps and unit.
            margins: the smallest that each has seen.
            images: (B, C, H, W) where they saw it, if images are kept.
        """
        ended = []
        for i, (number, eps_index, unit) in enumerate(units.tolist()):
            if self.wants(number, eps_index, unit):
                image = None if images is None else images[i].cpu().clone()
                self._work[number].eps_states[eps_index].end(unit, margins[i], image)
                ended.append(number)
        return ended

    def settle(self, number: int) -> list[Start]:
        """Follow an image some of whose units have ended: the unit that it needs now, if none is under way."""
        work = self._work[number]
        while work.eps_index in work.eps_states and (broken := work.eps_states[work.eps_index].verdict) is not None:
            state, eps = work.eps_states[work.eps_index], self.eps_values[work.eps_index]
            survived = EpsOutcome(eps, True, work.clean_prediction, None, 0.0, state.margin, state.image)
            outcome = state.outcome or survived
            work.outcomes[work.eps_index] = outcome
            self.note(work.example, work.clean_prediction, outcome)
            if not self._next_eps(number, broken):
                return []
        idle = work.eps_index not in work.eps_states or not work.eps_states[work.eps_index].running
        return [self._begin(number, work.eps_index)] if idle else []

    def index(self, number: int) -> int:
        """The image's index in the data set."""
        return self._work[number].example.index

    def _begin(self, number: int, eps_index: int) -> Start:
        """Note the start of an image's next unit at an eps, which is its first there if the eps is new."""
        work = self._work[number]
        if eps_index not in work.eps_states:
            ahead = eps_index != work.eps_index and self.options.eps_mode != "nested"
            units = self._units(len(work.ranking) + 1, full=work.full or ahead)
            work.eps_states[eps_index] = EpsState(
                units, self.options.first_margin(work.clean_margin), image=self._clean_image(work)
            )
        return Start(number, eps_index, work.eps_states[eps_index].begin(), work)

    def _units(self, n_classes: int, *, full: bool) -> list[Unit]:
        """What an image faces at an eps, in order: the recipe, or the confirmation alone."""
        if not full:
            return [(len(self.recipe.stages), 0)]
        return [(s, run) for s, stage in enumerate(self.recipe.stages) for run in range(stage.runs(n_classes))]

    def _eps_ahead(self, work: Work) -> Iterator[int]:
        """The eps that an image may have to face, as far as that can be told."""
        faced = range(work.eps_index, len(self.eps_values))
        if self.options.eps_mode == "nested":  # survivors only confirm all smaller eps
            faced = range(work.eps_index, work.eps_index - 1 if work.full else -1, -1)
        for eps_index in faced:
            known = work.example.known.get(self.eps_values[eps_index])
            if known is None and self.eps_values[eps_index] > 0:  # the clean image is known
                yield eps_index
            elif self.options.eps_mode == "ascending" and known is not None and not known.robust:
                return

    def _next_eps(self, number: int, broken: bool | None) -> bool:
        """Send an image to the next eps of its plan, and tell whether there was one; if not, it is finished."""
        work = self._work[number]
        while work.advance(broken):
            eps = self.eps_values[work.eps_index]
            clean = work.clean_outcome(0.0, self._clean_image(work)) if eps == 0 else None
            known = clean or work.example.known.get(eps)
            if known is None:
                return True
            work.outcomes[work.eps_index], broken = known, not known.robust
        self._finish(number)
        return False

    def _finish(self, number: int) -> None:
        work = self._work.pop(number)
        self.done.append(work.outcome(self.eps_values, self._clean_image(work)))
        self.stale = True

    def _clean_image(self, work: Work) -> Tensor | None:
        return work.example.image.cpu() if self.options.keep_images else None
