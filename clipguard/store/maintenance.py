"""Looking after a store: what is in it, whether it is whole, tidying up, and all of it as one table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import pandas as pd

from clipguard.core.errors import OutputError, ResultError
from clipguard.store.places import Place, RemotePath, open_place
from clipguard.store.probes import PROBES, probe_files, read_probes
from clipguard.store.store import CELLS, COLUMNS, KEY, MARKER, PARTS, Store, StoredCell, canonical, distinct

DEAD_AFTER = 3600.0  # seconds after which a part of a file is of a killed writer: a living one needs far less


@dataclass(frozen=True)
class Summary:
    """A cell in a line. Names are as they were typed when its rows were computed."""

    cell: str
    models: list[str]
    datasets: list[str]
    attacks: list[str]
    norm: str
    eps: list[float]
    images: int
    results: int
    segments: int
    bytes: int
    written: str  # UTC, when its last row was computed

    HEADINGS: ClassVar[tuple[str, ...]] = ("cell", "model", "data sets", "attack", "images", "size", "written")

    @classmethod
    def of(cls, cell: StoredCell) -> Summary | None:
        """None for a cell without rows."""
        segments = cell.segments()
        rows = distinct(segments)
        if not len(rows):
            return None
        names = {name: sorted(rows[name].unique().tolist()) for name in ("model", "dataset", "attack", "eps")}
        sizes = [path.stat().st_size for segment in segments if (path := segment.path).exists()]
        return cls(
            cell.name,
            names["model"],
            names["dataset"],
            names["attack"],
            str(rows["norm"].iloc[0]),
            [eps for eps in names["eps"] if eps],
            int(rows[["index", "image"]].drop_duplicates().shape[0]),
            len(rows),
            len(segments),
            sum(sizes),
            max(entry["to"] for segment in segments for entry in segment.cost_log),
        )

    def cells(self) -> list[str]:
        """The values below `HEADINGS`."""
        unit = "/255" if self.norm == "linf" else f" {self.norm}"
        eps = f" at {', '.join(f'{e:g}' for e in self.eps)}{unit}" if self.eps else ""
        names = [", ".join(values) for values in (self.models, self.datasets)]
        attacks = ", ".join(self.attacks) + eps
        return [self.cell[:8], *names, attacks, str(self.images), f"{self.bytes / 1e3:.0f} kB", self.written[:10]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def open_store(place: str | Path | RemotePath) -> Store:
    """A store that exists. Raises ResultError if there is none."""
    path = open_place(place)
    if not (path / MARKER).is_file():
        raise ResultError(f"There is no store at {path}; name one with `store`.")
    return Store(path)


def summaries(store: Store) -> list[Summary]:
    """Every cell that has rows, the last written first."""
    cells = [summary for cell in store.cells() if (summary := Summary.of(cell))]
    return sorted(cells, key=lambda s: (s.written, s.cell), reverse=True)


class CheckRecord(TypedDict):
    """How many cells and segments are whole, and what was damaged and is set aside now."""

    cells: int
    segments: int
    damaged: list[str]


def check(store: Store) -> CheckRecord:
    """Read everything, and set aside what is damaged."""
    damaged: list[str] = []
    cells, n_segments = store.cells(), 0
    damaged += [f"{PROBES}/{path.name}" for path in probe_files(store) if read_probes(store, path) is None]
    for cell in cells:
        before = {path.name for path in cell.folder.glob("*.parquet")}
        whole = {segment.path.name for segment in cell.segments()}
        gone = before - whole
        damaged += sorted(f"{cell.name}/{name}" for name in gone if _set_aside(store, cell, name))
        n_segments += len(whole)
        if not cell.key and before:  # written again by the next run that uses the cell
            damaged.append(f"{cell.name}/{KEY}")
    return {"cells": len(cells), "segments": n_segments, "damaged": damaged}


def tidy(store: Store) -> tuple[int, int]:
    """Merge the segments of each cell, and remove parts of files that a killed writer left: how many of either."""
    merged = sum(cell.merge() for cell in store.cells())
    old = [p for p in (store.path / PARTS).glob("*") if time.time() - p.stat().st_mtime > DEAD_AFTER]
    for path in old:
        path.unlink(missing_ok=True)
    return merged, len(old)


def select(store: Store, age: float, model: str | None, dataset: str | None) -> list[Summary]:
    """Cells last written more than `age` seconds ago, all of whose models and data sets match these patterns."""
    latest = datetime.fromtimestamp(time.time() - age, timezone.utc).isoformat(timespec="seconds")
    return [
        summary
        for summary in summaries(store)
        if summary.written <= latest
        and all(fnmatchcase(name, model or "*") for name in summary.models)
        and all(fnmatchcase(name, dataset or "*") for name in summary.datasets)
    ]


def remove(store: Store, cells: Collection[str], files: Iterable[Place]) -> None:
    """Remove cells, what their probes found, and files for good.

    A writer that is at work in a cell makes it again.

    Args:
        store: where.
        cells: by name.
        files: others, such as damaged ones.

    Raises:
        OutputError: if the disk does not let us.
    """
    try:
        for name in cells:
            folder = store.path / CELLS / name
            for path in [*folder.glob("*.parquet"), folder / KEY]:
                path.unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                with contextlib.suppress(OSError, OutputError):  # a writer was faster, or a reader has a file open
                    folder.rmdir()
        gone = set(cells)
        for path in probe_files(store):
            probes = read_probes(store, path) if gone else None
            if probes and gone & set(probes["key"]["cells"]):
                path.unlink(missing_ok=True)
        for path in files:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot remove from {store.path}: {error.strerror or error}.") from error


def table(store: Store) -> pd.DataFrame:
    """All rows (`COLUMNS`), and the key of each one's cell: its plain values as columns, the rest as JSON."""
    frames = [pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)]
    for cell in store.cells():
        plain = {
            name: value if isinstance(value, (str, int, float)) else canonical(value)
            for name, value in cell.key.items()
        }
        columns = {f"key_{name}": value for name, value in plain.items()}
        frames.append(distinct(cell.segments()).assign(**columns))
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _set_aside(store: Store, cell: StoredCell, name: str) -> bool:
    return (store.path / "damaged" / f"{cell.name}-{name}").exists()
