"""How many workers a cluster has room for, and what each asks of it: from what its nodes have."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from clipguard.core.errors import ClipguardError

USED = 0.9  # of a cluster's processors at least, where the number of workers is free
log = logging.getLogger("clipguard")


def share_out(nodes: Sequence[Mapping[str, float]], device: str, workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, and what each asks of the cluster: a GPU, or processors, the same number for each.

    Args:
        nodes: what each has, as Ray names it.
        device: of the plan.
        workers: how many are asked for; None: one a GPU, else as few as use the processors.

    Raises:
        ClipguardError: where no node has what a worker needs.
    """
    if device in ("auto", "cuda"):
        gpus = sum(min(int(node.get("GPU", 0)), int(node.get("CPU", 0))) for node in nodes)
        if gpus:
            return _at_most(workers, gpus), {"num_gpus": 1, "num_cpus": 1}
        if device == "cuda":
            raise ClipguardError(
                "`device=cuda`, and no node of the Ray cluster has a GPU, and a processor for its worker; leave out "
                "`device`, or name cpu."
            )
    cpus = [count for node in nodes if (count := int(node.get("CPU", 0)))]
    if not cpus:
        raise ClipguardError("No node of the Ray cluster has a processor for a worker: start one with `--num-cpus`.")
    threads = threads_of_worker(cpus, workers)
    too_small = sum(count < threads for count in cpus)
    if too_small:
        log.info(
            "%d of %d nodes have too few processors for a worker of %d, and get none.", too_small, len(cpus), threads
        )
    return _at_most(workers, _fitting(cpus, threads)), {"num_cpus": threads}


def threads_of_worker(cpus: Sequence[int], workers: int | None) -> int:
    """The most processors of a worker with which so many fit on nodes; with None, with which hardly any are left over.

    Args:
        cpus: of each node.
        workers: how many are to fit.
    """
    if workers is None:
        candidates = [n for n in range(1, max(cpus) + 1) if n * _fitting(cpus, n) >= USED * sum(cpus)]
    else:
        candidates = [n for n in range(1, max(cpus) + 1) if _fitting(cpus, n) >= workers]
    return max(candidates, default=1)


def _fitting(cpus: Sequence[int], threads: int) -> int:
    """How many workers of so many threads find room."""
    return sum(count // threads for count in cpus)


def _at_most(workers: int | None, room: int) -> int:
    if workers is not None and workers > room:
        log.warning("%d `workers` are asked for, and there is room for %d, which start.", workers, room)
    return min(workers or room, room)
