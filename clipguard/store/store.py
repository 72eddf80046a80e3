"""The store: how every image fared at every eps, under a hash of all that can change it (docs/store.md).

No file in it is ever changed. Writers only add segments, whose names are the SHA-256 of their content, so any number of
processes and machines can share a store without locks, and a damaged segment shows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipguard.core.errors import OutputError, ResultError, first_line
from clipguard.core.files.atomic_files import sync
from clipguard.core.files.output import make_folders
from clipguard.core.records.run import CostLogEntry, add_costs
from clipguard.core.records.samples import SAMPLE_COLUMNS, Sample
from clipguard.store.places import Place, RemotePath, listed, open_place

FORMAT = 1
MARKER, CELLS, DAMAGED, PARTS, KEY = "store.json", "cells", "damaged", "parts", "_key.json"
COLUMNS = {"cell": "string", "image": "string"} | SAMPLE_COLUMNS
ROW_KEY = ["index", "image", "label", "eps"]
COST_LOG = b"clipguard"  # key in a segment's metadata
# Seconds between readings of a cell whose files went away meanwhile. Other machines may see old names for a while.
PAUSES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
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

    path: Place
    rows: pd.DataFrame
    cost_log: list[CostLogEntry]

    @classmethod
    def parse(cls, path: Place, content: bytes) -> Segment:
        """Raises ValueError for what is no segment, or not the one that its name and folder say."""
        if sha256(content) != path.stem:
            raise ValueError("its content is not what was written")
        table = pq.read_table(pa.BufferReader(content))
        rows = table.to_pandas()[list(COLUMNS)].astype(COLUMNS)
        if set(rows["cell"]) != {path.parent.name}:
            raise ValueError("it belongs to another cell")
        return cls(path, rows, json.loads(table.schema.metadata[COST_LOG]))


class Store:
    """A folder of cells, or a prefix of an object store; made when the first result is computed."""

    def __init__(self, place: str | Path | RemotePath) -> None:
        """Raises ResultError for a place that holds something else or a store of another format, or does not answer."""
        self.path = path = open_place(place)
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
        folders = [folder for folder in listed(self.path / CELLS, "*") if folder.is_dir()]
        return [StoredCell(self, folder.name, read_key(folder)) for folder in folders]

    def set_aside(self, path: Place, why: str) -> None:
        """Move a damaged file out of its cell. Raises OutputError if the disk does not let us."""
        place = self.path / DAMAGED / f"{path.parent.name}-{path.name}"
        try:
            if isinstance(place, Path) and isinstance(path, Path):
                place.parent.mkdir(exist_ok=True)
                path.replace(place)
            else:
                place.write_bytes(path.read_bytes())
                path.unlink()
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise OutputError(f"{path} is damaged ({why}) and cannot be moved: {error.strerror}.") from error
        log.warning("%s is damaged (%s): set aside as %s; its results are computed again.", path, why, place)

    def write(self, path: Place, content: bytes) -> None:
        """Write a file whole or not at all, and durably. Raises OutputError if the disk does not take it."""
        try:
            self._make()
            self._put(path, content)
        except OSError as error:
            raise OutputError(
                f"The store {self.path} takes no more results ({error.strerror or error}). What was stored is safe: "
                "make room and run the same command again, and it goes on from there."
            ) from error

    def require_writable(self) -> None:
        """Raise OutputError if a folder takes no results, before any is computed; makes it if it is not there."""
        if isinstance(self.path, RemotePath):
            return
        parts = self.path / PARTS
        try:
            self._make()
            parts.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=parts):
                pass
        except OSError as error:
            raise OutputError(
                f"The store {self.path} cannot be written ({error.strerror or error}); name another folder, or "
                "`store=none`."
            ) from error

    def _make(self) -> None:
        if not (self.path / MARKER).exists():
            if isinstance(self.path, Path):
                make_folders(self.path, [])
            self._put(self.path / MARKER, f"{canonical({'format': FORMAT})}\n".encode())

    def _put(self, path: Place, content: bytes) -> None:
        if isinstance(path, RemotePath):
            path.write_bytes(content)  # an object is there whole or not at all
        else:
            self._replace(path, content)

    def _replace(self, path: Path, content: bytes) -> None:
        """As core/files/atomic_files.py, durably; but parts lie together, where `gc` finds those of killed writers, and
        the folder of the file may be removed meanwhile.
        """
        parts = Path(self.path / PARTS)  # type: ignore[arg-type]
        parts.mkdir(exist_ok=True)
        number, name = tempfile.mkstemp(dir=parts)
        part = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                sync(file.fileno())
            with contextlib.suppress(OSError):  # a file system without modes
                part.chmod(0o644)
            _rename(part, path)
            sync(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _rename(part: Path, path: Path) -> None:
    """Give a part its name, in a folder that `store gc` may just be removing."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.replace(path)
            return
        except FileNotFoundError:
            if part.exists():
                continue  # the folder went away
            if not path.exists():
                raise
            return  # NFS asked twice, and only the first answer was lost


@dataclass(frozen=True)
class StoredCell:
    """The results of one model, class text, preprocessing, threat, attack and seed, on whichever images."""

    store: Store
    name: str
    key: Mapping[str, Any]

    @property
    def folder(self) -> Place:
        """Where its segments are."""
        return self.store.path / CELLS / self.name

    def segments(self) -> list[Segment]:
        """All that are whole, by name; damaged ones are set aside with a warning."""
        for pause in PAUSES:
            time.sleep(pause)
            segments, whole = self._read()
            if whole:
                break
        return segments  # what could not be seen yet is computed again at worst

    def _read(self) -> tuple[list[Segment], bool]:
        """The segments, and whether none went away meanwhile: another process has merged it into a new one."""
        segments, whole = [], True
        for path in listed(self.folder, "*.parquet"):
            try:
                segments.append(Segment.parse(path, path.read_bytes()))
            except FileNotFoundError:
                whole = False
            except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors and OSErrors
                if isinstance(error, OSError) and error.errno == errno.ESTALE:  # removed by another machine
                    whole = False
                else:
                    self.store.set_aside(path, first_line(error))
        return segments, whole

    def add(self, rows: pd.DataFrame, cost_log: list[CostLogEntry]) -> Place:
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


def read_key(folder: Place) -> dict[str, Any]:
    """The key of a cell's folder; empty if it is missing or not the one that gave the folder its name."""
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return key if isinstance(key, dict) and sha256(canonical(key).encode()) == folder.name else {}
