"""`clipguard compare --sequential`: images in growing batches, until the verdict is settled."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from clipguard.benchmark.checks.findings import prediction_entries
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.task import Task, choose_images, open_task
from clipguard.comparison.inputs import Inputs
from clipguard.comparison.paired_cells import compare_results
from clipguard.comparison.result import Batches, Comparison
from clipguard.comparison.rules import Rules
from clipguard.core.checking import check_type
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.errors import ClipguardError, ResultError
from clipguard.core.notices import noticing
from clipguard.core.progress import Progress
from clipguard.core.records.run import DatasetRecord, FindingsRecord
from clipguard.sanity.entries import say
from clipguard.sanity.predictions import PREDICTION_CHECKS

FIRST = 50  # images a data set before the first look
GROWTH = 1.5  # from look to look. Smaller stops a little sooner, and loads the models more often

log = logging.getLogger("clipguard")


def compare_in_batches(
    inputs: Inputs,
    rules: Rules,
    measure: Callable[[BenchPlan], BenchResult],
    first: int,
    force: bool,
    progress: Progress,
) -> tuple[Comparison, BenchResult]:
    """Compare after `first` images a data set, then after half as many again, until the verdict is settled.

    The chance of a false regression is that of `rules` for all looks together (clipguard.statistics.anytime).

    Args:
        inputs: of which at least one is a model.
        rules: what counts as a regression.
        measure: benches a plan; it is asked for no image twice.
        first: images a data set before the first look.
        force: compare the images they share where they are not like for like.
        progress: is told of the images that are read.

    Returns:
        The comparison, and what was measured: the result that benching these images at once would have given.

    Raises:
        ClipguardError: where there is nothing to measure, and as `compare_results` does.
    """
    plan = inputs.plan
    if plan is None:
        raise ResultError("`sequential` is for models to bench; BASE and CANDIDATE are measured already. Leave it out.")
    check_first(first)
    with explain_lost_decoders(), noticing():  # of all batches, each once
        # All images: bad data shows now.
        tasks = [open_task(plan, name, progress, inputs.objects) for name in plan.datasets]
        order = {task.name: choose_images(plan, task.dataset).tolist() for task in tasks}
        most = max(map(len, order.values()))
        parts: list[BenchResult] = []
        looks: tuple[int, ...] = ()
        for stop in batch_ends(first, most):
            parts.append(measure(_plan_of_batch(plan, order, looks[-1] if looks else 0, stop)))
            looks = (*looks, stop)
            measured = _join(parts, {task.name: task.record() for task in tasks})
            batches = Batches(order, looks)
            comparison = compare_results(*inputs.results(measured), rules, force=force, batches=batches)
            log.info("%d of %d images a data set: %s", stop, most, comparison.verdict)
            if comparison.settled:
                break
        taken = [task.only(np.sort(order[task.name][:stop])) for task in tasks]
        for task in taken:
            task.say_changes()
        _record_images(measured, plan, taken, stop if stop < most else None)
        say(measured.run["findings"])
        return comparison, measured


def check_first(first: int) -> None:
    """Raises ClipguardError for what is no number of images."""
    check_type("`first`", first, int)
    if first < 1:
        raise ClipguardError(f"`first` must be at least 1, not {first}.")


def batch_ends(first: int, most: int) -> Iterator[int]:
    """Numbers of images after which to look."""
    while first < most:
        yield first
        first = math.ceil(first * GROWTH)
    yield most


def _plan_of_batch(plan: BenchPlan, order: Mapping[str, Sequence[int]], start: int, stop: int) -> BenchPlan:
    """The plan for images `start` to `stop` of the order, of the data sets that have as many."""
    names = tuple(name for name in plan.datasets if len(order[name]) > start)
    skipped = plan.part[0] if plan.part else 0
    return replace(plan, datasets=names, part=(skipped + start, skipped + stop))


def _join(parts: Sequence[BenchResult], datasets: dict[str, DatasetRecord]) -> BenchResult:
    """One result of several of the same plan but for their images, its rows in the order of a run."""
    run = parts[0].run | {
        "wall_seconds": round(sum(part.run["wall_seconds"] for part in parts), 3),
        "datasets": datasets,
        "batch_invariant": {k: v for part in parts for k, v in part.run["batch_invariant"].items()},
        "costs": [cost for part in parts for cost in part.run["costs"]],
    }
    rows = pd.concat([part.samples for part in parts], ignore_index=True)
    keys = [pd.factorize(rows[name])[0] for name in ("attack", "dataset", "model")]
    result = BenchResult(run)
    result.add(rows.iloc[np.lexsort([rows["index"].to_numpy(), *keys])].reset_index(drop=True))
    findings = prediction_entries(result) + [_large_enough(e) for part in parts for e in part.run["findings"]]
    result.run["findings"] = [entry for entry in findings if entry["findings"]]
    return result


def _large_enough(entry: FindingsRecord) -> FindingsRecord:
    """The findings of a batch, but for those that its images alone are too few for."""
    return {**entry, "findings": [f for f in entry["findings"] if f["id"] not in PREDICTION_CHECKS]}


def _record_images(result: BenchResult, plan: BenchPlan, tasks: Sequence[Task], stop: int | None) -> None:
    """Say in the result which images it is of; `stop` is None if that is all."""
    if stop is not None:
        skipped = plan.part[0] if plan.part else 0
        plan = replace(plan, part=(skipped, skipped + stop))
    result.run["plan"] = plan.to_dict()
    result.run["datasets"] = {task.name: task.record() for task in tasks}
