"""How images fare: the clean predictions of a sample, and the attack on a few that stand for the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome, ignore_outcome
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import KnownOutcomes, Task
from clipguard.benchmark.workers.worker import Worker
from clipguard.core.progress import Progress
from clipguard.defenses.attacking.engine import Sizes

CLEAN_IMAGES = 256  # of a data set at most whose clean predictions are asked
LEAST_ROWS = 2  # a pass of a pilot has at least one row for so many of its images


@dataclass
class CleanSample:
    """Clean margins of images in random order, as far as somebody asked.

    Attributes:
        worker: has model and data set.
        task: the images.
        margins: by index, below 0 for those that are wrong.
        predictions: by index.
        seconds: that these took.
    """

    worker: Worker
    task: Task
    seed: int
    margins: dict[int, float] = field(default_factory=dict)
    predictions: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def ask(self, missing: Sequence[int]) -> list[int]:
        """At most `CLEAN_IMAGES` of these images, whose margins are known afterwards."""
        order = np.random.default_rng(self.seed).permutation(self.task.indices)
        wanted = set(missing)
        chosen = [index for index in order.tolist() if index in wanted][:CLEAN_IMAGES]
        if new := sorted(index for index in chosen if index not in self.margins):
            started = time.perf_counter()
            for outcome in self.worker.attack(Recipe("none"), new, {}, ignore_outcome):
                wrong = outcome.clean_prediction != outcome.label
                self.margins[outcome.index] = min(outcome.clean_margin, -1e-9) if wrong else outcome.clean_margin
                self.predictions[outcome.index] = outcome.clean_prediction
            self.seconds += time.perf_counter() - started
        return chosen

    def right(self, index: int) -> bool | None:
        """Whether an image is right when clean; None where nobody asked."""
        return self.margins[index] >= 0 if index in self.margins else None

    @property
    def seconds_an_image(self) -> float:
        """With reading and resizing it."""
        return self.seconds / max(1, len(self.margins))


def pick(indices: Sequence[int], margins: Mapping[int, float], most: int) -> list[int]:
    """At most so many of these images, evenly spread over their clean margins, which go with how hard they are."""
    ordered = sorted(indices, key=lambda index: (margins[index], index))
    n = min(most, len(ordered))
    return sorted(ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n))


@dataclass(frozen=True)
class Pilot:
    """What came of a pilot.

    Attributes:
        indices: of its images.
        costs: passes by attack.
        seconds: that it took.
        survived: at how many eps above 0 the image held that held at most; their attacks run to the end.
        sizes: of a defended model, how large its passes were, by way of attack.
        options: of its engine.
    """

    indices: list[int]
    costs: dict[str, Cost]
    seconds: float
    survived: int
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    options: EngineOptions = field(default_factory=EngineOptions)


def run_pilot(
    worker: Worker,
    plan: BenchPlan,
    recipe: Recipe,
    indices: list[int],
    known: Mapping[int, KnownOutcomes],
    session: StoreSession,
    rows: int,
    progress: Progress,
) -> Pilot:
    """Attack images as a run does, whose results go into the store.

    Args:
        worker: has model and data set.
        plan: of the run.
        recipe: the attack.
        indices: of the images.
        known: what is known of them.
        session: of the store.
        rows: of a pass at most. Where rows are left over, the engine begins later attacks of images that may fall
            before, in vain: so a pilot has as many rows for an image as the run, not a whole batch for few.
        progress: told of every image.
    """
    if not indices:
        return Pilot([], {}, 0.0, 0)
    started = time.perf_counter()
    outcomes: list[ImageOutcome] = []
    worker.limit_batch(rows)

    def note(example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
        session.add(example, clean_prediction, outcome)

    attacking = worker.attack(recipe, indices, known, note)
    options = worker.options
    try:
        for outcome in attacking:
            outcomes.append(outcome)
            progress.advance(f"{attacking.passes:,} passes")
    finally:  # also after Ctrl-C: what was found is kept
        session.flush(attacking.tally().costs)
        worker.limit_batch(plan.batch_size)
    held = max(sum(one.robust and one.eps > 0 for one in outcome.eps_outcomes) for outcome in outcomes)
    tally = attacking.tally()
    return Pilot(indices, dict(tally.costs), time.perf_counter() - started, held, tally.sizes, options)
