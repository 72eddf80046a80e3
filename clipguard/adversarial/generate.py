"""`clipguard attack`: one attack at one eps on one data set or on image files, and the images that come out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipguard.adversarial.image_files import ImageFiles
from clipguard.adversarial.result import PREDICTED, AdversarialImage, AdversarialResult, rounded
from clipguard.attacks.engine.outcome import ignore_outcome
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.defended import defense_record, recipes_of
from clipguard.benchmark.images import Preprocess
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import Cell
from clipguard.benchmark.results.sample_rows import RowNames, attacked_samples, clean_sample, cost_table
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.task import Task, open_task, read_task
from clipguard.benchmark.workers.choice import open_workers
from clipguard.benchmark.workers.worker import Workers
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.core.records.prediction import Prediction
from clipguard.core.records.run import BatchInvariance, CostRecord, FindingsRecord
from clipguard.core.records.samples import Sample, sample_frame
from clipguard.models import parse_source
from clipguard.sanity.entries import entry, say
from clipguard.sanity.predictions import prediction_findings

log = logging.getLogger("clipguard")


def attack_images(
    plan: BenchPlan, files: ImageFiles | None = None, progress: Progress | None = None
) -> AdversarialResult:
    """Attack the data set of a plan, or `files`, with its model, attack and eps: one of each.

    Files without labels are attacked away from the model's own prediction. A defended model is attacked under the
    plan's one threat.

    Raises:
        ClipguardError: for anything wrong with the plan, the model or the data, before the attack.
    """
    progress = progress or Silent()
    with explain_lost_decoders(), noticing() as notices:
        plan.check()
        recipe = open_recipe(plan.attacks[0])
        recipe.check_perturbs()
        (recipe,) = recipes_of(plan, [recipe])
        parse_source(plan.models[0])
        with open_workers(plan, Objects(), keep_images=True) as workers:
            return _attack(workers, plan, files, recipe, progress, notices)


def _attack(
    workers: Workers,
    plan: BenchPlan,
    files: ImageFiles | None,
    recipe: Recipe,
    progress: Progress,
    notices: list[Notice],
) -> AdversarialResult:
    """The attack, once it is clear who computes."""
    task = _open_files(plan, files, progress) if files else open_task(plan, plan.datasets[0], progress)
    infos = workers.check_models([(task.dataset.class_names, task.dataset.templates)])
    model = plan.models[0]
    preprocess = workers.take(model, task)
    for line in workers.describe():
        log.info(line)
    if files and not files.labels:
        task = _label_by_prediction(workers, preprocess, task)
    started = time.monotonic()
    run = start_record(plan, infos, [task], [recipe], workers.place)
    if plan.defense is not None:
        run["defense"] = defense_record(plan, len(task.dataset.class_names))
    run["notices"] = notices
    run["labels"] = "data set" if not files else "given" if files.labels else PREDICTED
    attacked = attack_task(plan, workers, model, task, recipe, progress)
    shown = plan.shown(model)
    run["batch_invariant"] = {shown: attacked.batch_invariance} if attacked.batch_invariance else {}
    run["costs"] = [attacked.cost]
    if run["labels"] != PREDICTED:
        run["findings"] = [_findings(shown, task, attacked.images)]
        say(run["findings"])
    run["complete"], run["wall_seconds"] = True, round(time.monotonic() - started, 3)
    return AdversarialResult(run, task.dataset.class_names, attacked.cells, attacked.images)


def _findings(model: str, task: Task, images: Sequence[AdversarialImage]) -> FindingsRecord:
    """Whether the clean predictions know anything of the labels."""
    labels, predictions = ([image.row[column] for image in images] for column in ("label", "clean_pred"))
    names = task.dataset.class_names
    return entry(model, task.name, prediction_findings(labels, predictions, len(names), names))


def _open_files(plan: BenchPlan, files: ImageFiles, progress: Progress) -> Task:
    dataset = files.open(plan.templates, plan.decode, duplicates=plan.duplicate_names)
    return read_task(plan, files.name, dataset, np.arange(len(dataset)), progress)


def _label_by_prediction(workers: Workers, preprocess: Preprocess, task: Task) -> Task:
    """The same images, labelled by the model."""
    names = task.dataset.class_names
    shares = workers.predict([e.image for e in task.examples(preprocess, "cpu")])
    labels = [int(share.argmax()) for share in shares]
    for index, (label, share) in enumerate(zip(labels, shares, strict=True)):
        path, confidence = task.dataset.images[index].path, 100 * share[label]
        log.info(
            "%s: no `label`, so the model's own prediction is attacked: %s, %.1f %%", path, names[label], confidence
        )
    return task.labelled(np.array(labels, dtype=np.int64))


@dataclass(frozen=True)
class AttackedTask:
    """The images of one task under one attack at one eps, and what it took. `cells`: clean, and under attack."""

    images: list[AdversarialImage]
    cells: list[Cell]
    cost: CostRecord
    batch_invariance: BatchInvariance | None


def attack_task(
    plan: BenchPlan, workers: Workers, model: str, task: Task, recipe: Recipe, progress: Progress
) -> AttackedTask:
    """Attack all images at the plan's first eps, and judge what comes out as a float and as an 8-bit image."""
    preprocess = workers.take(model, task)
    model = plan.shown(model)
    progress.start(f"{model} · {task.name} · {recipe.name}", len(task.indices))
    attacking = workers.attack(recipe, task.indices.tolist(), {}, ignore_outcome)
    outcomes = []
    for outcome in attacking:
        outcomes.append(outcome)
        progress.advance(f"{attacking.passes:,} passes")
    outcomes.sort(key=lambda o: o.index)
    names: RowNames = {"model": model, "dataset": task.name, "norm": plan.norm}
    tally = attacking.tally()
    cost: CostRecord = {
        "model": model,
        "dataset": task.name,
        "norm": plan.norm,
        "attack": recipe.name,
        "batch_size": tally.batch_size,
        "stages": cost_table(tally.costs),
    }
    rows = [next(attacked_samples(names, recipe.name, outcome, plan.eps)) for outcome in outcomes]
    clean_rows = [clean_sample(names, outcome) for outcome in outcomes]
    cells = [Cell.from_samples(sample_frame(cell)) for cell in (clean_rows, rows)]
    clean = [example.image for example in task.examples(preprocess, "cpu")]  # by index, like the outcomes
    x_adv = [strongest for o in outcomes if (strongest := o.eps_outcomes[0].image) is not None]
    images = _judge(workers, plan, rows, clean, x_adv, task.dataset.class_names)
    return AttackedTask(images, cells, cost, tally.batch_invariance)


def _judge(
    workers: Workers,
    plan: BenchPlan,
    rows: Sequence[Sample],
    clean: Sequence[Tensor],
    x_adv: Sequence[Tensor],
    class_names: Sequence[str],
) -> list[AdversarialImage]:
    """What the model says of each image before, after, and after rounding to 8 bits."""
    threat, eps = ThreatModel(plan.norm, plan.quantize), torch.tensor([plan.eps[0].pixels])
    x_png = [rounded(image) for image in x_adv]
    softmax = [workers.predict(images, clean) for images in (clean, x_adv, x_png)]
    images, unstable = [], 0
    for row, x0, x, png, before, after, as_png in zip(rows, clean, x_adv, x_png, *softmax, strict=True):
        label = row["label"]
        image = AdversarialImage(
            row,
            x0,
            x,
            before=_prediction(row["clean_pred"], before, label, class_names),
            after=_prediction(row["adv_pred"], after, label, class_names),
            png=_prediction(int(as_png.argmax()), as_png, label, class_names),
            png_in_ball=bool(threat.contains(png[None], x0[None], eps)),
        )
        images.append(image)
        unstable += int(before.argmax()) != row["clean_pred"] or int(after.argmax()) != row["adv_pred"]
    if unstable:
        log.warning("%d images are so near the decision that rounding in another batch changes them.", unstable)
    return images


def _prediction(number: int, softmax: Tensor, label: int, class_names: Sequence[str]) -> Prediction:
    return Prediction(class_names[number], float(softmax[number]), number == label)
