"""Runs a plan: loads, checks everything once, then attacks cell by cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.reference import ReferenceEngine
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.batch_fill import settle_fill
from clipguard.benchmark.cell_key import cell_key
from clipguard.benchmark.findings import find
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import prepare
from clipguard.benchmark.probing import PROBED_IMAGES, PROBES, Prober, switched_off
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.results.sample_rows import attack_rows, clean_row, cost_table
from clipguard.benchmark.session import Ledger
from clipguard.benchmark.task import Task, engine_options, open_task
from clipguard.core.device import choose_device
from clipguard.core.eps import notice_small_eps
from clipguard.core.errors import AttackError
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.core.provenance import machine, versions
from clipguard.data import ZeroShotDataset
from clipguard.models import parse_source
from clipguard.models.description import describe_model
from clipguard.models.loading import LoadedModel, ModelInfo, load_model
from clipguard.models.text.encoding import tokenize
from clipguard.sanity.entries import entry, say
from clipguard.store.store import Store

log = logging.getLogger("clipguard")


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
        size = {"batch_size": PROBED_IMAGES if prober.costs else None}
        reused = {"reused": 0, "computed": 0, "stored": prober.stored}
        result.run["costs"].append({**about, **size, "stages": cost_table(prober.costs), **reused})
    result.run.setdefault("findings", []).append(entry(model.info.name, task.name, findings))
    if plan.part is None:  # of a part, who asked for it says it of all
        say(result.run["findings"][-1:])
