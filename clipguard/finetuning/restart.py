"""A run that its launcher has started again, or a user: which folder it has, and how its settings are read."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from clipguard.core.files.locks import InUseError
from clipguard.core.files.output import OutputFolder
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.output.record import RUN_NAME, RunRecord, read_run

PATIENCE = 20.0  # seconds in which what is left of killed processes lets go of their folder


class ResumedFolder(OutputFolder):
    """The folder of an interrupted run."""

    def may_go_on(self) -> bool:
        """Yes; what is in it was looked at."""
        return True


def take_again(path: Path) -> OutputFolder:
    """The folder of a run whose processes have just been killed.

    Raises:
        OutputError: if it is still in use after `PATIENCE`.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ResumedFolder(path)
        except InUseError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def begun_in(path: Path) -> RunRecord | None:
    """The record of the run that has taken this folder; None before it was written."""
    return read_run(path) if (path / RUN_NAME).exists() else None


def settings_of_run(run: RunRecord) -> FinetuneConfig:
    """The settings that a run goes on with, whatever the number of processes: a step keeps its images.

    Before `batch_size` and `effective_batch` counted images over all processes, they did so for each: where a step had
    more images than the settings say, they are multiplied.
    """
    config = FinetuneConfig.from_dict(run["config"])
    images = run.get("resolved", {}).get("images_per_step", 0)  # missing: it was killed before it knew
    factor = max(1, images // (config.images_per_batch * config.accumulate))
    sizes = {name: getattr(config, name) for name in ("batch_size", "effective_batch")}
    return replace(config, **{name: size and factor * size for name, size in sizes.items()})


def images_of_a_pass(run: RunRecord) -> int:
    """What a process took at a time when the run began."""
    resolved, config = run["resolved"], settings_of_run(run)
    return resolved.get("micro_batch") or -(-config.images_per_batch // resolved["processes"])
