"""Who computes a run: this process, or workers on Ray."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.workers.worker import Worker, Workers
from clipguard.core.errors import ClipguardError

log = logging.getLogger("clipguard")


@contextmanager
def open_workers(plan: BenchPlan, objects: Objects, *, keep_images: bool = False) -> Iterator[Workers]:
    """Start who computes, and end them with the block; for `keep_images` see `Worker`.

    Raises:
        ClipguardError: where Ray is needed and is not installed, or its cluster cannot be reached; for settings that
            several workers cannot follow.
    """
    workers = count_workers(plan)
    if plan.ray is None and workers == 1:
        yield Worker(plan, objects, keep_images=keep_images)
        return
    if importlib.util.find_spec("ray") is None:
        raise ClipguardError('Several `workers` need Ray: pip install "clipguard[ray]".')
    from clipguard.benchmark.workers.ray_workers import ray_workers

    with ray_workers(plan, objects, workers, keep_images=keep_images) as several:
        yield several


def count_workers(plan: BenchPlan) -> int | None:
    """How many workers a plan asks for; None: as many as a cluster has room for.

    Raises:
        ClipguardError: for settings that several workers cannot follow.
    """
    if plan.ray is not None and not plan.ray.strip():
        raise ClipguardError("`ray` names no cluster: auto, HOST:PORT or ray://HOST:PORT.")
    if plan.ray is not None or plan.workers not in (None, 1):
        if plan.engine == "reference":
            raise ClipguardError("`engine=reference` draws random numbers for a batch as a whole; leave out `workers`.")
        if plan.device.startswith("cuda:"):
            raise ClipguardError(f"`device={plan.device}` is one GPU; with several `workers` name `device=cuda`.")
    images = plan.part[1] - plan.part[0] if plan.part else plan.n_samples
    if plan.workers is not None and images is not None and plan.workers > max(1, images):
        log.warning("%d `workers` are asked for, and %d images: so many start.", plan.workers, images)
        return max(1, images)
    if plan.workers is not None or plan.ray is not None:
        return plan.workers
    gpus = _visible_gpus() if plan.device in ("auto", "cuda") and plan.engine != "reference" else 0
    if gpus > 1 and importlib.util.find_spec("ray") is None:
        log.info('One of %d GPUs is used: pip install "clipguard[ray]" for all, `workers=1` for one.', gpus)
        return 1
    return max(1, gpus)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()
