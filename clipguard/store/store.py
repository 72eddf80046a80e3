"""The store: how every image fared at every eps, under a hash of all that can change it (docs/store.md).

No file in it is ever changed. Writers only add segments, whose names are the SHA-256 of their content, so any number of
processes can share a store without locks, and a damaged segment shows.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipguard.core.errors import OutputError, ResultError, first_line
from clipguard.core.files.output import make_folders
from clipguard.core.records.run import CostLogEntry, add_costs
from clipguard.core.records.samples import SAMPLE_COLUMNS, Sample

FORMAT = 1
MARKER, CELLS, DAMAGED, PARTS, KEY = "store.json", "cells", "damaged", "parts", "_key.json"
COLUMNS = {"cell": "string", "image": "string"} | SAMPLE_COLUMNS
ROW_KEY = ["index", "image", "label", "eps"]
COST_LOG = b"clipguard"  # key in a segment's metadata
log = logging.getLogger("clipguard")


def canonical(value: Any) -> str:
    """JSON with one spelling, and no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(content: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class StoredSample(Sample):
    """A row of the store: the cell that it belongs to, and the SHA-256 of its image."""

    cell: str
    image: str


@dataclass(frozen=True)
class Segment:
    """Rows that were written together (`COLUMNS`), and who computed how many of them, when, at what cost."""

    path: Path
    rows: pd.DataFrame
    cost_log: list[CostLogEntry]

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Segment:
        """Raises ValueError for what is no segment, or not the one that its name and folder say."""
        if sha256(content) != path.stem:
            raise ValueError("its content is not what was written")
        table = pq.read_table(pa.BufferReader(content))
        rows = table.to_pandas()[list(COLUMNS)].astype(COLUMNS)
        if set(rows["cell"]) != {path.parent.name}:
            raise ValueError("it belongs to another cell")
        return cls(path, rows, json.loads(table.schema.metadata[COST_LOG]))


class Store:
    """A folder of cells; made when the first result is written."""

    def __init__(self, path: Path) -> None:
        """Raises ResultError for a folder that holds something else, or a store of another format."""
        self.path = path
        try:
            # Nothing but parts: another process is just making it, or was killed when it did.
            holds = path.is_dir() and any(entry.name != PARTS for entry in path.iterdir())
            marker = json.loads((path / MARKER).read_text(encoding="utf-8")) if holds else {"format": FORMAT}
        except (OSError, ValueError):
            raise ResultError(f"`store` {path} is no store of clipguard; name another folder.") from None
        if marker != {"format": FORMAT}:
            version = marker.get("format") if isinstance(marker, dict) else None
            if isinstance(version, int) and version > FORMAT:
                raise ResultError(f"`store` {path} is of a newer clipguard. Update clipguard, or name another folder.")
            raise ResultError(f"`store` {path} is of another version of clipguard; name another folder.")

    def cell(self, key: Mapping[str, Any]) -> StoredCell:
        """The cell of this key, whether or not it has rows yet."""
        text = canonical(key)
        return StoredCell(self, sha256(text.encode()), json.loads(text))

    def cells(self) -> list[StoredCell]:
        """All cells, by name; the key of one whose `_key.json` is damaged is empty."""
        folders = sorted(p for p in (self.path / CELLS).glob("*") if p.is_dir())
        return [StoredCell(self, folder.name, read_key(folder)) for folder in folders]

    def set_aside(self, path: Path, why: str) -> None:
        """Move a damaged file out of its cell. Raises OutputError if the disk does not let us."""
        place = self.path / DAMAGED / f"{path.parent.name}-{path.name}"
        try:
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise OutputError(f"{path} is damaged ({why}) and cannot be moved: {error.strerror}.") from error
        log.warning("%s is damaged (%s): set aside as %s; its results are computed again.", path, why, place)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file whole or not at all, and durably. Raises OutputError if the disk does not take it."""
        try:
            if not (self.path / MARKER).exists():
                make_folders(self.path, [])
                self._replace(self.path / MARKER, f"{canonical({'format': FORMAT})}\n".encode())
            self._replace(path, content)
        except OSError as error:
            raise OutputError(
                f"The store {self.path} takes no more results ({error.strerror or error}). What was stored is safe: "
                "make room and run the same command again, and it goes on from there."
            ) from error

    def _replace(self, path: Path, content: bytes) -> None:
        """As core/files/atomic_files.py, durably; but parts lie together, where `gc` finds those of killed writers, and
        the folder of the file may be removed meanwhile.
        """
        parts = self.path / PARTS
        parts.mkdir(exist_ok=True)
        number, part = tempfile.mkstemp(dir=parts)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(part).chmod(0o644)
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    Path(part).replace(path)
                    break
                except FileNotFoundError:  # `store gc` has just removed the folder
                    if not Path(part).exists():
                        raise
            _sync(path.parent)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class StoredCell:
    """The results of one model, class text, preprocessing, threat, attack and seed, on whichever images."""

    store: Store
    name: str
    key: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where its segments are."""
        return self.store.path / CELLS / self.name

    def segments(self) -> list[Segment]:
        """All that are whole, by name; damaged ones are set aside with a warning."""
        while True:
            segments = self._read()
            if segments is not None:
                return segments

    def _read(self) -> list[Segment] | None:
        """The segments, or None if one went away meanwhile: another process has merged it into a new one."""
        segments = []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                segments.append(Segment.parse(path, path.read_bytes()))
            except FileNotFoundError:
                return None
            except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors and OSErrors
                self.store.set_aside(path, first_line(error))
        return segments

    def add(self, rows: pd.DataFrame, cost_log: list[CostLogEntry]) -> Path:
        """Write a segment. Raises OutputError if the disk does not take it."""
        if read_key(self.folder) != self.key:
            self.store.write(self.folder / KEY, f"{canonical(self.key)}\n".encode())
        table = pa.Table.from_pandas(rows[list(COLUMNS)].astype(COLUMNS), preserve_index=False)
        metadata = {**(table.schema.metadata or {}), COST_LOG: canonical(cost_log).encode()}
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), content)
        path = self.folder / f"{sha256(content.getvalue())}.parquet"
        self.store.write(path, content.getvalue())
        return path

    def merge(self) -> int:
        """Make one segment of several, and return how many went away. Safe beside readers and writers."""
        segments = self.segments()
        if len(segments) < 2 or not self.key:
            return 0
        rows = distinct(segments).sort_values(ROW_KEY, kind="stable")
        kept = self.add(rows, sum_costs(entry for segment in segments for entry in segment.cost_log))
        old = [segment.path for segment in segments if segment.path != kept]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def distinct(segments: list[Segment]) -> pd.DataFrame:
    """The rows of all segments, each once. Copies are the same but for names as typed: the first counts."""
    if not segments:
        return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    return pd.concat([s.rows for s in segments], ignore_index=True).drop_duplicates(ROW_KEY, ignore_index=True)


def sum_costs(entries: Iterable[CostLogEntry]) -> list[CostLogEntry]:
    """Entries of the same versions and machine as one."""
    totals: dict[str, CostLogEntry] = {}
    for entry in entries:
        who = canonical({"versions": entry["versions"], "device": entry["device"]})
        if who not in totals:
            totals[who] = {**entry, "stages": {}, "rows": 0}
        total = totals[who]
        total["rows"] += entry["rows"]
        total["from"], total["to"] = min(total["from"], entry["from"]), max(total["to"], entry["to"])
        for stage, cost in entry["stages"].items():
            before = total["stages"].get(stage)
            total["stages"][stage] = cost if before is None else add_costs(before, cost)
    return list(totals.values())


def read_key(folder: Path) -> dict[str, Any]:
    """The key of a cell's folder; empty if it is missing or not the one that gave the folder its name."""
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return key if isinstance(key, dict) and sha256(canonical(key).encode()) == folder.name else {}


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
