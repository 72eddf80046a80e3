"""What the store knows of a recipe on the images of a data set, so that it need not be computed again."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pandas as pd
import torch

from clipguard.attacks.engine.options import EpsMode
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.engine.schedule import recall
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.sample_rows import table_unit
from clipguard.benchmark.task import KnownOutcomes, Task
from clipguard.core.records.run import StageCost, StageCosts
from clipguard.store.store import Segment, StoredCell, distinct, sum_costs


@dataclass(frozen=True)
class Recalled:
    """What is known already.

    Results are counted one for each image and eps, and one for the clean image.

    Attributes:
        outcomes: of the images that are known at every eps.
        partly: by index, what is known of the other images.
        reused: results that need not be computed.
        asked: all results that were asked for.
        costs: what the reused results took when they were computed.
    """

    outcomes: list[ImageOutcome]
    partly: dict[int, KnownOutcomes]
    reused: int
    asked: int
    costs: StageCosts = field(default_factory=dict)


def recall_outcomes(cell: StoredCell | None, plan: BenchPlan, task: Task, eps: Sequence[float]) -> Recalled:
    """What a cell of the store knows of the images of a task at these eps (pixels of [0,1]); nothing without a cell."""
    segments = cell.segments() if cell else []
    with _no_collection():
        return _recall(segments, plan, task, eps)


def _recall(segments: list[Segment], plan: BenchPlan, task: Task, eps: Sequence[float]) -> Recalled:
    hashes = pd.Series(task.hashes, dtype="string")
    known = _known_outcomes(segments, hashes, pd.Series(task.labels()), table_unit(plan.norm))
    mode: EpsMode = "independent" if plan.engine == "reference" else plan.eps_mode
    no_pixels = torch.empty(0)
    examples = [Example(i, no_pixels, label, known.get(i, {})) for i, label in task.labels().items()]
    outcomes = [outcome for example in examples if (outcome := recall(example, list(eps), mode))]
    if plan.engine == "reference" and len(outcomes) < len(examples):  # outcomes of one batch belong together
        outcomes, known = [], {}
    for outcome in outcomes:
        known.pop(outcome.index)
    results = {0.0, *eps}
    reused = len(outcomes) * len(results) + sum(len(results & set(part)) for part in known.values())
    return Recalled(outcomes, known, reused, len(examples) * len(results), _share_of_costs(segments, hashes))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for reference cycles, which takes half of the time where millions of objects are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _known_outcomes(
    segments: list[Segment], hashes: pd.Series[str], labels: pd.Series[int], unit: int
) -> dict[int, KnownOutcomes]:
    """The rows of these very images (same pixels, index and label), by index and eps."""
    rows = distinct(segments)
    asked = rows[_are_of(rows, hashes) & (rows["index"].map(labels) == rows["label"])]
    known: dict[int, dict[float, EpsOutcome]] = defaultdict(dict)
    columns = ("index", "eps", "robust", "adv_pred", "broken_by", "distance", "margin")
    values = [asked[name].tolist() for name in columns]  # column by column: a store may hold millions of rows
    for index, typed, robust, prediction, broken_by, distance, margin in zip(*values, strict=True):
        eps, by = typed / unit, broken_by if isinstance(broken_by, str) else None
        known[index][eps] = EpsOutcome(eps, robust, prediction, by, distance / unit, margin)
    return dict(known)


def _are_of(rows: pd.DataFrame, hashes: pd.Series[str]) -> pd.Series[bool]:
    """Whether each row's index and pixels are those of an image, whose hashes are by index."""
    return (rows["index"].map(hashes) == rows["image"]).fillna(False).astype(bool)


def _share_of_costs(segments: list[Segment], hashes: pd.Series[str]) -> StageCosts:
    """What the rows of these images took: of each segment, their share of its rows."""
    total: dict[str, dict[str, float]] = {}
    for segment in segments:
        share = sum(_are_of(segment.rows, hashes).tolist()) / len(segment.rows)
        for entry in sum_costs(segment.cost_log):
            for stage, cost in entry["stages"].items():
                sums = total.setdefault(stage, {})
                total[stage] = sums | {
                    name: sums.get(name, 0.0) + share * value for name, value in cast(dict[str, float], cost).items()
                }
    return {stage: _rounded(cost) for stage, cost in total.items()}


def _rounded(cost: dict[str, float]) -> StageCost:
    rounded: StageCost = {  # in the order of the store's files, which results.json has had from the start
        "backward": round(cost["backward"]),
        "forward": round(cost["forward"]),
        "seconds": round(cost["seconds"], 3),
    }
    skipped = round(cost.get("skipped", 0))
    return {**rounded, "skipped": skipped} if skipped else rounded
