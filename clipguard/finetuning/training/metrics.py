"""The numbers of every step: kept on the device, looked at several steps at a time, written to `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.processes.team import ALONE, Team

METRICS_NAME = "metrics.jsonl"
# What a row has beside the loss and its terms.
NOT_LOSSES = ("step", "attack", "clean_accuracy", "adversarial_accuracy", "image_gradient", "text_gradient")
StepRow = dict[str, float]  # "step", "loss", the loss terms by name, and some of `NOT_LOSSES`


class MetricsBuffer:
    """Collects scalars as they are, so that a GPU is not made to wait for each, and reads them all at once."""

    def __init__(self, team: Team = ALONE, share: float = 1.0) -> None:
        """`share`: how much of every batch is this process's; numbers are means over the images of all."""
        self._team, self._share = team, share
        self._steps: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, passes: list[dict[str, Tensor]], norms: Mapping[str, Tensor]) -> None:
        """Scalars by name of each pass of a step, which are averaged, and the norms of the gradients."""
        values = passes[0]
        if len(passes) > 1:
            values = {name: torch.stack([p[name] for p in passes]).mean() for name in values}
        self._steps.append((step, values | dict(norms)))

    def flush(self) -> list[StepRow]:
        """A row of plain numbers for each step since the last time.

        Raises:
            FinetuneError: at the first step with a number that is NaN or infinite; it names both.
        """
        tensors = [value.float() for _, values in self._steps for value in values.values()]
        numbers = iter(self._mean(torch.stack(tensors)).tolist() if tensors else [])
        rows = [{"step": step} | {name: next(numbers) for name in values} for step, values in self._steps]
        self._steps.clear()
        with self._team.agree():
            for row in rows:
                _require_finite(row)
        return rows

    def _mean(self, numbers: Tensor) -> Tensor:
        return self._team.sum(self._share * numbers) if self._team.size > 1 else numbers


def _require_finite(row: StepRow) -> None:
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        good = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step" and name not in bad)
        raise FinetuneError(
            f"Step {row['step']:.0f}: {bad[0]} is {row[bad[0]]}{f' ({good})' if good else ''}. Lower `lr`, or set"
            " `grad_clip=1`."
        )


def describe_step(row: StepRow) -> str:
    """A step's loss, its terms and accuracies, on one line."""
    names = [name for name in row if name not in NOT_LOSSES and name != "loss"]
    terms = ", ".join(f"{name} {row[name]:.3g}" for name in names)
    accuracies = [(word, row.get(f"{word}_accuracy")) for word in ("clean", "adversarial")]
    percent = "".join(f" · {word} {100 * value:.0f} %" for word, value in accuracies if value is not None)
    return f"loss {row['loss']:.3g}{f' ({terms})' if len(names) > 1 else ''}{percent}"


class MetricsLog:
    """`metrics.jsonl`: a JSON object a line. `size` is what a checkpoint remembers and a resumed run goes back to."""

    def __init__(self, folder: Path, size: int = 0, *, writes: bool = True) -> None:
        """`writes`: whether this is the process that writes it."""
        self._file = None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / METRICS_NAME).open("a+b")
            self._file.truncate(size)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows."""
        if self._file is not None:
            self._file.writelines(json.dumps(row).encode() + b"\n" for row in rows)

    def size(self) -> int:
        """Bytes written, all of them on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Write out what is left."""
        if self._file is not None:
            self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`: those of steps, and `{"step": ..., "validation": ...}`."""
    return [json.loads(line) for line in (folder / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
