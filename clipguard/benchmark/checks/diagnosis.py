"""Examines one model on a few images of one data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.benchmark.checks.findings import pick_images, with_prompts
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.run_record import Place, start_record
from clipguard.benchmark.task import open_task
from clipguard.core.environment.device import choose_device
from clipguard.core.errors import AttackError
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.models import parse_source
from clipguard.models.description import describe_model
from clipguard.models.loading import load_model
from clipguard.sanity.checks import CHECKS, Finding, Verdict, worst
from clipguard.sanity.doctor import examine
from clipguard.sanity.entries import entry, say
from clipguard.sanity.subject import Subject

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
        return _diagnose(plan, transfer_from, progress or Silent(), notices)


def _diagnose(plan: BenchPlan, transfer_from: str | None, progress: Progress, notices: list[Notice]) -> Diagnosis:
    plan.check()
    recipe = open_recipe(plan.attacks[0])
    if not recipe.stages or plan.eps[0].pixels == 0:
        raise AttackError("The doctor examines an attack: name one that perturbs, and `eps` above 0.")
    names = [plan.models[0], *([transfer_from] if transfer_from else [])]
    for name in names:
        parse_source(name)
    device = choose_device(plan.device)
    task = open_task(plan, plan.datasets[0], progress)
    models = [load_model(name, device=device, text=plan.text) for name in names]
    for model in models:
        for line in describe_model(model):
            log.info(line)
    dataset = task.dataset
    classifier, preprocess = prepare(plan, models[0], dataset)
    index, x = pick_images(task.images.image, preprocess, task.indices, len(task.indices))
    if len(index) < len(task.indices):
        log.warning("Examined on %d of %d images: those of the commonest size.", len(index), len(task.indices))
    subject = Subject(
        Evaluator(classifier, plan.batch_size or CPU_BATCH),
        x.to(device),
        torch.from_numpy(dataset.labels[index]).long().to(device),
        index.tolist(),
        plan.norm,
        plan.eps[0].pixels,
        plan.seed,
        dataset.class_names,
    )
    # It resizes inside, so that it takes the images of the other's size.
    other = (
        models[1].classifier(dataset.class_names, dataset.templates, "native", duplicates=plan.duplicate_names)
        if transfer_from
        else None
    )
    record = start_record(
        plan, {model.info.name: model.info for model in models}, [task], [recipe], Place.of(plan, device)
    )
    progress.start(f"{plan.models[0]} · {task.name} · {recipe.name}", len(CHECKS))
    findings = []
    for finding in examine(subject, recipe, other):
        if finding.id == "duplicate-classes":
            finding = with_prompts(finding, dataset.templates)
        findings.append(finding)
        progress.advance(finding.id)
    say([entry(plan.models[0], task.name, findings)])
    record["complete"] = True
    run = {key: value for key, value in record.items() if key not in ("batch_invariant", "costs", "wall_seconds")}
    run |= {"examined": index.tolist(), "transfer_from": transfer_from, "notices": notices}
    return Diagnosis(run, findings)
