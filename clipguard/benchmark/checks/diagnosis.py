"""Examines one model on a few images of one data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.checks.findings import pick_images, with_prompts
from clipguard.benchmark.checks.probing import ProbedImages
from clipguard.benchmark.defended import defense_record
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.task import open_task
from clipguard.benchmark.workers.choice import open_workers
from clipguard.benchmark.workers.worker import Workers
from clipguard.core.errors import AttackError
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.models import parse_source
from clipguard.sanity.checks import CHECKS, Finding, Verdict, worst
from clipguard.sanity.defenses import PASS_CHECKS
from clipguard.sanity.entries import entry, say

SCHEMA = 1
log = logging.getLogger("clipguard")


@dataclass
class Diagnosis:
    """The findings of `clipguard doctor`, and where they came from."""

    run: Mapping[str, object]
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst(self.findings)

    def to_json(self) -> str:
        """Strict JSON: schema, run, verdict, findings."""
        findings = [finding.to_dict() for finding in self.findings]
        content = {"schema": SCHEMA, "run": self.run, "verdict": self.verdict, "findings": findings}
        return json.dumps(content, indent=2, allow_nan=False)


def diagnose(plan: BenchPlan, transfer_from: str | None = None, progress: Progress | None = None) -> Diagnosis:
    """Examine the model of a plan on its data set, with its attack and eps: one of each.

    Args:
        plan: what to examine.
        transfer_from: the name of another model, whose adversarial images are tried on it.
        progress: is told of every check.

    Raises:
        ClipguardError: for anything wrong with the plan, the models or the data.
    """
    with noticing() as notices:
        plan.check()
        recipe = open_recipe(plan.attacks[0])
        if not recipe.stages or plan.eps[0].pixels == 0:
            raise AttackError("The doctor examines an attack: name one that perturbs, and `eps` above 0.")
        both = replace(plan, models=(plan.models[0], *([transfer_from] if transfer_from else [])))
        for name in both.models:
            parse_source(name)
        with open_workers(both, Objects()) as workers:
            return _diagnose(workers, both, recipe, progress or Silent(), notices)


def _diagnose(
    workers: Workers, plan: BenchPlan, recipe: Recipe, progress: Progress, notices: list[Notice]
) -> Diagnosis:
    """Examine the first model of a plan; a second one is that whose adversarial images are tried on it."""
    task = open_task(plan, plan.datasets[0], progress)
    infos = workers.check_models([(task.dataset.class_names, task.dataset.templates)])
    preprocess = workers.take(plan.models[0], task)
    for line in workers.describe():
        log.info(line)
    transfer_from = plan.models[1] if len(plan.models) > 1 else None
    dataset = task.dataset
    index, x = pick_images(task.images.image, preprocess, task.indices, len(task.indices))
    if len(index) < len(task.indices):
        log.warning("Examined on %d of %d images: those of the commonest size.", len(index), len(task.indices))
    record = start_record(plan, infos, [task], [recipe], workers.place)
    if plan.defense is not None:
        record["defense"] = defense_record(plan, len(dataset.class_names))
    name, checks = plan.shown(plan.models[0]), len(CHECKS) + (len(PASS_CHECKS) if plan.defense else 0)
    progress.start(f"{name} · {task.name} · {recipe.name}", checks)
    findings = []
    for finding in workers.examine(recipe, ProbedImages(index, x, dataset.labels[index]), transfer_from):
        if finding.id == "duplicate-classes":
            finding = with_prompts(finding, dataset.templates)
        findings.append(finding)
        progress.advance(finding.id)
    say([entry(name, task.name, findings)])
    record["complete"] = True
    run = {key: value for key, value in record.items() if key not in ("batch_invariant", "costs", "wall_seconds")}
    run |= {"examined": index.tolist(), "transfer_from": transfer_from, "notices": notices}
    return Diagnosis(run, findings)
