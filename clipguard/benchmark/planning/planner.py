"""`clipguard plan`: opens what a run would open, asks the store, makes pilots, and says what the rest would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipguard.attacks.engine.engine import CONFIRMATION
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.checks.probing import PROBED_IMAGES
from clipguard.benchmark.defended import defense_record, recipes_of
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.planning.defended_probes import make_probes, most_probes
from clipguard.benchmark.planning.estimate import Estimate, Span, Work
from clipguard.benchmark.planning.pilot import CleanSample
from clipguard.benchmark.planning.question import Question
from clipguard.benchmark.planning.recipe_work import RecipeWork
from clipguard.benchmark.planning.speed import Speed, Stopwatch
from clipguard.benchmark.runner import open_recipes
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
        recipes = recipes_of(plan, open_recipes(plan, self.objects))
        for name in plan.models:
            self.objects.check_model_name(name)
        for name in plan.transfer_from:
            self.objects.check_model_name(name, "transfer_from")
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
        defense = None
        if plan.defense is not None:
            attacked += len(recipes) > 1  # the worst case of all threats
            defense = defense_record(plan, max(len(task.dataset.class_names) for task in tasks))
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
            defense=defense,
        )

    def _measure(self, name: str, task: Task, recipes: Sequence[Recipe]) -> tuple[Span, Span]:
        """Add the work of one model on one data set; returns passes and seconds of its probes."""
        self.worker.take(name, task)
        sample = CleanSample(self.worker, task, self.plan.seed)
        works = [RecipeWork(self, task, sample, recipe) for recipe in recipes]
        self.work += [one.work(name) for one in works]
        attacked = any(recipe.stages for recipe in recipes) and self.plan.eps[-1].pixels > 0
        if not (self.probes and attacked):
            return Span(0, 0, 0), Span(0, 0, 0)
        if self.plan.defense is not None:
            return self._defended_probes(task, works)
        speed = next((one.speed for one in reversed(works) if one.speed), None)
        most = MOST_PASSES * min(PROBED_IMAGES, len(task.indices))
        # What is stored of all images is stored of the probes, too, if a run has been to its end.
        passes = Span(0, most if any(one.missing for one in works) else 0, most)
        return passes, passes.times(
            max((one for pair in speed.stages.values() for one in pair), default=0.0) if speed else 0.0
        )

    def _defended_probes(self, task: Task, works: Sequence[RecipeWork]) -> tuple[Span, Span]:
        """Passes and seconds of the probes of a defended model. They are made, as pilots are, if there are pilots."""
        if not self.question.pilot:
            passes = most_probes(self.worker, task)
            return passes, passes.times(max(one.seconds_a_pass for one in works))
        self.progress.start(f"probes: {self.plan.shown(self.worker.model.info.name)} · {task.name}", 1)
        cells = [one.cell for one in works if one.cell and one.recipe.stages]
        made = make_probes(self.worker, task, works[0].recipe, self.store, cells)
        self.progress.advance()
        self.spent["passes"] += made.passes
        self.spent["seconds"] += made.seconds
        left = made.left * made.seconds / max(1, made.passes)
        return Span(*[made.left] * 3), Span(*[left] * 3)

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
        self.note_machine()
        return speed

    def note_machine(self) -> None:
        """The batch size and the memory that a worker has come to."""
        self.batch_size = self.worker.options.batch_size
        self.memory = {
            name: max(filter(None, (value, self.memory.get(name))), default=None)
            for name, value in peak_memory(self.worker.device).items()
        }


def _planned_workers(plan: BenchPlan) -> int:
    """How many workers would share the run. Raises ClipguardError for what no run would take, and what has no plan."""
    plan.check()
    if plan.engine == "reference":
        raise ClipguardError("`engine=reference` cannot be planned: its passes are the library's. Leave it out.")
    workers = count_workers(plan)
    if workers is None:
        raise ClipguardError("A plan does not ask a cluster how many workers it has room for; name `workers`, too.")
    return workers
