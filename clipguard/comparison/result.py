"""What a comparison says: the change of every cell, and what it comes to (docs/compare.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import pandas as pd

from clipguard.comparison.output import comparison_html, comparison_lines, comparison_markdown
from clipguard.comparison.rules import FailOn, Rules
from clipguard.core.checking import check_type
from clipguard.core.errors import ClipguardError, OutputError, ResultError, first_line
from clipguard.core.files.output import OutputFile
from clipguard.core.records.run import ModelRecord

SCHEMA = 1
Verdict = Literal["regression", "inconclusive", "no regression"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)  # worst first
ROUNDING = 1e-9  # points of accuracy that a drop may seem to be more than it is


@dataclass(frozen=True)
class CellChange:
    """One cell of both models, or the average over data sets (`dataset` "average"; `n`, `lost`, `gained` are sums)."""

    dataset: str
    norm: str
    attack: str
    eps: float  # as in the tables
    n: int
    base: float  # accuracy, a fraction
    candidate: float
    change: float  # candidate minus base
    ci_low: float
    ci_high: float
    lost: int  # images that only the base has right
    gained: int
    p_mcnemar: float
    p_regression: float  # adjusted for all cells
    p_harmless: float  # of the test of non-inferiority
    verdict: Verdict
    n_to_decide: int | None  # images at which the verdict would be clear if the rates seen here are the true ones
    detectable_drop: float | None  # the smallest drop that would be called a regression here; None: none would


class StoppingPoint(TypedDict):
    """`sequential` in the JSON: images used (`n`) and at hand (`of`) by data set, and the share that was saved."""

    looks: list[int]
    n: dict[str, int]
    of: dict[str, int]
    saved: float


@dataclass(frozen=True)
class Batches:
    """How images are taken one batch after the other.

    Attributes:
        order: of each data set, the indices of all images that may be taken, in random order.
        looks: numbers of images a data set after which was looked, ascending; the last is where it stopped.
    """

    order: Mapping[str, Sequence[int]]
    looks: tuple[int, ...]

    def stopping_point(self) -> StoppingPoint:
        """Where it stopped."""
        of = {name: len(indices) for name, indices in self.order.items()}
        n = {name: min(count, self.looks[-1]) for name, count in of.items()}
        return {"looks": list(self.looks), "n": n, "of": of, "saved": 1 - sum(n.values()) / sum(of.values())}


@dataclass(frozen=True)
class Comparison:
    """What `clipguard compare` found.

    Attributes:
        base: the name of a model.
        candidate: the same.
        models: where they came from, by "base" and "candidate".
        rules: under which they were compared.
        differences: why the results are not like for like; empty unless comparing was forced.
        cells: what changed.
        sequential: where it stopped, if images were taken in batches.
        warnings: what the clean predictions of either give away, a line each (docs/doctor.md).
    """

    base: str
    candidate: str
    models: Mapping[str, ModelRecord]
    rules: Rules
    differences: tuple[str, ...]
    cells: tuple[CellChange, ...]
    sequential: StoppingPoint | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """The comparison in a file that `save` or `clipguard compare --format json` wrote.

        Raises:
            ResultError: for a file that is missing, damaged, or no comparison.
        """
        check_type("`path`", path, str | Path, ResultError)
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResultError(f"{path} cannot be read ({first_line(error)}); name a file of `compare`.") from error
        try:
            return cls._of_dict(content)
        except (KeyError, TypeError, ClipguardError) as error:
            raise ResultError(f"{path} is no comparison with schema {SCHEMA}; compare the results again.") from error

    @classmethod
    def _of_dict(cls, content: dict[str, Any]) -> Comparison:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ClipguardError for anything else."""
        if content["schema"] != SCHEMA:
            raise KeyError("schema")
        values = {name.name: content[name.name] for name in fields(cls)}
        rules = Rules(**(values["rules"] | {"metrics": tuple(values["rules"]["metrics"])}))
        cells = tuple(CellChange(**cell) for cell in values["cells"])
        texts = {name: tuple(values[name]) for name in ("differences", "warnings")}
        return cls(**(values | {"rules": rules, "cells": cells} | texts))

    def save(self, path: str | Path) -> Path:
        """Write the JSON of `clipguard compare` (docs/compare.md), which `load` reads.

        Args:
            path: a new file.

        Returns:
            The file.

        Raises:
            OutputError: if it exists, or cannot be written; nothing is overwritten.
        """
        check_type("`path`", path, str | Path, OutputError)
        with OutputFile(Path(path), option="`path`") as file:
            file.write((self.to_json() + "\n").encode())
        return Path(path)

    @property
    def verdict(self) -> Verdict:
        """The worst of all cells."""
        return min((cell.verdict for cell in self.cells), key=VERDICTS.index)

    @property
    def settled(self) -> bool:
        """Whether more images could not change the verdict: a regression somewhere, or none anywhere."""
        return self.verdict != "inconclusive"

    def failed(self, fail_on: FailOn = "regression") -> list[CellChange]:
        """The cells that fail under `fail_on`; regressions always do."""
        return [cell for cell in self.cells if self._fails(cell, fail_on)]

    def _fails(self, cell: CellChange, fail_on: FailOn) -> bool:
        if fail_on == "any-drop" and -100 * cell.change > self.rules.max_drop + ROUNDING:
            return True
        return cell.verdict == "regression" or (fail_on == "inconclusive" and cell.verdict == "inconclusive")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"schema": SCHEMA, "verdict": self.verdict} | asdict(self)

    def to_json(self) -> str:
        """Strict JSON: no NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One row a cell, with the fields of `CellChange`."""
        columns = [column.name for column in fields(CellChange)]
        return pd.DataFrame([asdict(cell) for cell in self.cells], columns=columns)

    def to_markdown(self) -> str:
        """A table to post under a pull request, with the verdict below it."""
        return comparison_markdown(self)

    def __repr__(self) -> str:
        return "Comparison: " + "\n".join(comparison_lines(self))

    def _repr_html_(self) -> str:
        return comparison_html(self)
