"""Ray itself: started for a run on this machine, or joined where it runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch

from clipguard.core.environment.device import processors
from clipguard.core.errors import ClipguardError, first_line

CONNECT_SECONDS = 5.0
CLIENT_PORT, PORT = 10001, 6379
log = logging.getLogger("clipguard")


@contextmanager
def connected(address: str | None, workers: int | None, device: str) -> Iterator[None]:
    """Join the Ray cluster at an address (None: start one of this machine), and leave it with the block.

    A session that the program has already is used, and stays.

    Raises:
        ClipguardError: where there is none.
    """
    if address not in (None, "auto"):
        _reach(address)
    if ray.is_initialized():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _keep_stdout_clean()
    try:
        if address is None:
            _start(workers or 1, device, quiet)
        else:
            _join(address, quiet)
        for number, handler in handlers.items():  # Ray has set its own
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def _keep_stdout_clean() -> None:
    """Ray prints there what it thinks of workers that die; that they do is said by who waits for them."""
    ray._private.worker.print_to_stdstream = lambda *_args, **_options: None


def _start(workers: int, device: str, quiet: dict[str, Any]) -> None:
    """A cluster of this machine, which ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cpus = max(workers, processors())
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    try:
        ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, **quiet)
    except Exception as error:  # ports, sockets, memory: of many types
        raise ClipguardError(f"Ray does not start here ({first_line(error)}); leave out `workers`.") from error


def _join(address: str, quiet: dict[str, Any]) -> None:
    """A cluster that runs."""
    try:
        ray.init(address, **({} if address.startswith("ray://") else quiet))
    except Exception as error:  # nothing there, another version of Ray or Python: of many types
        raise ClipguardError(
            f"No Ray cluster at `ray={address}` ({first_line(error)}); start one with `ray start --head`."
        ) from error


def _reach(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        host, port = port, str(CLIENT_PORT if address.startswith("ray://") else PORT)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClipguardError(
            f"No Ray cluster answers at `ray={address}` ({first_line(error)}); `ray status` on its head node shows the "
            "address."
        ) from error


def resources_of_worker(device: str, workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, and what each asks of the cluster.

    A worker has a GPU, or its share of the processors: with None for `workers` there is one a GPU, else one a node.

    Raises:
        ClipguardError: where no node has what a worker needs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device == "cuda" and not gpus:
        raise ClipguardError("`device=cuda`, and the Ray cluster has no GPU; leave out `device`, or name cpu.")
    if gpus and device in ("auto", "cuda"):
        return _at_most(workers, gpus, "GPU"), {"num_gpus": 1, "num_cpus": 1}
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if workers is None:
        return len(nodes), {"num_cpus": max(1, min(cpus))}
    count = _at_most(workers, sum(cpus), "processor")
    return count, {"num_cpus": max(1, sum(cpus) // count)}


def _at_most(workers: int | None, room: int, what: str) -> int:
    if workers is not None and workers > room:
        log.warning("%d `workers` are asked for; there is one %s for each of %d, which start.", workers, what, room)
    return min(workers or room, room)
