"""Start the processes of a run on this machine, and see how they end; what torchrun does, for `clipguard` itself."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from clipguard.core.environment.launcher import LAUNCHER
from clipguard.core.errors import FinetuneError


def start_processes(n: int, arguments: Sequence[str]) -> int:
    """Run `clipguard ARGUMENTS` in n processes that know of each other; returns the exit code.

    The first that fails ends all. Threads are shared among them, unless OMP_NUM_THREADS is set.

    Args:
        n: how many, at least 2.
        arguments: of the command line.

    Returns:
        0, or what the process that failed first has ended with, which it has said.

    Raises:
        FinetuneError: if one was killed, which it could not say.
        KeyboardInterrupt: at Ctrl-C, once all have ended.
    """
    _silence_torch()
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "clipguard", *arguments)
        except ChildFailedError as error:
            return _exit_code(n, {rank: failure.exitcode for rank, failure in error.failures.items()})
        except SignalException as received:
            if received.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            return 128 + received.sigval
    return 0


def end_with_launcher() -> None:
    """End this process when the one that started it is gone, however that ended; without `start_processes`, nothing."""
    if LAUNCHER not in os.environ:
        return
    parent = int(os.environ[LAUNCHER])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(128 + signal.SIGTERM)  # in the middle of whatever it does: the last checkpoint is complete

    threading.Thread(target=watch, daemon=True).start()


def _silence_torch() -> None:
    """What its launcher logs of processes that end is said here."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _exit_code(n: int, codes: dict[int, int]) -> int:
    """Of processes that failed; of those that were killed the others have not said anything."""
    killed = {rank: -code for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM}
    for rank, number in killed.items():
        who = f"Process {rank} of {n} was killed by {signal.Signals(number).name}"
        raise FinetuneError(f"{who}: `resume` goes on from the last checkpoint.")
    return max(codes.values()) if max(codes.values()) > 0 else 128 + signal.SIGTERM
