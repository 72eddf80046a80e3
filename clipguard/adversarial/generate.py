"""`clipguard attack`: one attack at one eps on one data set or on image files, and the images that come out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from clipguard.adversarial.image_files import ImageFiles
from clipguard.adversarial.result import PREDICTED, AdversarialImage, AdversarialResult, rounded
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.attacks.engine.passes.evaluator import Evaluator, require_finite
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.batch_fill import settle_fill
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import Cell
from clipguard.benchmark.results.sample_rows import RowNames, attacked_samples, clean_sample, cost_table
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.task import Task, engine_options, open_task, read_task
from clipguard.core.environment.device import choose_device
from clipguard.core.environment.workers import explain_lost_workers
from clipguard.core.eps import Eps
from clipguard.core.notices import noticing
from clipguard.core.progress import Progress, Silent
from clipguard.core.records.prediction import Prediction
from clipguard.core.records.run import BatchInvariance, CostRecord, FindingsRecord
from clipguard.core.records.samples import Sample, sample_frame
from clipguard.models import parse_source
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, load_model
from clipguard.sanity.entries import entry, say
from clipguard.sanity.predictions import prediction_findings

log = logging.getLogger("clipguard")


def attack_images(
    plan: BenchPlan, files: ImageFiles | None = None, progress: Progress | None = None
) -> AdversarialResult:
    """Attack the data set of a plan, or `files`, with its model, attack and eps: one of each.

    Files without labels are attacked away from the model's own prediction.

    Raises:
        ClipguardError: for anything wrong with the plan, the model or the data, before the attack.
    """
    progress = progress or Silent()
    with explain_lost_workers(), noticing() as notices:
        plan.check()
        recipe = open_recipe(plan.attacks[0])
        recipe.check_perturbs()
        parse_source(plan.models[0])
        device = choose_device(plan.device)
        task = _open_files(plan, files, progress) if files else open_task(plan, plan.datasets[0], progress)
        model = load_model(plan.models[0], device=device, text=plan.text)
        for line in describe_model(model):
            log.info(line)
        if files and not files.labels:
            task = _label_by_prediction(plan, model, task)
        started = time.monotonic()
        run = start_record(plan, {model.info.name: model.info}, [task], [recipe], device)
        run["notices"] = notices
        run["labels"] = "data set" if not files else "given" if files.labels else PREDICTED
        attacked = attack_task(plan, model, task, recipe, progress)
        run["batch_invariant"] = {model.info.name: attacked.batch_invariance}
        run["costs"] = [attacked.cost]
        if run["labels"] != PREDICTED:
            run["findings"] = [_findings(model, task, attacked.images)]
            say(run["findings"])
        run["complete"], run["wall_seconds"] = True, round(time.monotonic() - started, 3)
        return AdversarialResult(run, task.dataset.class_names, attacked.cells, attacked.images)


def _findings(model: LoadedModel, task: Task, images: Sequence[AdversarialImage]) -> FindingsRecord:
    """Whether the clean predictions know anything of the labels."""
    labels, predictions = ([image.row[column] for image in images] for column in ("label", "clean_pred"))
    names = task.dataset.class_names
    return entry(model.info.name, task.name, prediction_findings(labels, predictions, len(names), names))


def _open_files(plan: BenchPlan, files: ImageFiles, progress: Progress) -> Task:
    dataset = files.open(plan.templates, plan.decode, duplicates=plan.duplicate_names)
    return read_task(plan, files.name, dataset, np.arange(len(dataset)), progress)


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
            "%s: no `label`, so the model's own prediction is attacked: %s, %.1f %%", path, names[label], confidence
        )
    return task.labelled(np.array(labels, dtype=np.int64))


@dataclass(frozen=True)
class AttackedTask:
    """The images of one task under one attack at one eps, and what it took. `cells`: clean, and under attack."""

    images: list[AdversarialImage]
    cells: list[Cell]
    cost: CostRecord
    batch_invariance: BatchInvariance


def attack_task(plan: BenchPlan, model: LoadedModel, task: Task, recipe: Recipe, progress: Progress) -> AttackedTask:
    """Attack all images at the plan's first eps, and judge what comes out as a float and as an 8-bit image."""
    device = str(model.device)
    classifier, preprocess = prepare(plan, model, task.dataset)
    image = task.first(preprocess, device)
    options = engine_options(plan, device, keep_images=True)
    options, batch_invariance = settle_fill(model, classifier, image, options, attacked=True)
    engine = Engine(classifier, recipe, ThreatModel(plan.norm, plan.quantize), [plan.eps[0].pixels], options)
    progress.start(f"{model.info.name} · {task.name} · {recipe.name}", len(task.indices))
    outcomes = []
    with closing(task.examples(preprocess, device)) as examples:
        for outcome in engine.run(examples):
            outcomes.append(outcome)
            progress.advance(f"{engine.evaluator.costs.passes:,} passes")
    outcomes.sort(key=lambda o: o.index)
    names: RowNames = {"model": model.info.name, "dataset": task.name, "norm": plan.norm}
    cost: CostRecord = {
        "model": model.info.name,
        "dataset": task.name,
        "norm": plan.norm,
        "attack": recipe.name,
        "batch_size": engine.evaluator.batch_size,
        "stages": cost_table(engine.costs),
    }
    rows = [next(attacked_samples(names, recipe.name, outcome, plan.eps)) for outcome in outcomes]
    clean_rows = [clean_sample(names, outcome) for outcome in outcomes]
    cells = [Cell.from_samples(sample_frame(cell)) for cell in (clean_rows, rows)]
    clean = [example.image for example in task.examples(preprocess, "cpu")]  # by index, like the outcomes
    x_adv = [strongest for o in outcomes if (strongest := o.eps_outcomes[0].image) is not None]
    images = _judge(engine, rows, clean, x_adv, task.dataset.class_names, plan.eps[0], model.device)
    return AttackedTask(images, cells, cost, batch_invariance)


def _judge(
    engine: Engine,
    rows: Sequence[Sample],
    clean: Sequence[Tensor],
    x_adv: Sequence[Tensor],
    class_names: Sequence[str],
    eps: Eps,
    device: torch.device,
) -> list[AdversarialImage]:
    """What the model says of each image before, after, and after rounding to 8 bits."""
    x_png = [rounded(image) for image in x_adv]
    softmax = [_softmax(engine.evaluator, images, device) for images in (clean, x_adv, x_png)]
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
            png_in_ball=bool(engine.threat.contains(png[None], x0[None], torch.tensor([eps.pixels]))),
        )
        images.append(image)
        unstable += int(before.argmax()) != row["clean_pred"] or int(after.argmax()) != row["adv_pred"]
    if unstable:
        log.warning("%d images are so near the decision that rounding in another batch changes them.", unstable)
    return images


def _prediction(number: int, softmax: Tensor, label: int, class_names: Sequence[str]) -> Prediction:
    return Prediction(class_names[number], float(softmax[number]), number == label)


def _softmax(evaluator: Evaluator, images: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """(classes,) shares of each image (3, H, W), which may differ in size."""
    for _, group in groupby(enumerate(images), key=lambda pair: (pair[1].shape, pair[0] // evaluator.batch_size)):
        positions, batch = zip(*group, strict=True)
        logits = evaluator.verify(torch.stack(batch).to(device))
        require_finite(logits, positions.__getitem__, "on a clean or finished image")
        yield from logits.softmax(dim=1).cpu()
