"""What a recipe finds on a data set on its way into the store, segment by segment."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import pandas as pd

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.outcome import EpsOutcome, Example
from clipguard.benchmark.results.sample_rows import RowNames, cost_record, sample
from clipguard.core.eps import Eps
from clipguard.core.records.provenance import versions
from clipguard.core.records.run import StageCosts, add_costs
from clipguard.store.store import COLUMNS, StoredCell, StoredSample

FLUSH_SECONDS = 5.0  # between segments: what a killed run loses at most, beside the images in flight
MOST_SEGMENTS = 16  # of a cell: more are merged when its run is done


class StoreSession:
    """Collects rows, and writes them to a cell of the store; a no-op without one."""

    def __init__(
        self, cell: StoredCell | None, names: RowNames, attack: str, hashes: Mapping[int, str], eps: Sequence[Eps]
    ) -> None:
        """Begin with no rows.

        Args:
            cell: where the rows go.
            names: columns that all rows have in common.
            attack: the recipe's name, the same.
            hashes: SHA-256 of the images, by index.
            eps: those of the run, to store eps as typed: 3 / 255 * 255 may not be 3.
        """
        self._cell, self._names, self._attack, self._hashes = cell, names, attack, hashes
        self._typed = {0.0: 0.0} | {one.pixels: one.typed for one in eps}
        self._rows: list[StoredSample] = []
        self._costs: StageCosts = {}  # of everything that was written
        self._flushed, self._since = time.monotonic(), _now()

    def add(self, example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
        """Keep what was found at one eps (0: the clean image) for the next segment, unless it was known before."""
        if self._cell is None or outcome.eps in example.known:
            return
        row = sample(
            self._names,
            attack=self._attack,
            index=example.index,
            label=example.label,
            clean_pred=clean_prediction,
            eps=self._typed[outcome.eps],
            outcome=outcome,
        )
        self._rows.append({**row, "cell": self._cell.name, "image": self._hashes[example.index]})

    def is_due(self) -> bool:
        """Whether it is time to write a segment."""
        return bool(self._rows) and time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self, costs: Mapping[str, Cost]) -> None:
        """Write a segment, if there are rows; `costs` are those of the engine so far, by stage.

        Raises:
            OutputError: if the disk does not take it.
        """
        if self._cell is None or not self._rows:
            return
        total: StageCosts = {stage: cost_record(cost) for stage, cost in costs.items()}
        spent = {s: add_costs(cost, self._costs[s], -1) if s in self._costs else cost for s, cost in total.items()}
        now = _now()
        self._cell.add(
            pd.DataFrame(self._rows, columns=list(COLUMNS)),
            [
                {
                    "versions": versions(),
                    "device": self._cell.key["device"],
                    "from": self._since,
                    "to": now,
                    "rows": len(self._rows),
                    "stages": spent,
                }
            ],
        )
        self._rows, self._costs, self._since = [], total, now
        self._flushed = time.monotonic()

    def merge(self) -> None:
        """Make one segment of many."""
        if self._cell is not None and len(list(self._cell.folder.glob("*.parquet"))) > MOST_SEGMENTS:
            self._cell.merge()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
