"""Workers on Ray: an actor each holds the model, and takes the next block of images when it is done with one.

What they find comes back image by image, and goes into the store from here. A worker that dies is started again by Ray,
and the images it had go to whoever is free.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.exceptions
import torch
from ray import cloudpickle
from torch import Tensor

from clipguard.attacks.engine.outcome import Example, ImageOutcome, Note
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.checks.probing import Probed, ProbedImages
from clipguard.benchmark.images import Images, Preprocess
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.run_record import Place
from clipguard.benchmark.task import KnownOutcomes, Task
from clipguard.benchmark.workers.blocks import Block, Blocks
from clipguard.benchmark.workers.cluster import connected, resources_of_worker
from clipguard.benchmark.workers.remote import Elsewhere, Job, RemoteWorker, Report, Run, Said
from clipguard.benchmark.workers.worker import Tally, Texts
from clipguard.core.errors import ClipguardError, first_line
from clipguard.core.notices import repeat
from clipguard.models.loading import ModelInfo
from clipguard.sanity.checks import Finding

T = TypeVar("T")
CLEAN_BLOCK = 64  # images of a block at least where each takes one pass
FEWEST_ROWS = 16  # that a block begins with: passes of fewer are filled up with black images
WAIT_SECONDS = 1.0
PATIENCE_SECONDS = 20.0  # without a worker before that is said
LOST = (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError, ray.exceptions.OwnerDiedError)
log = logging.getLogger("clipguard")


@contextmanager
def ray_workers(
    plan: BenchPlan, objects: Objects, workers: int | None, *, keep_images: bool = False
) -> Iterator[RayWorkers]:
    """Start workers, and end them with the block.

    Args:
        plan: of the run.
        objects: what names of the plan stand for.
        workers: how many; None: as many as the cluster has room for.
        keep_images: see `Worker`.

    Raises:
        ClipguardError: where the cluster cannot be reached or has no room for one.
    """
    with connected(plan.ray, workers, plan.device):
        several = RayWorkers(plan, objects, workers, keep_images=keep_images)
        try:
            yield several
        finally:
            several.close()


class RayWorkers:
    """See `Workers`."""

    place: Place

    def __init__(self, plan: BenchPlan, objects: Objects, workers: int | None, *, keep_images: bool) -> None:
        """Start them, and wait for the first."""
        count, resources = resources_of_worker(plan.device, workers)
        actor: Any = ray.remote(RemoteWorker)
        actor = actor.options(**resources, max_restarts=-1, max_task_retries=0)
        self.plan = plan
        self.run = _in_store(Run(plan, replace(objects, datasets={}, recipes={}), str(Path.cwd()), keep_images))
        self.actors = [actor.remote() for _ in range(count)]
        self.starting = {one.begin.remote(self.run): one for one in self.actors}
        self.ready: list[Any] = []  # actors that are there
        self.without_images: set[Any] = set()
        self._said: set[str] = set()
        self._jobs = 0
        self._wait_for_one()
        where = "" if plan.ray is None else f" on {plan.ray}"
        log.info("%d worker%s%s: %s", count, "s" if count > 1 else "", where, self.place.machine["device"])

    def close(self) -> None:
        """End them at once."""
        for one in self.actors:
            ray.kill(one)

    def check_models(self, texts: Sequence[Texts]) -> dict[str, ModelInfo]:
        """See `Worker.check_models`."""
        infos: dict[str, ModelInfo] = self.heard(self._ask("check_models", texts))
        return infos

    def take(self, name: str, task: Task) -> Preprocess:
        """See `Workers.take`."""
        self._jobs += 1
        dataset = replace(task.dataset, images=Elsewhere(len(task.dataset)))
        bare = replace(task, dataset=dataset, images=Images(dataset, 0, 0))
        self.task, job = task, Job(self._jobs, name, bare, _in_store(task.dataset.images))
        self.job_reference = ray.put(job)
        self.without_images.clear()
        preprocess: Preprocess = self.heard(self._ask("take", self.job_reference))
        return preprocess

    def describe(self) -> list[str]:
        """See `Workers.describe`."""
        lines: list[str] = self._ask("describe", self.job_reference)
        return lines

    def examine(self, recipe: Recipe, images: ProbedImages, transfer_from: str | None) -> list[Finding]:
        """See `Workers.examine`."""
        findings: list[Finding] = self.heard(self._ask("examine", self.job_reference, recipe, images, transfer_from))
        return findings

    def predict(self, images: Sequence[Tensor]) -> list[Tensor]:
        """See `Workers.predict`."""
        shares: list[Tensor] = self.heard(self._ask("predict", self.job_reference, list(images)))
        return shares

    def key(self, recipe: Recipe, indices: Sequence[int]) -> dict[str, Any]:
        """See `Workers.key`."""
        key: dict[str, Any] = self._ask("key", self.job_reference, recipe, list(indices))
        return key

    def attack(self, recipe: Recipe, indices: Sequence[int], known: Mapping[int, KnownOutcomes], note: Note) -> _Shared:
        """See `Workers.attack`."""
        n_classes, n_eps = len(self.task.dataset.class_names), len(self.plan.eps)
        runs = n_eps * sum(stage.runs(n_classes) for stage in recipe.stages)  # of an image, which go side by side
        blocks = Blocks(indices, len(self.actors), -(-FEWEST_ROWS // runs) if runs else CLEAN_BLOCK)
        return _Shared(self, recipe, blocks, known, note)

    def probe(self, recipe: Recipe, images: ProbedImages) -> Probed:
        """See `Workers.probe`."""
        probed: Probed = self.heard(self._ask("probe", self.job_reference, recipe, images))
        return probed

    def heard(self, said: Said[T]) -> T:
        """An answer, after what was said on the way to it is said here, each line once."""
        for entry in said.notices:
            repeat(entry)
        self._said |= {entry["text"] for entry in said.notices}
        for level, line in said.lines:
            if line not in self._said:
                self._said.add(line)
                log.log(level, "%s", line)
        return said.answer

    def _ask(self, method: str, *args: Any) -> Any:
        """The answer of whoever is there."""
        if not self.ready:
            self._wait_for_one()
        try:
            return get(getattr(self.ready[0], method).remote(self.run, *args))
        except LOST as error:
            raise ClipguardError(
                f"A worker died several times ({first_line(error)}), perhaps for want of memory: use fewer `workers`."
            ) from error

    def _wait_for_one(self) -> None:
        while not (done := ray.wait(list(self.starting), timeout=PATIENCE_SECONDS)[0]):
            log.warning("No worker is there yet: each starts, or waits for room in the cluster.")
        self.arrived(done[0])

    def begin_again(self, worker: Any) -> None:
        """A worker died, and is there again when it says so."""
        self.ready.remove(worker)
        self.starting[worker.begin.remote(self.run)] = worker

    def arrived(self, reference: Any) -> Any:
        """A worker that is there: from now on it gets blocks."""
        worker = self.starting.pop(reference)
        self.place = get(reference)
        self.ready.append(worker)
        return worker


def _in_store(value: Any) -> _Fetch:
    """In pickled form: images, say, cannot be read on a node that has not their files."""
    return _Fetch([ray.put(cloudpickle.dumps(value))], sys.path)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Fetch:
    """Gets a value from Ray's store, with classes from where the driver has them.

    In a list, a reference is left as it is until then.
    """

    reference: list[Any]
    folders: list[str]

    def __call__(self) -> Any:
        sys.path += [folder for folder in self.folders if folder not in sys.path and Path(folder).is_dir()]
        return cloudpickle.loads(ray.get(self.reference[0]))


@dataclass
class _Running:
    """A block at a worker: by what its reports come, and what came."""

    worker: Any
    block: Block
    done: set[int] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)


class _Shared:
    """An attack that workers share; see `Attacking`."""

    def __init__(
        self, workers: RayWorkers, recipe: Recipe, blocks: Blocks, known: Mapping[int, KnownOutcomes], note: Note
    ) -> None:
        self.workers, self.recipe, self.blocks, self.known, self.note = workers, recipe, blocks, known, note
        self._running: dict[Any, _Running] = {}  # by reference
        self._tallies: list[Tally] = []  # of blocks that are over
        # Ray Client knows no answers that come one by one.
        self._at_once = ray.util.client.ray.is_connected()  # type: ignore[no-untyped-call]

    @property
    def passes(self) -> int:
        """Forward passes so far, in images."""
        return sum(tally.passes for tally in self._all())

    def tally(self) -> Tally:
        """What it took so far: the sum over workers."""
        costs: dict[str, Any] = {}
        tallies = self._all()
        for tally in tallies:
            for stage, cost in tally.costs.items():
                costs[stage] = costs[stage] + cost if stage in costs else cost
        sizes = [tally.batch_size for tally in tallies if tally.batch_size]
        answers = [tally.batch_invariance for tally in tallies if tally.batch_invariance]
        answer = min(answers, key=lambda one: one["holds"], default=None)  # the worst
        return Tally(costs, min(sizes, default=None), answer)

    def _all(self) -> list[Tally]:
        return [*self._tallies, *(running.tally for running in self._running.values())]

    def __iter__(self) -> Iterator[ImageOutcome]:
        free = list(self.workers.ready)
        while True:
            while free and (block := self.blocks.take()):
                self._give(free.pop(0), block)
            if not self._running and not self.blocks:
                return
            for reference in ray.wait([*self._running, *self.workers.starting], timeout=WAIT_SECONDS)[0]:
                if reference in self.workers.starting:
                    free.append(self.workers.arrived(reference))
                    continue
                worker = self._running[reference].worker
                yield from self._hear(reference)
                if reference not in self._running and worker in self.workers.ready:
                    free.append(worker)

    def _give(self, worker: Any, block: Block) -> None:
        """Send a block to a worker, with its images if the worker has none."""
        sent = None
        if worker in self.workers.without_images:
            sent = {index: np.asarray(self.workers.task.images.image(index)) for index in block.indices}
        known = {index: self.known[index] for index in block.indices if index in self.known}
        call = worker.attack_at_once if self._at_once else worker.attack.options(num_returns="streaming")
        reference = call.remote(
            self.workers.run, self.workers.job_reference, self.recipe, list(block.indices), known, sent
        )
        self._running[reference] = _Running(worker, block)

    def _hear(self, reference: Any) -> Iterator[ImageOutcome]:
        """What one worker has to report; a block that is over, or whose worker died, runs no more."""
        running = self._running[reference]
        try:
            reports = get(reference) if self._at_once else [get(next(reference))]
        except StopIteration:
            self._tallies.append(self._running.pop(reference).tally)
            return
        except LOST as error:
            self._tallies.append(self._running.pop(reference).tally)
            log.warning("A worker died (%s); its images go to another one.", type(error).__name__)
            self.workers.begin_again(running.worker)
            self.blocks.give_back(running.block, running.done)
            return
        for said in reports:
            yield from self._take_in(running, self.workers.heard(said))
        if self._at_once:
            self._tallies.append(self._running.pop(reference).tally)

    def _take_in(self, running: _Running, report: Report) -> Iterator[ImageOutcome]:
        if report.needs_images:
            self.workers.without_images.add(running.worker)
            self.blocks.put_back(running.block)
            return
        running.tally = report.tally
        labels = self.workers.task.dataset.labels
        for index, prediction, outcome in report.notes:
            example = Example(index, torch.empty(0), int(labels[index]), self.known.get(index, {}))
            self.note(example, prediction, outcome)
        if report.outcome is not None:
            running.done.add(report.outcome.index)
            yield report.outcome


def get(reference: Any) -> Any:
    """The answer of a worker.

    Raises:
        ClipguardError: as the worker raised it; other errors in a line, their traceback goes into a file.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ClipguardError):
            raise error.cause from None
        number, path = tempfile.mkstemp(prefix="clipguard-worker-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(str(error))
        raise ClipguardError(f"A worker failed: {first_line(error.cause)}. Its traceback is in {path}.") from error
