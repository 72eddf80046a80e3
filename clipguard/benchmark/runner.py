"""`clipguard bench`: check everything once, then measure every model on every data set, recipe by recipe."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.inputs import explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.batch_fill import settle_fill
from clipguard.benchmark.checks.findings import run_findings
from clipguard.benchmark.checks.probing import Prober, switched_off
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.sample_rows import RowNames, attacked_samples, clean_sample, cost_table
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.stored.cell_key import cell_key
from clipguard.benchmark.stored.recall import Recalled, recall_outcomes
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task, engine_options, open_task
from clipguard.core.environment.device import choose_device
from clipguard.core.environment.workers import explain_lost_workers
from clipguard.core.errors import AttackError
from clipguard.core.notices import noticing
from clipguard.core.progress import Progress, Silent
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, ModelInfo
from clipguard.models.module_model import FORMAT
from clipguard.sanity.entries import entry, say
from clipguard.store.store import Store, StoredCell

log = logging.getLogger("clipguard")


def run_plan(
    plan: BenchPlan,
    progress: Progress | None = None,
    store: Store | None = None,
    *,
    probes: bool = True,
    objects: Objects | None = None,
) -> BenchResult:
    """Run a plan to its end; see `BenchRun`."""
    return BenchRun(plan, progress or Silent(), store, probes=probes, objects=objects or Objects()).execute()


@dataclass
class BenchRun:
    """One run of a plan.

    Attributes:
        plan: what to measure.
        progress: is told of every image.
        store: what it holds is not computed again, and what is computed goes there.
        probes: also make the sanity checks that take passes of their own.
        objects: models, data sets and attacks that names of the plan stand for.
        result: the cells that are finished, at any moment, so that they survive an interruption; None until everything
            has been checked.
    """

    plan: BenchPlan
    progress: Progress = field(default_factory=Silent)
    store: Store | None = None
    probes: bool = True
    objects: Objects = field(default_factory=Objects)
    result: BenchResult | None = field(default=None, init=False)

    def execute(self) -> BenchResult:
        """Run the plan to its end.

        Raises:
            ClipguardError: for anything wrong with the plan, the models or the data, before the first attack.
        """
        plan = self.plan
        with explain_lost_workers(), noticing() as notices:
            plan.check()
            objects = self.objects
            recipes = _open_recipes(plan, objects)
            for name in plan.models:
                objects.check_model_name(name)
            device = choose_device(plan.device)
            tasks = [open_task(plan, name, self.progress, objects) for name in plan.datasets]
            model, infos = _load_and_check(plan, objects, tasks, device)
            _say_what_is_left_out(plan, tasks)
            started = time.monotonic()
            record = start_record(plan, infos, tasks, recipes, device)
            record["notices"], record["probes"] = notices, self.probes
            if objects.names():
                record["in_memory"] = objects.names()
            self.result = BenchResult(record)
            for number, name in enumerate(plan.models):
                if number > 0:  # read a second time: all models at once may not fit in memory
                    model = objects.model(name, plan, device)
                for line in describe_model(model):
                    log.info(line)
                for task in tasks:
                    _ModelOnTask(self, self.result, model, task, device).measure(recipes)
                    record["wall_seconds"] = round(time.monotonic() - started, 3)
            record["complete"] = True
            return self.result


def _open_recipes(plan: BenchPlan, objects: Objects) -> list[Recipe]:
    recipes = [objects.recipe(name) for name in plan.attacks]
    if plan.eps_mode == "nested":  # outcomes at smaller eps are not what the attack alone would give: never unlabelled
        recipes = [replace(recipe, name=f"{recipe.name} [nested]") for recipe in recipes]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise AttackError("`attacks`: two recipes have the same name; give one of the files another name.")
    return recipes


def _load_and_check(
    plan: BenchPlan, objects: Objects, tasks: Sequence[Task], device: str
) -> tuple[LoadedModel, dict[str, ModelInfo]]:
    """The first model on its device, and what all of them are.

    The others are read and let go again, so that a bad name or a prompt that is too long is not found hours into the
    run. Raises ModelError for either.
    """
    first = objects.model(plan.models[0], plan, device)
    infos = {first.info.name: first.info}
    for task in tasks:  # encoded, which is kept for the run
        first.text_features(task.dataset.class_names, task.dataset.templates, duplicates=plan.duplicate_names)
    for name in plan.models[1:]:
        other = objects.model(name, plan)
        infos[other.info.name] = other.info
        for task in tasks:
            other.check_text(task.dataset.class_names, task.dataset.templates, duplicates=plan.duplicate_names)
    return first, infos


def _say_what_is_left_out(plan: BenchPlan, tasks: Sequence[Task]) -> None:
    for task in tasks if plan.part is None else []:
        n, of = len(task.indices), len(task.dataset)
        if n < of:
            log.info("%s: %s of %s images, `n_samples=all` for the rest", task.name, f"{n:,}", f"{of:,}")


class _ModelOnTask:
    """One model on the images of one data set: its cells, recipe by recipe, then the sanity checks of them all."""

    def __init__(self, run: BenchRun, result: BenchResult, model: LoadedModel, task: Task, device: str) -> None:
        self.run, self.plan, self.result = run, run.plan, result
        self.model, self.task, self.device = model, task, device
        self.classifier, self.preprocess = prepare(self.plan, model, task.dataset)
        self.options = engine_options(self.plan, device)
        self.names: RowNames = {"model": model.info.name, "dataset": task.name, "norm": self.plan.norm}
        self.attacked_cells: list[str] = []  # of the store, by name
        if model.info.format == FORMAT:
            self._check_module()

    def measure(self, recipes: Sequence[Recipe]) -> None:
        """Add the cells of all recipes to the result, with what they cost, and the findings."""
        for number, recipe in enumerate(recipes):
            outcomes = self._run_recipe(recipe)
            if number == 0:
                self.result.add([clean_sample(self.names, outcome) for outcome in outcomes])
            if recipe.stages:
                eps = self.plan.eps
                self.result.add([s for o in outcomes for s in attacked_samples(self.names, recipe.name, o, eps)])
            log.info("%s on %s: %d images done", recipe.name, self.task.name, len(outcomes))
        self._check(recipes)

    def _check_module(self) -> None:
        """One pass of a module. Raises AttackError where it fails, or has another number of classes than the data."""
        dataset = self.task.dataset
        pixels = self.task.first(self.preprocess, self.device)[None]
        with torch.no_grad(), explained(self.classifier, pixels):
            logits = self.classifier(pixels)
        if isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[1] != len(dataset.class_names):
            raise AttackError(
                f"{self.names['model']} gives {logits.shape[1]} logits, and {dataset.name} has "
                f"{len(dataset.class_names)} classes; give it data with classes of its own."
            )

    def _run_recipe(self, recipe: Recipe) -> list[ImageOutcome]:
        """Outcomes of all images, in the order of their indices: what the store knows, and the rest attacked now."""
        plan, task, progress = self.plan, self.task, self.run.progress
        eps = [one.pixels for one in plan.eps]
        cell = self._cell(recipe)
        recalled = recall_outcomes(cell, plan, task, eps if recipe.stages else [])
        if cell:
            reused = f"{recipe.name} on {task.name}: {recalled.reused:,} of {recalled.asked:,}"
            log.info("%s image results from %s", reused, cell.store.path)
        done = {outcome.index for outcome in recalled.outcomes}
        missing = len(task.indices) - len(done)
        if missing and plan.engine == "clipguard":
            self._settle_fill(recipe, done)
        session = StoreSession(cell, self.names, recipe.name, task.hashes, plan.eps)

        def note(example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
            session.add(example, clean_prediction, outcome)
            if session.is_due():
                session.flush(engine.costs)

        engine_class = ReferenceEngine if plan.engine == "reference" else Engine
        threat = ThreatModel(plan.norm, plan.quantize)
        engine = engine_class(self.classifier, recipe, threat, eps, self.options, note)
        if missing:
            progress.start(f"{self.model.info.name} · {task.name} · {recipe.name}", missing)
        outcomes = [*recalled.outcomes]
        try:
            with closing(task.examples(self.preprocess, self.device, done, recalled.partly)) as examples:
                for outcome in engine.run(examples):
                    outcomes.append(outcome)
                    progress.advance(f"{engine.evaluator.costs.passes:,} passes")
        finally:  # also after Ctrl-C: what was found is kept
            session.flush(engine.costs)
        session.merge()
        self._charge(recipe, engine.costs, engine.evaluator.batch_size, recalled)
        return sorted(outcomes, key=lambda outcome: outcome.index)

    def _cell(self, recipe: Recipe) -> StoredCell | None:
        """Where the store keeps the outcomes of a recipe; None without a store."""
        if self.run.store is None:
            return None
        task, indices = self.task, self.task.indices.tolist()
        cell = self.run.store.cell(
            cell_key(self.plan, self.model, self.classifier, task.dataset.name, recipe, self.options, indices)
        )
        if recipe.stages:
            self.attacked_cells.append(cell.name)
        return cell

    def _settle_fill(self, recipe: Recipe, done: set[int]) -> None:
        """How passes are filled up from now on, so that an image's bits do not depend on its batch."""
        image = self.task.first(self.preprocess, self.device, done)
        self.options, answer = settle_fill(
            self.model, self.classifier, image, self.options, attacked=bool(recipe.stages)
        )
        self.result.run["batch_invariant"].setdefault(self.model.info.name, answer)

    def _charge(self, recipe: Recipe, costs: dict[str, Cost], batch_size: int, recalled: Recalled) -> None:
        self.result.run["costs"].append(
            {
                **self.names,
                "attack": recipe.name,
                "batch_size": batch_size if costs else None,
                "stages": cost_table(costs),
                "reused": recalled.reused,
                "computed": recalled.asked - recalled.reused,
                "stored": recalled.costs,
            }
        )

    def _check(self, recipes: Sequence[Recipe]) -> None:
        """The sanity checks of all cells together; those of the predictions are said at once."""
        samples = self.result.samples
        samples = samples[(samples["model"] == self.names["model"]) & (samples["dataset"] == self.names["dataset"])]
        prober = Prober(
            self.plan,
            self.classifier,
            self.task,
            self.preprocess,
            self.device,
            samples,
            store=self.run.store,
            cells=self.attacked_cells,
        )
        probe = prober if self.run.probes else switched_off
        findings = entry(
            self.names["model"],
            self.names["dataset"],
            run_findings(self.plan, self.task.dataset, recipes, samples, probe),
        )
        if prober.costs or prober.stored:
            self.result.run["costs"].append(prober.cost_record(self.names))
        self.result.run.setdefault("findings", []).append(findings)
        if self.plan.part is None:  # of a part, who asked for it says it of all
            say([findings])
