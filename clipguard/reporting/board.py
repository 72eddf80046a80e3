"""Several results side by side: which are read, what each model is called, and what may be averaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pandas as pd

from clipguard.adversarial.result import ATTACK_RECORD, RUN_FILE, AttackRunFile
from clipguard.benchmark.results.result import RESULTS, BenchResult, Cell, refuse_newer
from clipguard.benchmark.results.table import AVERAGE, Row, columns, eps_text, rows_of_sets
from clipguard.comparison.comparability import unlike
from clipguard.core.errors import ResultError, first_line
from clipguard.statistics.intervals import average_interval

CLEAN = "none"  # the attack of clean cells
SHOWN_PREFIX = 12  # characters of a name's start that stay when it is cut


@dataclass(frozen=True)
class Run:
    """A result of `clipguard bench`, its number in the report, and the path as the user gave it."""

    number: int
    path: str
    result: BenchResult


@dataclass(frozen=True)
class Images:
    """A folder of `clipguard attack`, its number in the report, and the content of its `run.json`."""

    number: int
    path: Path
    content: AttackRunFile


def read_runs(given: Sequence[Path | BenchResult]) -> tuple[list[Run], list[Images]]:
    """Results as they are, and those at paths: folders of `clipguard bench` and `clipguard attack`, or `results.json`.

    Raises:
        ResultError: for what is neither, is damaged, empty or named twice, and if there is no bench at all.
    """
    runs: list[Run] = []
    images: list[Images] = []
    seen: dict[Path, Path] = {}
    for number, path in enumerate(given, start=1):
        if isinstance(path, BenchResult):
            runs.append(Run(number, "in memory", _require_cells(path, "The result in memory")))
            continue
        where = (path / RESULTS if path.is_dir() else path).resolve()
        if where in seen:
            raise ResultError(f"{path} is named twice (as {seen[where]}); name each run once.")
        seen[where] = path
        if (path / RUN_FILE).is_file() and not (path / RESULTS).is_file():
            images.append(Images(number, path, _read_images(path)))
            continue
        if (path / ATTACK_RECORD).is_file():
            what = f"{path} is what `AttackResult.save` wrote, which is no run"
            raise ResultError(f"{what}: report folders of `clipguard bench`, or of the command `clipguard attack`.")
        runs.append(Run(number, str(path), _require_cells(BenchResult.load(path), str(path))))
    if not runs:
        raise ResultError(
            "There is no result of `clipguard bench` among them; name one, as in runs/20260102-030405-tiny."
        )
    return runs, images


def _require_cells(result: BenchResult, where: str) -> BenchResult:
    if not result.cells:
        raise ResultError(f"{where} has no finished cell; run `clipguard bench` to its end.")
    return result


def _read_images(path: Path) -> AttackRunFile:
    try:
        content = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{path / RUN_FILE} cannot be read ({first_line(error)}); attack the images again."
        ) from error
    refuse_newer(content, path / RUN_FILE)
    if not isinstance(content, dict) or not {"run", "cells", "images"} <= set(content):
        raise ResultError(f"{path / RUN_FILE} is not of `clipguard attack`; name its folder, or one of bench.")
    return cast(AttackRunFile, content)


@dataclass(frozen=True)
class Board:
    """All results under one norm.

    `model` in cells and samples is the model's label: its name, with the number of its run where that is needed.
    """

    norm: str
    cells: list[Cell]
    samples: pd.DataFrame  # with the columns `run`, a number, and `typed`, the model's name
    class_names: dict[tuple[str, str], list[str]]  # by (model, data set)
    models: list[str] = field(init=False)
    datasets: list[str] = field(init=False)
    shared: list[str] = field(init=False)  # data sets that every model has

    def __post_init__(self) -> None:
        """Names in order of appearance."""
        object.__setattr__(self, "models", list(dict.fromkeys(c.model for c in self.cells)))
        object.__setattr__(self, "datasets", list(dict.fromkeys(c.dataset for c in self.cells)))
        have = {(c.model, c.dataset) for c in self.cells}
        shared = [d for d in self.datasets if all((m, d) in have for m in self.models)]
        object.__setattr__(self, "shared", shared)

    @property
    def attacks(self) -> list[str]:
        """Attacks in order of appearance, without clean."""
        return list(dict.fromkeys(c.attack for c in self.cells if c.attack != CLEAN))

    @property
    def eps(self) -> list[float]:
        """Every eps that was attacked at, ascending."""
        return sorted({c.eps for c in self.cells if c.attack != CLEAN})

    def cell(self, model: str, dataset: str, attack: str, eps: float) -> Cell | None:
        """The cell of that key, if there is one."""
        key = (model, dataset, attack, eps)
        return next((c for c in self.cells if (c.model, c.dataset, c.attack, c.eps) == key), None)

    def point(self, model: str, dataset: str, attack: str, eps: float) -> tuple[float, float, float] | None:
        """(accuracy, low, high) of a cell; for `AVERAGE` over the shared data sets, if all have it."""
        names = self.shared if dataset == AVERAGE else [dataset]
        cells = [self.cell(model, name, attack, eps) for name in names]
        points = [(c.accuracy, c.ci_low, c.ci_high) for c in cells if c]
        return average_interval(points) if points and len(points) == len(cells) else None

    def rows(self) -> list[Row]:
        """The table: a row a model and data set, and each model's average over the shared sets if there are several."""
        out: list[Row] = []
        for model in self.models:
            out += rows_of_sets([cell for cell in self.cells if cell.model == model])
            if len(self.shared) > 1:
                out.append(self._average(model))
        return out

    def _average(self, model: str) -> Row:
        n = sum(c.n for c in self.cells if (c.model, c.attack) == (model, CLEAN) and c.dataset in self.shared)
        values: dict[tuple[str, float], tuple[float, Cell | None]] = {}
        for attack, eps in columns(self.cells):
            point = self.point(model, AVERAGE, attack, eps)
            if point:
                mean = Cell(model, AVERAGE, self.norm, eps, attack, n, 0, *point, {})
                values[attack, eps] = (point[0], mean)
        return Row(model, AVERAGE, n, values)

    def panels(self) -> list[str]:
        """What gets a plot of its own: the average, if there is one, and the data sets."""
        return [AVERAGE, *self.datasets] if len(self.shared) > 1 else self.datasets

    def eps_text(self, eps: float) -> str:
        """`4/255`, or `l2 0.5`."""
        return eps_text(eps, self.norm)


def make_boards(runs: Sequence[Run]) -> list[Board]:
    """A board for each norm among the runs."""
    labels = _labels(runs)
    parts: dict[str, list[tuple[Run, str]]] = {}
    for run in runs:
        for norm in dict.fromkeys(c.norm for c in run.result.cells):
            parts.setdefault(norm, []).append((run, norm))
    return [_board(norm, [run for run, _ in group], labels) for norm, group in parts.items()]


def _board(norm: str, runs: list[Run], labels: dict[tuple[int, str], str]) -> Board:
    cells: list[Cell] = []
    frames: list[pd.DataFrame] = []
    names: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        cells += [replace(c, model=labels[run.number, c.model]) for c in run.result.cells if c.norm == norm]
        frame = run.result.samples
        frame = frame[frame["norm"] == norm]
        of_run = {name: labels[run.number, name] for name in frame["model"].unique()}
        frames.append(frame.assign(run=run.number, typed=frame["model"], model=frame["model"].map(of_run)))
        for dataset, record in run.result.run["datasets"].items():
            names |= {(label, dataset): record["class_names"] for label in of_run.values()}
    return Board(norm, cells, pd.concat(frames, ignore_index=True), names)


def _labels(runs: Sequence[Run]) -> dict[tuple[int, str], str]:
    """What each model of each run is called: with the number of its run where one name stands for two results."""
    labels: dict[tuple[int, str], str] = {}
    for name in dict.fromkeys(c.model for run in runs for c in run.result.cells):
        having = [run for run in runs if any(c.model == name for c in run.result.cells)]
        keys = [(c.norm, c.dataset, c.attack, c.eps) for r in having for c in r.result.cells if c.model == name]
        weights = {r.result.run["models"][name]["sha256"] for r in having}
        alone = len(having) == 1 or (len(keys) == len(set(keys)) and len(weights) == 1)
        labels |= {(run.number, name): name if alone else f"{name} (run {run.number})" for run in having}
    return labels


def differences(runs: Sequence[Run]) -> list[str]:
    """Why the runs are not like for like, a sentence each; none if they are."""
    first = runs[0]
    return [
        f"Run {run.number} is not like run {first.number}: {reason}."
        for run in runs[1:]
        for reason in unlike(first.result.run, run.result.run, (f"run {first.number}", f"run {run.number}"))
    ]


def short_names(names: Sequence[str], width: int = 26) -> dict[str, str]:
    """Names that fit a plot, told apart: `tiny`, `local-dir:ru…tuned/lite0`; those cut alike get a number."""
    out: dict[str, str] = {}
    for name in names:
        tail = width - SHOWN_PREFIX - 1
        cut = name if len(name) <= width else f"{name[:SHOWN_PREFIX]}…{name[-tail:]}"
        out[name] = next(text for text in _numbered(cut) if text not in out.values())
    return out


def _numbered(text: str) -> Iterator[str]:
    yield text
    yield from (f"{text} #{i}" for i in range(2, 10_000))
