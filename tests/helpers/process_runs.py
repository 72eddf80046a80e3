"""Training by several processes, which tests start once for many short runs."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from forked import server
from shared_vocabulary import shared_vocabulary
from training_runs import StopsAfter, make_config, make_trainer

from clipguard.core.progress import Silent
from clipguard.finetuning.processes.launch import Launch
from clipguard.finetuning.processes.meeting import joined
from clipguard.finetuning.training.metrics import read_metrics

Row = dict[str, Any]
Runs = Mapping[str, Mapping[str, Any]]  # settings by name


def train_all(runs: Runs, n: int, folder: Path, stop: int = 0) -> dict[str, list[Row]]:
    """Train by each of the settings with n processes; the rows of each run's `metrics.jsonl`.

    `stop`: the step at which each is interrupted, without a word; runs that are in the folder go on.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launches = [Launch(rank, n, rank, n, "127.0.0.1", port) for rank in range(n)]
    processes = [server().Process(target=_train, args=(runs, launch, folder, stop)) for launch in launches]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    codes = [process.exitcode for process in processes]
    errors = "".join(path.read_text() for path in folder.glob("error-*"))
    assert codes == [0] * n, errors
    return {name: read_metrics(folder / name) for name in runs}


def _train(runs: Runs, launch: Launch, folder: Path, stop: int) -> None:
    try:
        torch.set_num_threads(1)
        if launch.size > 1:
            os.environ.update(launch.variables())
        with shared_vocabulary(), joined("cpu", 60) as team:
            for name, settings in runs.items():
                trainer = make_trainer(make_config(**settings), folder / name, team)
                trainer.settle(None)
                with suppress(KeyboardInterrupt):
                    trainer.train(StopsAfter(stop) if stop else Silent(), 0)
    except BaseException:
        (folder / f"error-{launch.rank}").write_text(traceback.format_exc())
        os._exit(1)
