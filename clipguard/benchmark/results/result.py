"""What a run found: cells, per-image rows and its record, and the files they become (docs/results.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from clipguard.benchmark.results.table import to_html, to_lines, to_markdown
from clipguard.core.checking import check_type
from clipguard.core.errors import OutputError, ResultError, first_line
from clipguard.core.records.run import RunRecord
from clipguard.core.records.samples import SAMPLE_COLUMNS, Sample, sample_frame
from clipguard.statistics.intervals import wilson_interval

SCHEMA = 1
RESULTS, SAMPLES = "results.json", "samples.parquet"


@dataclass(frozen=True)
class Cell:
    """The accuracy of one model on one data set at one eps under one attack; that of clean images is at eps 0."""

    model: str
    dataset: str
    norm: str
    eps: float  # as in the tables: units of 1/255 for linf
    attack: str  # "none" for clean images
    n: int  # images
    correct: int
    accuracy: float  # correct / n
    ci_low: float  # 95 % Wilson interval
    ci_high: float
    broken_by: dict[str, int]  # images by the attack that broke them first

    @classmethod
    def from_samples(cls, samples: pd.DataFrame) -> Cell:
        """Summarise the rows of one cell."""
        first = samples.iloc[0]
        n, correct = len(samples), int(samples["robust"].sum())
        low, high = wilson_interval(correct, n)
        broken = samples["broken_by"].dropna().value_counts().sort_index()
        return cls(
            model=str(first["model"]),
            dataset=str(first["dataset"]),
            norm=str(first["norm"]),
            eps=float(first["eps"]),
            attack=str(first["attack"]),
            n=n,
            correct=correct,
            accuracy=correct / n,
            ci_low=low,
            ci_high=high,
            broken_by={str(k): int(v) for k, v in broken.items()},
        )


@dataclass
class BenchResult:
    """What a run found.

    Attributes:
        run: everything that can change a number.
        cells: accuracies, in the order in which they were measured.
        samples: a row for each image and cell (`SAMPLE_COLUMNS`).
    """

    run: RunRecord
    cells: list[Cell] = field(default_factory=list)
    samples: pd.DataFrame = field(default_factory=lambda: sample_frame([]))

    @classmethod
    def load(cls, path: str | Path) -> BenchResult:
        """The result in a folder that `save` or `clipguard bench` wrote, or in its `results.json` alone.

        Args:
            path: the folder, or the file with `samples.parquet` beside it.

        Raises:
            ResultError: for what is missing, damaged, of another schema, or does not belong together.
        """
        check_type("`path`", path, str | Path, ResultError)
        file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
        content = _read_json(file)
        refuse_newer(content, file)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or not {"run", "cells"} <= set(content):
            raise ResultError(f"{file} is no result of `clipguard bench` with schema {SCHEMA}; bench the model again.")
        try:
            frame = pd.read_parquet(file.with_name(SAMPLES))
            samples = frame[list(SAMPLE_COLUMNS)].astype(SAMPLE_COLUMNS)
        except (OSError, ValueError, KeyError) as error:
            what = f"{file.with_name(SAMPLES)} cannot be read ({first_line(error)})"
            raise ResultError(f"{what}; it belongs beside {file.name}. Bench the model again.") from error
        result = cls(content["run"])
        result.add(samples)
        if [asdict(cell) for cell in result.cells] != content["cells"]:
            raise ResultError(f"{file} and the {SAMPLES} beside it are not of one run; copy both files of a run.")
        return result

    def save(self, folder: str | Path) -> Path:
        """Write the files of `clipguard bench` (docs/results.md), which `compare`, `report` and `load` read.

        Args:
            folder: a new or empty one.

        Returns:
            The folder.

        Raises:
            OutputError: if it holds something, or cannot be written; nothing is overwritten.
        """
        check_type("`folder`", folder, str | Path, OutputError)
        from clipguard.benchmark.results.folder import ResultFolder  # which writes results, and so knows them

        with ResultFolder(Path(folder), option="`folder`", whole=True) as place:
            place.write(self, self.to_markdown())
        return Path(folder)

    def add(self, rows: Iterable[Sample] | pd.DataFrame) -> None:
        """Append the rows of one or more complete cells, and their summaries."""
        frame = rows if isinstance(rows, pd.DataFrame) else sample_frame(rows)
        keys = ["model", "dataset", "norm", "attack", "eps"]
        self.cells += [Cell.from_samples(group) for _, group in frame.groupby(keys, sort=False, observed=True)]
        self.samples = pd.concat([self.samples, frame], ignore_index=True) if len(self.samples) else frame

    def only(self, model: str) -> BenchResult:
        """The cells and rows of one of its models."""
        part = BenchResult(self.run)
        part.add(self.samples[self.samples["model"] == model])
        return part

    def to_dict(self) -> dict[str, Any]:
        """The content of `results.json`."""
        return {"schema": SCHEMA, "run": self.run, "cells": [asdict(cell) for cell in self.cells]}

    def to_json(self) -> str:
        """`results.json`, which is strict JSON: no NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One row a cell; what `results.csv` holds."""
        rows = [asdict(cell) | {"broken_by": json.dumps(cell.broken_by)} for cell in self.cells]
        return pd.DataFrame(rows, columns=[column.name for column in fields(Cell)])

    def to_markdown(self) -> str:
        """A table with intervals to paste into a paper or a pull request; what `results.md` holds."""
        return to_markdown(self)

    def __repr__(self) -> str:
        return "BenchResult: " + "\n".join(to_lines(self))

    def _repr_html_(self) -> str:
        return to_html(self)


def refuse_newer(content: Any, file: Path) -> None:
    """Check the schema of a result file.

    Raises:
        ResultError: for one of a newer clipguard, whose fields may mean something else.
    """
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise ResultError(f"{file} is of a newer clipguard (schema {schema}, not {SCHEMA}). Update clipguard.")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{file} cannot be read ({first_line(error)}); name a folder of `clipguard bench`."
        ) from error
