"""`clipguard bench`: check everything once, then measure every model on every data set, recipe by recipe."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.checks.findings import defense_findings, run_findings
from clipguard.benchmark.checks.probing import Prober, switched_off
from clipguard.benchmark.checks.prompts import warn_of_prompts
from clipguard.benchmark.defended import defense_record, recipes_of, worst_case
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.sample_rows import RowNames, attacked_samples, clean_sample, cost_table
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.shard import Shard
from clipguard.benchmark.stored.recall import Recalled, recall_outcomes
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task, open_task
from clipguard.benchmark.workers.choice import open_workers
from clipguard.benchmark.workers.worker import Tally, Workers
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.errors import AttackError
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
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
        shard: compute this part of every cell into the store and make no result of it; None: all.
        result: the cells that are finished, at any moment, so that they survive an interruption; None until everything
            has been checked.
    """

    plan: BenchPlan
    progress: Progress = field(default_factory=Silent)
    store: Store | None = None
    probes: bool = True
    objects: Objects = field(default_factory=Objects)
    shard: Shard | None = None
    result: BenchResult | None = field(default=None, init=False)

    def execute(self) -> BenchResult:
        """Run the plan to its end.

        Raises:
            ClipguardError: for anything wrong with the plan, the models or the data, before the first attack.
        """
        plan = self.plan
        with explain_lost_decoders(), noticing() as notices:
            plan.check()
            recipes = recipes_of(plan, open_recipes(plan, self.objects))
            for name in plan.models:
                self.objects.check_model_name(name)
            for name in plan.transfer_from:
                self.objects.check_model_name(name, "transfer_from")
            with open_workers(plan, self.objects) as workers:
                return self._run(workers, recipes, notices)

    def _run(self, workers: Workers, recipes: Sequence[Recipe], notices: list[Notice]) -> BenchResult:
        """The run, once it is clear who computes."""
        plan = self.plan
        tasks = [open_task(plan, name, self.progress, self.objects, self.shard) for name in plan.datasets]
        tasks = [task for task in tasks if len(task.indices)]  # a shard may have none of few
        infos = workers.check_models([(task.dataset.class_names, task.dataset.templates) for task in tasks])
        _say_what_is_left_out(plan, tasks, self.shard)
        if plan.part is None and self.shard is None and plan.prompts is None:  # prompts take the place of templates
            warn_of_prompts(infos.values(), {task.name: task.dataset.templates for task in tasks})
        started = time.monotonic()
        record = start_record(plan, infos, tasks, recipes, workers.place)
        record["notices"], record["probes"] = notices, self.probes
        if self.objects.names():
            record["in_memory"] = self.objects.names()
        if plan.defense is not None:
            record["defense"] = defense_record(plan, max(len(task.dataset.class_names) for task in tasks))
        self.result = BenchResult(record)
        for name in plan.models:
            for number, task in enumerate(tasks):
                model_on_task = _ModelOnTask(self, self.result, workers, name, task)
                for line in workers.describe() if number == 0 else []:
                    log.info(line)
                model_on_task.measure(recipes)
                record["wall_seconds"] = round(time.monotonic() - started, 3)
        record["complete"] = True
        return self.result


def open_recipes(plan: BenchPlan, objects: Objects) -> list[Recipe]:
    """The attacks of a plan. Raises AttackError for what is none, and for two of one name."""
    recipes = [objects.recipe(name) for name in plan.attacks]
    if plan.eps_mode == "nested":  # outcomes at smaller eps are not what the attack alone would give: never unlabelled
        recipes = [replace(recipe, name=f"{recipe.name} [nested]") for recipe in recipes]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise AttackError("`attacks`: two recipes have the same name; give one of the files another name.")
    return recipes


def _say_what_is_left_out(plan: BenchPlan, tasks: Sequence[Task], shard: Shard | None) -> None:
    for task in tasks if plan.part is None and shard is None else []:
        n, of = len(task.indices), len(task.dataset)
        if n < of:
            log.info("%s: %s of %s images, `n_samples=all` for the rest", task.name, f"{n:,}", f"{of:,}")


class _ModelOnTask:
    """One model on the images of one data set: its cells, recipe by recipe, then the sanity checks of them all."""

    def __init__(self, run: BenchRun, result: BenchResult, workers: Workers, model: str, task: Task) -> None:
        self.run, self.plan, self.result, self.workers, self.task = run, run.plan, result, workers, task
        self.preprocess = workers.take(model, task)
        self.names: RowNames = {"model": self.plan.shown(model), "dataset": task.name, "norm": self.plan.norm}
        self.attacked_cells: list[str] = []  # of the store, by name

    def measure(self, recipes: Sequence[Recipe]) -> None:
        """Add the cells of all recipes to the result, with what they cost, and the findings."""
        for number, recipe in enumerate(recipes):
            outcomes = self._run_recipe(recipe)
            if self.run.shard:
                continue
            if number == 0:
                self.result.add(clean_sample(self.names, outcome) for outcome in outcomes)
            if recipe.stages:
                eps = self.plan.eps
                self.result.add(s for o in outcomes for s in attacked_samples(self.names, recipe.name, o, eps))
            log.info("%s on %s: %d images done", recipe.name, self.task.name, len(outcomes))
        if self.plan.defense is not None and len(recipes) > 1 and not self.run.shard:
            samples = self._samples()
            self.result.add(worst_case(samples[samples["attack"] != "none"]))
        if not self.run.shard:
            self._check(recipes)

    def _run_recipe(self, recipe: Recipe) -> list[ImageOutcome]:
        """Outcomes of all images, in the order of their indices: what the store knows, and the rest attacked now."""
        plan, task, progress = self.plan, self.task, self.run.progress
        cell = self._cell(recipe)
        recalled = recall_outcomes(cell, plan, task, [one.pixels for one in plan.eps] if recipe.stages else [])
        if cell:
            reused = f"{recipe.name} on {task.name}: {recalled.reused:,} of {recalled.asked:,}"
            log.info("%s image results from %s", reused, cell.store.path)
        outcomes, tally = [*recalled.outcomes], Tally()
        done = {outcome.index for outcome in outcomes}
        missing = [index for index in task.indices.tolist() if index not in done]
        session = StoreSession(cell, self.names, recipe.name, task.hashes, plan.eps)
        if missing:
            if cell:
                cell.store.require_writable()
            progress.start(f"{self.names['model']} · {task.name} · {recipe.name}", len(missing))

            def note(example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
                session.add(example, clean_prediction, outcome)
                if session.is_due():
                    session.flush(attacking.tally().costs)

            attacking = self.workers.attack(recipe, missing, recalled.partly, note)
            try:
                for outcome in attacking:
                    outcomes.append(outcome)
                    progress.advance(f"{attacking.passes:,} passes")
            finally:  # also after Ctrl-C: what was found is kept
                tally = attacking.tally()
                session.flush(tally.costs)
        session.merge()
        self._charge(recipe, tally, recalled)
        return sorted(outcomes, key=lambda outcome: outcome.index)

    def _cell(self, recipe: Recipe) -> StoredCell | None:
        """Where the store keeps the outcomes of a recipe; None without a store."""
        if self.run.store is None:
            return None
        cell = self.run.store.cell(self.workers.key(recipe, self.task.indices.tolist()))
        if recipe.stages:
            self.attacked_cells.append(cell.name)
        return cell

    def _charge(self, recipe: Recipe, tally: Tally, recalled: Recalled) -> None:
        if tally.batch_invariance:
            self.result.run["batch_invariant"].setdefault(self.names["model"], tally.batch_invariance)
        self.result.run["costs"].append(
            {
                **self.names,
                "attack": recipe.name,
                "batch_size": tally.batch_size if tally.costs else None,
                "stages": cost_table(tally.costs),
                "reused": recalled.reused,
                "computed": recalled.asked - recalled.reused,
                "stored": recalled.costs,
            }
        )

    def _samples(self) -> pd.DataFrame:
        """The rows of this model on this data set."""
        samples = self.result.samples
        return samples[(samples["model"] == self.names["model"]) & (samples["dataset"] == self.names["dataset"])]

    def _check(self, recipes: Sequence[Recipe]) -> None:
        """The sanity checks of all cells together; those of the predictions are said at once."""
        samples = self._samples()
        prober = Prober(
            self.plan, self.workers.probe, self.task, self.preprocess, samples, self.run.store, self.attacked_cells
        )
        probe = prober if self.run.probes else switched_off
        about = run_findings if self.plan.defense is None else defense_findings
        findings = entry(
            self.names["model"],
            self.names["dataset"],
            about(self.plan, self.task.dataset, recipes, samples, probe),
        )
        if prober.costs or prober.stored:
            self.result.run["costs"].append(prober.cost_record(self.names))
        self.result.run.setdefault("findings", []).append(findings)
        if self.plan.part is None:  # of a part, who asked for it says it of all
            say([findings])
