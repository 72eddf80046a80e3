"""What is known of an attack on a data set's images, and what becomes known: between the engine and the store."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

import pandas as pd
import torch

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.options import EpsMode
from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.engine.schedule import recall
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.eps import PIXEL
from clipguard.core.provenance import versions
from clipguard.store.store import COLUMNS, StoredCell, distinct, sum_costs

Known = dict[float, EpsOutcome]  # by radius in pixel units; 0 is the clean image
FLUSH_SECONDS = 5.0  # between segments: what a killed run loses at most, beside the images in flight
MANY = 16  # segments of a cell that are merged when it is done


class Ledger:
    """One attack on one data set. Without a cell nothing is known and nothing is kept.

    base: columns that all rows have in common (model, dataset, norm, attack). hashes: of the images, by index. Made as
    a context: on the way out, whatever the reason, what was found is written.
    """

    def __init__(
        self, cell: StoredCell | None, plan: BenchPlan, base: Mapping[str, Any], hashes: dict[int, str]
    ) -> None:
        self.cell, self.base, self.hashes = cell, base, hashes
        self.mode: EpsMode = "independent" if plan.engine == "reference" else plan.eps_mode
        self.whole = plan.engine == "reference"  # outcomes of one batch belong together
        self.unit = PIXEL if plan.norm == "linf" else 1
        self.typed = {0.0: 0.0} | {radius.pixels: radius.typed for radius in plan.eps}  # 3 / 255 * 255 may not be 3
        self.costs: Mapping[str, Cost] = {}  # of the engine, as it runs
        self.reused = self.of = 0  # results at one radius (0: clean), of all that were asked for
        self._rows: list[dict[str, Any]] = []
        self._charged: dict[str, dict[str, float]] = {}
        self._flushed, self._since = time.monotonic(), _now()
        self._segments = cell.segments() if cell else []

    def recall(self, labels: dict[int, int], radii: list[float]) -> tuple[list[ImageOutcome], dict[int, Known]]:
        """Outcomes of the images (label by index) that are known at all radii, and what is known of the others."""
        known: dict[int, Known] = defaultdict(dict)
        for row in distinct(self._segments).to_dict("records"):
            index, radius = row["index"], row["eps"] / self.unit
            if self.hashes.get(index) == row["image"] and labels[index] == row["label"]:
                by = None if pd.isna(row["broken_by"]) else row["broken_by"]
                found = (row["robust"], row["adv_pred"], by, row["distance"] / self.unit, row["margin"])
                known[index][radius] = EpsOutcome(radius, *found)
        examples = [Example(index, torch.empty(0), label, known.get(index, {})) for index, label in labels.items()]
        outcomes = [outcome for example in examples if (outcome := recall(example, radii, self.mode))]
        if self.whole and len(outcomes) < len(examples):
            outcomes, known = [], {}
        results = {0.0, *radii}
        for done in outcomes:
            known.pop(done.index)
        self.of = len(examples) * len(results)
        self.reused = len(outcomes) * len(results) + sum(len(results & set(part)) for part in known.values())
        return outcomes, known

    def stored_costs(self) -> dict[str, dict[str, float]]:
        """What the rows of these images took when they were computed: of each segment, their share of its rows."""
        total: dict[str, dict[str, float]] = {}
        for segment in self._segments:
            rows = zip(segment.rows["index"], segment.rows["image"], strict=True)
            share = sum(self.hashes.get(index) == image for index, image in rows) / len(segment.rows)
            for entry in sum_costs(segment.wrote):
                for stage, cost in entry["stages"].items():
                    sums = total.setdefault(stage, dict.fromkeys(cost, 0.0))
                    total[stage] = {name: sums[name] + share * value for name, value in cost.items()}
        return {
            stage: {name: round(value, 3) if name == "seconds" else round(value) for name, value in cost.items()}
            for stage, cost in total.items()
        }

    def note(self, example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
        """Keep what was found at one radius (0: without attack), for the next segment."""
        if self.cell is None or outcome.eps in example.known:
            return
        self._rows.append(
            {
                **self.base,
                "cell": self.cell.name,
                "image": self.hashes[example.index],
                "index": example.index,
                "label": example.label,
                "eps": self.typed[outcome.eps],
                "clean_pred": clean_prediction,
                "adv_pred": outcome.prediction,
                "robust": outcome.robust,
                "broken_by": outcome.broken_by,
                "distance": outcome.distance * self.unit,
                "margin": outcome.margin,
            }
        )
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write a segment. Raises OutputError if the disk does not take it."""
        if self.cell is None or not self._rows:
            return
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        spent = {
            stage: {name: value - self._charged.get(stage, {}).get(name, 0) for name, value in cost.items()}
            for stage, cost in costs.items()
        }
        now = _now()
        entry = {"versions": versions(), "device": self.cell.key["device"], "from": self._since, "to": now}
        self.cell.add(
            pd.DataFrame(self._rows, columns=list(COLUMNS)), [{**entry, "rows": len(self._rows), "stages": spent}]
        )
        self._rows, self._charged, self._since = [], costs, now
        self._flushed = time.monotonic()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        if error is None and self.cell is not None and len(list(self.cell.folder.glob("*.parquet"))) > MANY:
            self.cell.merge()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
