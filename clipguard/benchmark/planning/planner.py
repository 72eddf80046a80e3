"""`clipguard plan`: opens what a run would open, asks the store, makes pilots, and says what the rest would take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipguard.attacks.engine.engine import CONFIRMATION
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.checks.probing import PROBED_IMAGES
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.planning.bounds import CLEAN, VERIFICATION, least_passes, most_passes
from clipguard.benchmark.planning.estimate import Estimate, Span, Work
from clipguard.benchmark.planning.pilot import LEAST_ROWS, CleanSample, Pilot, pick, run_pilot
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.planning.speed import Speed, Stopwatch
from clipguard.benchmark.runner import open_recipes
from clipguard.benchmark.stored.recall import Recalled, recall_outcomes
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task, open_task
from clipguard.benchmark.workers.choice import count_workers
from clipguard.benchmark.workers.worker import Worker
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.environment.memory import peak_memory, watch_memory
from clipguard.core.errors import ClipguardError
from clipguard.core.progress import Progress, Silent
from clipguard.core.settings import check_settings
from clipguard.sanity.probes import MOST_PASSES
from clipguard.store.store import Store


def plan_run(
    plan: BenchPlan,
    question: Question,
    progress: Progress | None = None,
    store: Store | None = None,
    *,
    probes: bool = True,
    objects: Objects | None = None,
) -> Estimate:
    """What a run of this plan would take: see `Planner`.

    Raises:
        ClipguardError: for all that a run would refuse, and for what cannot be planned.
    """
    check_settings(question)
    if plan.defense is not None:
        raise ClipguardError("A plan reckons runs of undefended models; leave out `defense`.")
    with explain_lost_decoders():
        return Planner(plan, question, progress or Silent(), store, probes, objects or Objects()).estimate()


@dataclass
class Planner:
    """Plans one run.

    Attributes:
        plan: of the run.
        question: what is asked beside it.
        progress: is told of what is done for the estimate.
        store: of the run; it gets what the pilots find.
        probes: whether the run would make them.
        objects: what names of the plan stand for.
    """

    plan: BenchPlan
    question: Question
    progress: Progress
    store: Store | None
    probes: bool
    objects: Objects
    work: list[Work] = field(default_factory=list)
    memory: dict[str, float | None] = field(default_factory=dict)
    spent: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("images", "passes", "seconds"), 0.0)
    )  # by the pilots
    batch_size: int | None = None
    _speeds: dict[object, tuple[float, float]] = field(default_factory=dict)

    def estimate(self) -> Estimate:
        """Everything, in the order of the run."""
        plan, started = self.plan, time.perf_counter()
        self.workers = _planned_workers(plan)
        recipes = open_recipes(plan, self.objects)
        for name in plan.models:
            self.objects.check_model_name(name)
        self.worker = Worker(plan, self.objects)
        watch_memory(self.worker.device)
        tasks = [open_task(plan, name, self.progress, self.objects) for name in plan.datasets]
        self.worker.check_models([(task.dataset.class_names, task.dataset.templates) for task in tasks])
        setup = time.perf_counter() - started
        probed, probe_seconds = Span(0, 0, 0), Span(0, 0, 0)
        for name in plan.models:
            for task in tasks:
                passes, seconds = self._measure(name, task, recipes)
                probed, probe_seconds = probed + passes, probe_seconds + seconds
        attacked = sum(bool(recipe.stages) for recipe in recipes)
        return Estimate(
            cells=len(plan.models) * len(tasks) * (1 + attacked * len(plan.eps)),
            images=sum(len(task.indices) for task in tasks),
            work=self.work,
            probes=probed,
            probe_seconds=probe_seconds,
            setup_seconds=setup,
            workers=self.workers,
            batch_size=self.batch_size,
            memory=self.memory,
            machine=self.worker.place.machine,
            pilot={name: round(value, 2) for name, value in self.spent.items()},
            price=self.question.price,
        )

    def _measure(self, name: str, task: Task, recipes: Sequence[Recipe]) -> tuple[Span, Span]:
        """Add the work of one model on one data set; returns passes and seconds of its probes."""
        self.worker.take(name, task)
        sample = CleanSample(self.worker, task, self.plan.seed)
        done, speed = 0, None
        for recipe in recipes:
            one = _OneRecipe(self, task, sample, recipe)
            self.work.append(one.work(name))
            done += not one.missing
            speed = one.speed or speed
        attacked = any(recipe.stages for recipe in recipes) and self.plan.eps[-1].pixels > 0
        if not (self.probes and attacked):
            return Span(0, 0, 0), Span(0, 0, 0)
        most = MOST_PASSES * min(PROBED_IMAGES, len(task.indices))
        # What is stored of all images is stored of the probes, too, if a run has been to its end.
        passes = Span(0, 0 if done == len(recipes) else most, most)
        return passes, passes.times(
            max((one for pair in speed.stages.values() for one in pair), default=0.0) if speed else 0.0
        )

    def speed(self, recipe: Recipe, task: Task, sample: CleanSample, rows: int) -> Speed:
        """How fast a recipe goes on images of the clean sample, in passes of so many rows."""
        worker, recipe_stages = self.worker, list(recipe.stages)
        worker.settle_fill(task, bool(recipe.stages))
        self.batch_size = worker.options.batch_size
        rows = min(rows, self.batch_size or rows)
        indices = sorted(sample.predictions)[:rows]
        examples = [
            Example(example.index, example.image, sample.predictions[example.index])
            for example in task.only(np.array(indices)).examples(worker.preprocess, worker.device)
        ]
        threat = ThreatModel(self.plan.norm, self.plan.quantize)
        watch = Stopwatch(worker.classifier, worker.options, threat, examples)
        if self.plan.eps_mode == "nested":
            recipe_stages.append(CONFIRMATION)
        where = (worker.model.info.name, tuple(examples[0].image.shape), rows, recipe.eot)
        if where not in self._speeds:
            self._speeds[where] = (watch.plain(rows),) * 2
        speed = Speed(sample.seconds_an_image, self._speeds[where][0])
        for stage in recipe_stages:
            key = (*where, str(stage.parameters()))
            if key not in self._speeds:
                self._speeds[key] = watch.stage(stage, recipe.eot, rows, speed.plain)
            speed.stages[stage.full_name] = self._speeds[key]
        now = peak_memory(worker.device)
        self.memory = {
            name: max(filter(None, (value, self.memory.get(name))), default=None) for name, value in now.items()
        }
        return speed


@dataclass
class _OneRecipe:
    """What one recipe would take on one data set."""

    planner: Planner
    task: Task
    sample: CleanSample
    recipe: Recipe
    missing: list[int] = field(default_factory=list)
    speed: Speed | None = None

    def work(self, model: str) -> Work:
        """Ask the store, make the pilot, and reckon."""
        planner, task, recipe, plan = self.planner, self.task, self.recipe, self.planner.plan
        recalled, session = self._recalled(model)
        self.missing = _missing(task, recalled)
        asked = self.sample.ask(self.missing)
        pilot = self._pilot(recalled, session, asked, model)
        if self.planner.store is not None and pilot.indices:
            recalled, _ = self._recalled(model)
        left = _missing(task, recalled)
        self.unknown = {index: self._unknown(recalled, index) for index in left}
        n_classes, mode = len(task.dataset.class_names), plan.eps_mode
        least, most = 0, Counter[str]()
        for index in left:
            right, unknown = self.sample.right(index), self.unknown[index]
            least += least_passes(recipe, unknown, mode, right=bool(right))
            most.update(most_passes(recipe, unknown, mode, n_classes, right=right))
        if left:
            self.speed = planner.speed(recipe, task, self.sample, len(left) * max(1, most.total() // len(left)))
        stages = self._expected(left, asked, pilot)
        return Work(
            model,
            task.name,
            recipe.name,
            images=len(task.indices),
            left=len(left),
            asked=recalled.asked,
            stored=recalled.reused,
            pilot=len(pilot.indices),
            passes=Span(least, _sum(stages, "forward"), most.total()),
            seconds=self._seconds(least, stages, most),
            longest=self._longest(pilot, n_classes),
            stages=stages or {},
        )

    def _recalled(self, model: str) -> tuple[Recalled, StoreSession]:
        plan, task, recipe, store = self.planner.plan, self.task, self.recipe, self.planner.store
        cell = store.cell(self.planner.worker.key(recipe, task.indices.tolist())) if store else None
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
        rows = min(size, max(-(-len(chosen) // LEAST_ROWS), round(size * planner.workers * len(chosen) / standing)))
        planner.progress.start(f"pilot: {model} · {self.task.name} · {recipe.name}", len(chosen))
        pilot = run_pilot(planner.worker, plan, recipe, chosen, recalled.partly, session, rows, planner.progress)
        forward = sum(cost.forward for cost in pilot.costs.values())
        for name, value in (("images", len(chosen)), ("passes", forward), ("seconds", pilot.seconds)):
            planner.spent[name] += value
        return pilot

    def _expected(self, left: Sequence[int], asked: Sequence[int], pilot: Pilot) -> dict[str, dict[str, float]] | None:
        """Passes and seconds by attack, if the images that are left fare as those of the pilot; None without one."""
        right_asked = sum(bool(self.sample.right(index)) for index in asked)
        if self.recipe.stages and right_asked and left and not pilot.indices:
            return None
        if not left or self.speed is None:
            return {}
        standing: float = sum(self.sample.right(index) is True for index in left)
        standing += sum(self.sample.right(index) is None for index in left) * right_asked / max(1, len(asked))
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

    def _seconds_of(self, stage: str, forward: float, backward: float, pilot: Pilot) -> float:
        """At the measured speed; of verifications, which are seldom many at once, at the pilot's."""
        assert self.speed is not None
        cost = pilot.costs.get(stage)
        if stage == VERIFICATION and cost and cost.forward:
            return forward * cost.seconds / cost.forward
        return self.speed.seconds(stage, forward, backward)

    def _seconds(self, least: int, stages: dict[str, dict[str, float]] | None, most: Counter[str]) -> Span:
        if self.speed is None:
            return Span(0, _sum(stages, "seconds"), 0)
        at_most = sum(self.speed.at_most(name, n) for name, n in most.items())
        return Span(least * min(self.speed.clean, self.speed.plain), _sum(stages, "seconds"), at_most)

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


def _sum(stages: dict[str, dict[str, float]] | None, name: str) -> float | None:
    return None if stages is None else sum(cost[name] for cost in stages.values())


def _planned_workers(plan: BenchPlan) -> int:
    """How many workers would share the run. Raises ClipguardError for what no run would take, and what has no plan."""
    plan.check()
    if plan.engine == "reference":
        raise ClipguardError("`engine=reference` cannot be planned: its passes are the library's. Leave it out.")
    workers = count_workers(plan)
    if workers is None:
        raise ClipguardError("A plan does not ask a cluster how many workers it has room for; name `workers`, too.")
    return workers
