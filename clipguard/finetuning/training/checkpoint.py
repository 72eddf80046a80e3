"""Checkpoints that are complete or not there: whatever moment a run is killed at, it can go on from the last one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from clipguard.core.errors import FinetuneError, OutputError, first_line
from clipguard.core.files.atomic_files import replacing

FOLDER = "checkpoints"
Weights = dict[str, Tensor]


class TrainingState(TypedDict):
    """What a run goes on from."""

    position: dict[str, Any]  # fields of `Position`
    student: Weights  # of the model in training
    average: Weights | None  # of its moving average, with its count
    optimizers: dict[str, dict[str, Any]]  # by name
    metrics: int  # size of `metrics.jsonl`


class Checkpoints:
    """The newest checkpoint of a run, `checkpoints/step-NNNNNN.pt`, and the best weights, `checkpoints/best-NNNNNN.pt`.

    Best weights are written when they are found and removed only when a newer checkpoint no longer names them, so the
    newest checkpoint's best is always there.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER

    def save(self, step: int, state: TrainingState, best_step: int | None) -> None:
        """Write a checkpoint, then remove older ones.

        Args:
            step: steps done.
            state: what a run goes on from.
            best_step: step of the best weights so far, which stay; None if there are none.

        Raises:
            OutputError: if the disk does not take it.
        """
        path = self._path("step", step)
        _write(path, state)
        keep = {path, self._path("best", best_step)}
        for other in self.folder.iterdir():
            if other not in keep:
                other.unlink()

    def save_best(self, step: int, weights: Weights) -> None:
        """Write the best weights so far.

        Raises:
            OutputError: if the disk does not take them.
        """
        _write(self._path("best", step), weights)

    def latest(self) -> TrainingState | None:
        """The newest checkpoint's state; None if the run was stopped before its first."""
        paths = sorted(self.folder.glob("step-*.pt")) if self.folder.is_dir() else []
        return cast(TrainingState, _read(paths[-1])) if paths else None

    def best(self, step: int) -> Weights:
        """The weights that `save_best` wrote at that step."""
        return _read(self._path("best", step))

    def last(self, averaged: bool) -> Weights:
        """The newest checkpoint's weights, or those of its moving average."""
        state = self.latest()
        assert state is not None  # one is written after the last step
        if not averaged:
            return state["student"]
        average = state["average"] or {}
        return {name.removeprefix("module."): value for name, value in average.items() if name.startswith("module.")}

    def remove(self) -> None:
        """Delete all of it, when the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, kind: str, step: int | None) -> Path:
        return self.folder / f"{kind}-{step or 0:08d}.pt"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=True) as part, part.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise OutputError(f"Cannot write {path}: {first_line(error)}. The checkpoint before it is kept.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # OSError, RuntimeError, UnpicklingError, EOFError ...
        raise FinetuneError(
            f"{path} cannot be read ({first_line(error)}): start the run again in a new folder."
        ) from error
    return state
