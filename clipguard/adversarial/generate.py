"""Runs one attack at one radius on one data set or on image files, and keeps the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipguard.adversarial.image_files import ImageFiles
from clipguard.adversarial.result import PREDICTED, AdversarialImage, AdversarialResult, Opinion, rounded
from clipguard.attacks.engine.batching import CPU_BATCH
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.evaluator import Evaluator, require_finite
from clipguard.attacks.engine.outcome import ImageOutcome
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.batch_fill import settle_fill
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import Cell
from clipguard.benchmark.results.sample_rows import attack_rows, clean_row, cost_table
from clipguard.benchmark.runner import provenance
from clipguard.benchmark.task import Task, engine_options, open_task, read_task
from clipguard.core.device import choose_device
from clipguard.core.errors import AttackError
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.core.samples import sample_frame
from clipguard.models import parse_source
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, load_model
from clipguard.sanity.entries import entry, say
from clipguard.sanity.predictions import prediction_findings

log = logging.getLogger("clipguard")


def attack_images(
    plan: BenchPlan, files: ImageFiles | None = None, progress: Progress | None = None
) -> AdversarialResult:
    """Attack the data set of a plan, or `files`, with its model, attack and radius: one of each.

    Files without labels are attacked away from the model's own prediction. Raises ClipguardError for anything wrong
    with the plan, the model or the data, before the attack.
    """
    with noticing() as notices:
        return _attack_images(plan, files, progress or Silent(), notices)


def _attack_images(
    plan: BenchPlan, files: ImageFiles | None, progress: Progress, notices: list[Notice]
) -> AdversarialResult:
    plan.check()
    recipe = open_recipe(plan.attacks[0])
    if not recipe.stages:
        raise AttackError(f"--attack {recipe.name} perturbs nothing; name an attack, as in --attack pgd-10.")
    parse_source(plan.models[0])
    device = choose_device(plan.device)
    task = _open_files(plan, files, progress) if files else open_task(plan, plan.datasets[0], progress)
    model = load_model(plan.models[0], device=device, text=plan.text)
    for line in describe_model(model):
        log.info(line)
    if files and not files.labels:
        task = _label_by_prediction(plan, model, task)
    started = time.monotonic()
    run = provenance(plan, {model.info.name: model.info}, [task], [recipe], device)
    run["notices"] = notices
    run["labels"] = "data set" if not files else "given" if files.labels else PREDICTED
    result = attack_task(plan, model, task, recipe, run, progress)
    if run["labels"] != PREDICTED:
        rows = [image.row for image in result.images]
        known = ([row["label"] for row in rows], [row["clean_pred"] for row in rows])
        names = task.dataset.class_names
        run["findings"] = [entry(model.info.name, task.name, prediction_findings(*known, len(names), names))]
        say(run["findings"])
    run |= {"complete": True, "wall_seconds": round(time.monotonic() - started, 3)}
    return result


def _open_files(plan: BenchPlan, files: ImageFiles, progress: Progress) -> Task:
    dataset = files.open(plan.templates, plan.decode, duplicates=plan.duplicate_names)
    return read_task(files.name, dataset, np.arange(len(dataset)), progress)


def _label_by_prediction(plan: BenchPlan, model: LoadedModel, task: Task) -> Task:
    """The same images, labelled by the model."""
    names = task.dataset.class_names
    classifier, preprocess = prepare(plan, model, task.dataset)
    images = [e.image.cpu() for e in task.examples(preprocess, "cpu")]
    shares = list(_softmax(Evaluator(classifier, plan.batch_size or CPU_BATCH), images, model.device))
    labels = [int(share.argmax()) for share in shares]
    for index, (label, share) in enumerate(zip(labels, shares, strict=True)):
        path, confidence = task.dataset.images[index].path, 100 * share[label]
        log.info(
            "%s: no --label, so the model's own prediction is attacked: %s, %.1f %%", path, names[label], confidence
        )
    dataset = replace(task.dataset, labels=np.array(labels, dtype=np.int64))
    return read_task(task.name, dataset, task.indices, Silent())


def attack_task(
    plan: BenchPlan, model: LoadedModel, task: Task, recipe: Recipe, run: dict[str, Any], progress: Progress
) -> AdversarialResult:
    """Attack all images at the plan's first radius, and judge what comes out as a float and as an 8-bit image.

    The costs are added to `run`.
    """
    classifier, preprocess = prepare(plan, model, task.dataset)
    options = engine_options(plan, str(model.device), keep_images=True)
    image = next(task.examples(preprocess, str(model.device))).image
    options, answer = settle_fill(model, classifier, image, options, attacked=True)
    run.setdefault("batch_invariant", {})[model.info.name] = answer
    engine = Engine(classifier, recipe, ThreatModel(plan.norm, plan.quantize), [plan.eps[0].pixels], options)
    progress.start(f"{model.info.name} · {task.name} · {recipe.name}", len(task.indices))
    outcomes = []
    for outcome in engine.run(task.examples(preprocess, str(model.device))):
        outcomes.append(outcome)
        progress.advance(f"{sum(c.forward for c in engine.costs.values()):,} passes")
    outcomes.sort(key=lambda o: o.index)
    base = {"model": model.info.name, "dataset": task.name, "norm": plan.norm}
    run["costs"].append(
        {**base, "attack": recipe.name, "batch_size": engine.evaluator.batch_size, "stages": cost_table(engine.costs)}
    )
    rows = [base | next(attack_rows(o, recipe, plan)) for o in outcomes]
    cells = [Cell.from_samples(sample_frame(r)) for r in ([base | clean_row(o) for o in outcomes], rows)]
    clean = [e.image for e in task.examples(preprocess, "cpu")]  # in the order of the indices, like the outcomes
    images = _judge(engine, outcomes, rows, clean, plan, model.device)
    return AdversarialResult(run, task.dataset.class_names, cells, images)


def _judge(
    engine: Engine,
    outcomes: Sequence[ImageOutcome],
    rows: Sequence[dict[str, Any]],
    clean: list[Tensor],
    plan: BenchPlan,
    device: torch.device,
) -> list[AdversarialImage]:
    """The model's opinion of each image before, after, and after rounding to 8 bits."""
    x_adv = [image for o in outcomes if (image := o.eps_outcomes[0].image) is not None]
    x_png = [rounded(image) for image in x_adv]
    shares = [_softmax(engine.evaluator, images, device) for images in (clean, x_adv, x_png)]
    eps = torch.tensor([plan.eps[0].pixels])
    images, unstable = [], 0
    for row, x0, x, png, before, after, as_png in zip(rows, clean, x_adv, x_png, *shares, strict=True):
        predictions = (row["clean_pred"], row["adv_pred"], int(as_png.argmax()))
        before_after_png = [Opinion(p, float(s[p])) for p, s in zip(predictions, (before, after, as_png), strict=True)]
        inside = bool(engine.threat.contains(png[None], x0[None], eps))
        images.append(AdversarialImage(row, x0, x, inside, *before_after_png))
        unstable += int(before.argmax()) != row["clean_pred"] or int(after.argmax()) != row["adv_pred"]
    if unstable:
        log.warning("%d images are so near the decision that rounding in another batch changes them.", unstable)
    return images


def _softmax(evaluator: Evaluator, images: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """(classes,) shares of each image (3, H, W), which may differ in size."""
    for _, group in groupby(enumerate(images), key=lambda pair: (pair[1].shape, pair[0] // evaluator.batch_size)):
        positions, batch = zip(*group, strict=True)
        logits = evaluator.verify(torch.stack(batch).to(device))
        require_finite(logits, positions.__getitem__, "on a clean or finished image")
        yield from logits.softmax(dim=1).cpu()
