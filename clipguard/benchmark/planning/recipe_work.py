"""What one recipe would take on one data set: what the store has, a pilot, and the rest reckoned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.planning.bounds import CLEAN, VERIFICATION, least_passes, most_passes
from clipguard.benchmark.planning.defended import DefendedWork
from clipguard.benchmark.planning.estimate import Reckoned, Span, Work, total_of
from clipguard.benchmark.planning.pilot import LEAST_ROWS, CleanSample, Pilot, pick, run_pilot
from clipguard.benchmark.planning.speed import Speed
from clipguard.benchmark.stored.recall import Recalled, recall_outcomes
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task

if TYPE_CHECKING:
    from clipguard.benchmark.planning.planner import Planner


@dataclass
class RecipeWork:
    """What one recipe would take on one data set.

    Attributes:
        planner: of the run.
        task: images of the data set.
        sample: their clean predictions, as far as somebody asked.
        recipe: the attack.
        missing: images that the store did not know at every eps.
        speed: of an undefended model, where anything is left.
        cell: name of the stored cell of the recipe; "" without a store.
        seconds_a_pass: of a defended model, where anything is left.
    """

    planner: Planner
    task: Task
    sample: CleanSample
    recipe: Recipe
    missing: list[int] = field(default_factory=list)
    speed: Speed | None = None
    cell: str = ""
    seconds_a_pass: float = 0.0

    def work(self, model: str) -> Work:
        """Ask the store, make the pilot, and reckon."""
        planner, task, recipe = self.planner, self.task, self.recipe
        model = planner.plan.shown(model)
        recalled, session = self._recalled(model)
        self.missing = _missing(task, recalled)
        asked = self.sample.ask(self.missing)
        pilot = self._pilot(recalled, session, asked, model)
        if self.planner.store is not None and pilot.indices:
            recalled, _ = self._recalled(model)
        left = _missing(task, recalled)
        self.unknown = {index: self._unknown(recalled, index) for index in left}
        reckoned = (self._reckoned if planner.plan.defense is None else self._defended)(left, asked, pilot)
        return Work(
            model,
            task.name,
            recipe.name,
            images=len(task.indices),
            left=len(left),
            asked=recalled.asked,
            stored=recalled.reused,
            pilot=len(pilot.indices),
            passes=reckoned.passes,
            seconds=reckoned.seconds,
            longest=reckoned.longest,
            stages=reckoned.stages,
        )

    def _reckoned(self, left: Sequence[int], asked: Sequence[int], pilot: Pilot) -> Reckoned:
        """What is left of an undefended model: from what the attacks declare, and how the pilot fared."""
        planner, task, recipe = self.planner, self.task, self.recipe
        n_classes, mode = len(task.dataset.class_names), planner.plan.eps_mode
        least, most = 0, Counter[str]()
        for index in left:
            right, unknown = self.sample.right(index), self.unknown[index]
            least += least_passes(recipe, unknown, mode, right=bool(right))
            most.update(most_passes(recipe, unknown, mode, n_classes, right=right))
        if left:
            self.speed = planner.speed(recipe, task, self.sample, len(left) * max(1, most.total() // len(left)))
        stages = self._expected(left, asked, pilot)
        return Reckoned(
            passes=Span(least, total_of(stages, "forward"), most.total()),
            seconds=self._seconds(least, stages, most),
            longest=self._longest(pilot, n_classes),
            stages=stages or {},
        )

    def _defended(self, left: Sequence[int], asked: Sequence[int], pilot: Pilot) -> Reckoned:
        """What is left of a defended model."""
        if not left:
            return Reckoned(Span(0, 0, 0), Span(0, 0, 0), 0.0, {})
        planner = self.planner
        work = DefendedWork(
            planner.worker, self.task, self.recipe, self.sample, left, self.unknown, pilot, planner.workers
        )
        reckoned = work.reckoned(self._standing(left, asked, pilot))
        self.seconds_a_pass = work.judge.seconds
        planner.note_machine()
        return reckoned

    def _recalled(self, model: str) -> tuple[Recalled, StoreSession]:
        plan, task, recipe, store = self.planner.plan, self.task, self.recipe, self.planner.store
        cell = store.cell(self.planner.worker.key(recipe, task.indices.tolist())) if store else None
        self.cell = cell.name if cell else ""
        session = StoreSession(
            cell, {"model": model, "dataset": task.name, "norm": plan.norm}, recipe.name, task.hashes, plan.eps
        )
        return recall_outcomes(cell, plan, task, [one.pixels for one in plan.eps] if recipe.stages else []), session

    def _unknown(self, recalled: Recalled, index: int) -> int:
        known = recalled.partly.get(index, {})
        return sum(one.pixels > 0 and one.pixels not in known for one in self.planner.plan.eps)

    def _pilot(self, recalled: Recalled, session: StoreSession, asked: Sequence[int], model: str) -> Pilot:
        """On images that are right when clean; what others take is known."""
        planner, plan, recipe = self.planner, self.planner.plan, self.recipe
        right = [index for index in asked if self.sample.right(index)] if recipe.stages else []
        chosen = pick(right, self.sample.margins, planner.question.pilot)
        if not chosen:
            return Pilot([], {}, 0.0, 0)
        self.planner.worker.settle_fill(self.task, attacked=True)
        size = planner.worker.options.batch_size or 1
        standing = len(self.missing) * len(right) / len(asked)
        if plan.defense is not None:  # whose passes have images of one batch alone
            standing = min(standing, planner.workers * size * len(right) / len(asked))
        fewest = len(chosen) if plan.defense is not None else -(-len(chosen) // LEAST_ROWS)
        rows = min(size, max(fewest, round(size * planner.workers * len(chosen) / standing)))
        planner.progress.start(f"pilot: {model} · {self.task.name} · {recipe.name}", len(chosen))
        pilot = run_pilot(planner.worker, plan, recipe, chosen, recalled.partly, session, rows, planner.progress)
        forward = sum(cost.forward for cost in pilot.costs.values())
        for name, value in (("images", len(chosen)), ("passes", forward), ("seconds", pilot.seconds)):
            planner.spent[name] += value
        return pilot

    def _expected(self, left: Sequence[int], asked: Sequence[int], pilot: Pilot) -> dict[str, dict[str, float]] | None:
        """Passes and seconds by attack, if the images that are left fare as those of the pilot; None without one."""
        standing = self._standing(left, asked, pilot)
        if standing is None:
            return None
        if not left or self.speed is None:
            return {}
        eot = self.recipe.eot
        passes: dict[str, tuple[float, float]] = {CLEAN: (eot * len(left), 0.0)}
        for name, cost in pilot.costs.items():
            if name != CLEAN:
                share = standing / len(pilot.indices)
                passes[name] = (share * cost.forward, share * cost.backward)
        return {
            name: {
                "forward": round(forward, 1),
                "backward": round(backward, 1),
                "seconds": round(self._seconds_of(name, forward, backward, pilot), 3),
            }
            for name, (forward, backward) in passes.items()
        }

    def _standing(self, left: Sequence[int], asked: Sequence[int], pilot: Pilot) -> float | None:
        """How many of these images are right when clean; None where no pilot tells how such images fare."""
        right_asked = sum(bool(self.sample.right(index)) for index in asked)
        if self.recipe.stages and right_asked and left and not pilot.indices:
            return None
        unsure = sum(self.sample.right(index) is None for index in left) * right_asked / max(1, len(asked))
        return sum(self.sample.right(index) is True for index in left) + unsure

    def _seconds_of(self, stage: str, forward: float, backward: float, pilot: Pilot) -> float:
        """At the measured speed; of verifications, which are seldom many at once, at the pilot's."""
        assert self.speed is not None
        cost = pilot.costs.get(stage)
        if stage == VERIFICATION and cost and cost.forward:
            return forward * cost.seconds / cost.forward
        return self.speed.seconds(stage, forward, backward)

    def _seconds(self, least: int, stages: dict[str, dict[str, float]] | None, most: Counter[str]) -> Span:
        if self.speed is None:
            return Span(0, total_of(stages, "seconds"), 0)
        at_most = sum(self.speed.at_most(name, n) for name, n in most.items())
        return Span(least * min(self.speed.clean, self.speed.plain), total_of(stages, "seconds"), at_most)

    def _longest(self, pilot: Pilot, n_classes: int) -> float:
        """Seconds of an image that holds at as many eps as the best of the pilot."""
        if self.speed is None or not pilot.indices:
            return 0.0
        mode = self.planner.plan.eps_mode
        passes = most_passes(self.recipe, max(1, pilot.survived), mode, n_classes, right=pilot.survived > 0)
        return sum(self.speed.at_most(name, n) for name, n in passes.items())


def _missing(task: Task, recalled: Recalled) -> list[int]:
    done = {outcome.index for outcome in recalled.outcomes}
    return [index for index in task.indices.tolist() if index not in done]
