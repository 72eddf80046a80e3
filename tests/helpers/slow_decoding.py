"""Decoders that take their time and say who they are, for tests that stop a run while they work."""

from __future__ import annotations

import time
from os import getpid
from pathlib import Path

from torch.utils.data import get_worker_info

from clipguard.benchmark.task import Task
from clipguard.data.dataset import decode
from clipguard.data.decoding import Decoded
from clipguard.data.images import EncodedImage

AGAIN = "again"  # a file that is there once all images were checked, and are decoded again for the passes


def slow_in_the_check(encoded: EncodedImage, how: str) -> Decoded:
    """Decode slowly while images are checked."""
    return _slow(encoded, how, now=not Path(AGAIN).exists())


def slow_in_the_passes(encoded: EncodedImage, how: str) -> Decoded:
    """Decode slowly while the model is at work."""
    return _slow(encoded, how, now=Path(AGAIN).exists())


def _slow(encoded: EncodedImage, how: str, *, now: bool) -> Decoded:
    if now and get_worker_info() is not None:
        Path(f"pid-{getpid()}").touch()
        time.sleep(0.1)
    return decode(encoded, how)  # type: ignore[arg-type]


_SAY_CHANGES = Task.say_changes


def say_changes(task: Task) -> None:
    """What a task does between the check and the passes, and a file that says so."""
    Path(AGAIN).touch()
    _SAY_CHANGES(task)


def constants(phase: str) -> dict[str, object]:
    """What `Started` changes for decoders that are slow in a phase, 'check' or 'passes'; no image is kept."""
    return {
        "clipguard.benchmark.task.KEPT_BYTES": 0,
        "clipguard.benchmark.task.Task.say_changes": say_changes,
        "clipguard.data.dataset.decode": slow_in_the_check if phase == "check" else slow_in_the_passes,
    }
