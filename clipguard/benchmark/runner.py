"""Runs a plan: loads, checks everything once, then attacks cell by cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL.Image import Image
from torch import Tensor

from clipguard.attacks.engine.engine import Engine, EngineOptions, Example
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.batch_fill import settle_fill
from clipguard.benchmark.findings import entry, find, say
from clipguard.benchmark.plan import BenchPlan, notice_small_eps
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.probing import PROBED, PROBES, Prober, switched_off
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.sample_rows import attack_rows, clean_row, cost_table
from clipguard.benchmark.session import Known, Ledger, cell_key
from clipguard.core.errors import AttackError, DatasetError
from clipguard.core.notices import Notice, noticing
from clipguard.core.provenance import fingerprint, image_hash, machine, versions
from clipguard.data import ZeroShotDataset, load_dataset
from clipguard.data.dataset import in_random_order
from clipguard.data.decoding import PixelCount
from clipguard.models import parse_source
from clipguard.models.loading import LoadedModel, ModelInfo, check_device, load_model
from clipguard.models.text.encoding import tokenize
from clipguard.store.store import Store

log = logging.getLogger("clipguard")


class Progress(Protocol):
    """What a run tells about itself while it runs; the CLI draws it."""

    def start(self, what: str, total: int) -> None:
        """A stretch of work begins."""

    def advance(self, note: str = "") -> None:
        """One more image is done."""


class Silent:
    """No progress."""

    def start(self, what: str, total: int) -> None:
        """Nothing."""

    def advance(self, note: str = "") -> None:
        """Nothing."""


@dataclass(frozen=True)
class Task:
    """A data set and the images of it that are evaluated."""

    name: str
    dataset: ZeroShotDataset
    indices: npt.NDArray[np.int64]
    fingerprint: str
    hashes: dict[int, str]  # of the images, by index
    pixels: dict[str, int]  # how many images decoding changed, by what it did

    def describe(self) -> dict[str, Any]:
        """Its part of the provenance."""
        d = self.dataset
        return {
            "source": d.source,
            "split": d.split,
            "n": len(self.indices),
            "of": len(d),
            "fingerprint": self.fingerprint,
            "class_names": d.class_names,
            "templates": d.templates,
            "pixels": self.pixels,
            "indices": self.indices.tolist(),
        }

    def labels(self) -> dict[int, int]:
        """Class numbers by index."""
        return {index: int(self.dataset.labels[index]) for index in self.indices.tolist()}

    def examples(
        self,
        preprocess: Callable[[Image], Tensor],
        device: str,
        done: Container[int] = (),
        known: Mapping[int, Known] | None = None,
    ) -> Iterator[Example]:
        """The images as the engine wants them, one after the other, but for those that are done."""
        for index in self.indices.tolist():
            if index not in done:
                image = preprocess(self.dataset.image(index)).to(device)
                yield Example(index, image, int(self.dataset.labels[index]), (known or {}).get(index, {}))


def bench(
    plan: BenchPlan,
    result: BenchResult | None = None,
    progress: Progress | None = None,
    store: Store | None = None,
    *,
    probes: bool = True,
) -> BenchResult:
    """Run a plan and return its result.

    A `result` given is filled cell by cell, so that its finished cells survive an interruption. What a `store` holds is
    not computed again, and what is computed goes there. `probes`: also the sanity checks that take passes of their own.
    Raises ClipguardError for anything wrong with the plan, the models or the data, before the first attack.
    """
    with noticing() as notices:
        filled = result if result is not None else BenchResult({})
        return _bench(plan, filled, progress or Silent(), store, probes, notices)


def _bench(
    plan: BenchPlan, result: BenchResult, progress: Progress, store: Store | None, probes: bool, notices: list[Notice]
) -> BenchResult:
    plan.check()
    recipes = [open_recipe(name) for name in plan.attacks]
    if plan.eps_mode == "nested":  # outcomes at smaller eps are not what the attack alone would give: never unlabelled
        recipes = [replace(recipe, name=f"{recipe.name} [nested]") for recipe in recipes]
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise AttackError("--attack: two recipes have the same name; give one of the files another `name`.")
    for name in plan.models:
        parse_source(name)
    device = choose_device(plan.device)
    tasks = [open_task(plan, name, progress) for name in plan.datasets]
    model = load_model(plan.models[0], device=device, text=plan.text)
    # The others are read once now, so that a bad name is not found hours into the run.
    infos = {}
    for number, name in enumerate(plan.models):
        read = model if number == 0 else load_model(name, text=plan.text)
        infos[read.info.name] = read.info
        for task in tasks:
            _check_text(plan, read, task.dataset, encode=number == 0)
    for task in tasks if plan.part is None else []:
        n, of = len(task.indices), len(task.dataset)
        if n < of:
            log.info("%s: %s of %s images, --n-samples all for the rest", task.name, f"{n:,}", f"{of:,}")
    started = time.monotonic()
    result.run.update(provenance(plan, infos, tasks, recipes, device) | {"notices": notices, "probes": probes})
    for number, name in enumerate(plan.models):
        model = model if number == 0 else load_model(name, device=device, text=plan.text)
        for line in describe_model(model):
            log.info(line)
        for task in tasks:
            _run_task(plan, model, task, recipes, device, result, progress, store, probes)
            result.run["wall_seconds"] = round(time.monotonic() - started, 3)
    result.run["complete"] = True
    return result


def _check_text(plan: BenchPlan, model: LoadedModel, dataset: ZeroShotDataset, *, encode: bool) -> None:
    """Raise ModelError for prompts that no model could use. `encode`: keep the text for the run that follows."""
    names, templates = dataset.class_names, dataset.templates
    if encode:
        model.text_features(names, templates, duplicates=plan.duplicate_names)
    else:
        tokenize(model.tokenizer, names, templates, duplicates=plan.duplicate_names)


def provenance(
    plan: BenchPlan, infos: Mapping[str, ModelInfo], tasks: list[Task], recipes: list[Recipe], device: str
) -> dict[str, Any]:
    """`run` in the result files, as a run starts: everything that can change a number."""
    notice_small_eps(plan.eps, plan.norm)
    return {
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": 0.0,
        "versions": versions(),
        "machine": machine(device),
        "plan": plan.to_dict(),
        "seed": plan.seed,
        "norm": plan.norm,
        "eps": [r.typed for r in plan.eps],
        "eps_mode": plan.eps_mode,
        "protocol": {"name": plan.protocol, "overrides": dict(plan.overrides)} if plan.protocol else None,
        "resolution": plan.resolution,
        "resize": plan.resize,
        "decode": plan.decode,
        "logit_scale": plan.logit_scale or "model",
        "class_names": plan.class_names,
        "quantize": plan.quantize,
        "engine": plan.engine,
        "precision": engine_options(plan, device).precision,
        "compile": plan.compile,
        "batch_size": plan.batch_size or "auto",
        "text": plan.text,
        "models": {name: info.to_dict() for name, info in infos.items()},
        "datasets": {task.name: task.describe() for task in tasks},
        "attacks": {r.name: r.parameters() for r in recipes},
        "batch_invariant": {},
        "costs": [],
    }


def describe_model(model: LoadedModel) -> list[str]:
    """What was detected about a model, for the log."""
    i = model.info
    return [
        f"{i.name}: {i.architecture}, {i.activation}, {i.image_size[0]}x{i.image_size[1]} px ({i.interpolation}, "
        f"{i.resize_mode}), {i.image_parameters / 1e6:.1f} M of {i.parameters / 1e6:.1f} M parameters see the image",
        f"{i.name}: weights {i.weights}, sha256 {i.sha256[:16]}…, mean {i.mean}, std {i.std}, "
        f"logit scale {i.logit_scale:.2f}"
        + (f", logit bias {i.logit_bias:.2f}" if i.logit_bias is not None else "")
        + f", text {i.text}",
        *(f"{i.name}: {line}" for line in i.detected),
    ]


def choose_device(name: str) -> str:
    """The device itself; "auto" is CUDA if there is one, else the CPU. Raises ClipguardError if it is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(check_device(name))


def engine_options(plan: BenchPlan, device: str, *, keep_images: bool = False) -> EngineOptions:
    """How the engine runs on this device. Precision "auto": bfloat16 on CUDA that has it, else float32."""
    import torch

    precision = plan.precision
    if precision == "auto":
        ours_on_cuda = device.startswith("cuda") and plan.engine == "clipguard"
        native = ours_on_cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bfloat16" if native else "float32"
    return EngineOptions(plan.batch_size, plan.seed, plan.eps_mode, precision, plan.compile, keep_images)


def open_task(plan: BenchPlan, name: str, progress: Progress) -> Task:
    """Load a data set and choose its images."""
    dataset = load_dataset(
        name,
        split=plan.split,
        image_column=plan.image_column,
        label_column=plan.label_column,
        classes=plan.classes,
        templates=plan.templates,
        class_names=plan.class_names,
        duplicate_names=plan.duplicate_names,
        data_root=plan.data_root,
        decode=plan.decode,
    )
    return read_task(name, dataset, np.sort(choose_images(plan, dataset)), progress)


def choose_images(plan: BenchPlan, dataset: ZeroShotDataset) -> npt.NDArray[np.int64]:
    """Indices of the images to evaluate, in random order. Raises DatasetError if the plan's part has none."""
    order = in_random_order(dataset.subset(plan.n_samples, plan.seed), plan.seed)
    if plan.part is None:
        return order
    if plan.part[0] >= len(order):
        raise DatasetError(
            f"{dataset.name} has {len(order)} images to evaluate, none from {plan.part[0]} on; leave it out."
        )
    return order[slice(*plan.part)]


def read_task(name: str, dataset: ZeroShotDataset, indices: npt.NDArray[np.int64], progress: Progress) -> Task:
    """Read each image once: a corrupt one is found here, not in hour three."""
    progress.start(f"reading {name}", len(indices))
    rows, pixels = [], PixelCount()
    for index in indices.tolist():
        decoded = dataset.read(index)
        pixels.add(decoded)
        rows.append((index, int(dataset.labels[index]), image_hash(decoded.image)))
        progress.advance()
    pixels.say(name)
    hashes = {row[0]: row[2] for row in rows}
    return Task(name, dataset, indices, fingerprint(dataset.class_names, rows), hashes, pixels.to_dict())


def _run_task(
    plan: BenchPlan,
    model: LoadedModel,
    task: Task,
    recipes: list[Recipe],
    device: str,
    result: BenchResult,
    progress: Progress,
    store: Store | None,
    probes: bool,
) -> None:
    """All cells of one model on one data set."""
    classifier, preprocess = prepare(plan, model, task.dataset)
    options = engine_options(plan, device)
    threat = ThreatModel(plan.norm, plan.quantize)
    attacked: list[str] = []  # names of cells in the store
    for number, recipe in enumerate(recipes):
        base = {"model": model.info.name, "dataset": task.name, "norm": plan.norm}
        radii = [r.pixels for r in plan.eps]
        cell = None
        if store:
            key = cell_key(plan, model, classifier, task.dataset.name, recipe, options, task.indices.tolist())
            cell = store.cell(key)
            attacked += [cell.name] if recipe.stages else []
        ledger = Ledger(cell, plan, base | {"attack": recipe.name}, task.hashes)
        outcomes, known = ledger.recall(task.labels(), radii if recipe.stages else [])
        stored_costs = ledger.stored_costs()
        if store:
            what = f"{recipe.name} on {task.name}: {ledger.reused:,} of {ledger.of:,}"
            log.info("%s image results from %s", what, store.path)
        done = {outcome.index for outcome in outcomes}
        if len(done) < len(task.indices) and plan.engine == "clipguard":
            image = next(task.examples(preprocess, device, done)).image
            options, answer = settle_fill(model, classifier, image, options, attacked=bool(recipe.stages))
            result.run["batch_invariant"].setdefault(model.info.name, answer)
        engine_class = ReferenceEngine if plan.engine == "reference" else Engine
        engine = engine_class(classifier, recipe, threat, radii, options, ledger.note)
        ledger.costs = engine.evaluator.costs
        if len(outcomes) < len(task.indices):
            progress.start(f"{model.info.name} · {task.name} · {recipe.name}", len(task.indices) - len(outcomes))
        with ledger:
            for outcome in engine.run(task.examples(preprocess, device, done, known)):
                outcomes.append(outcome)
                progress.advance(f"{sum(c.forward for c in engine.costs.values()):,} passes")
        outcomes.sort(key=lambda o: o.index)
        if number == 0:
            result.add([base | clean_row(o) for o in outcomes])
        if recipe.stages:
            result.add([base | row for o in outcomes for row in attack_rows(o, recipe, plan)])
        result.run["costs"].append(
            {
                **base,
                "attack": recipe.name,
                "batch_size": engine.evaluator.batch_size if engine.costs else None,
                "stages": cost_table(engine.costs),
                "reused": ledger.reused,
                "computed": ledger.of - ledger.reused,
                "stored": stored_costs,
            }
        )
        log.info("%s on %s: %d images done", recipe.name, task.name, len(outcomes))
    mine = (result.samples["model"] == model.info.name) & (result.samples["dataset"] == task.name)
    samples = result.samples[mine]
    prober = Prober(
        plan, classifier, task.dataset, task.hashes, preprocess, device, samples, store=store, cells=attacked
    )
    findings = find(plan, task.dataset, recipes, samples, prober if probes else switched_off)
    if prober.costs or prober.stored:
        about = {"model": model.info.name, "dataset": task.name, "norm": plan.norm, "attack": PROBES}
        size = {"batch_size": PROBED if prober.costs else None}
        reused = {"reused": 0, "computed": 0, "stored": prober.stored}
        result.run["costs"].append({**about, **size, "stages": cost_table(prober.costs), **reused})
    result.run.setdefault("findings", []).append(entry(model.info.name, task.name, findings))
    if plan.part is None:  # of a part, who asked for it says it of all
        say(result.run["findings"][-1:])
