"""Workers on Ray: an actor each holds the model, and takes the next block of images when it is done with one.

What they find comes back image by image, and goes into the store from here. Another one takes the place of a worker
that dies (`crew.py`), and the images it had go to whoever is free.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
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
from clipguard.benchmark.workers.cluster import connected, nodes
from clipguard.benchmark.workers.crew import LOST, Crew, get
from clipguard.benchmark.workers.remote import Elsewhere, Job, Report, Run, Said
from clipguard.benchmark.workers.room import share_out
from clipguard.benchmark.workers.worker import Tally, Texts
from clipguard.core.errors import ClipguardError
from clipguard.core.notices import repeat
from clipguard.models.loading import ModelInfo
from clipguard.sanity.checks import Finding

T = TypeVar("T")
WAIT_SECONDS = 1.0
ATTEMPTS = 3  # at what comes before and after the attack, where workers die of it
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
        count, resources = share_out(nodes(), plan.device, workers)
        self.plan = plan
        self.run = _in_store(Run(plan, replace(objects, datasets={}, recipes={}), str(Path.cwd()), keep_images))
        self.crew = Crew(self.run, count, resources)
        self.without_images: set[Any] = set()
        self._said: set[str] = set()
        self._jobs = 0
        try:
            self.crew.wait_for_one()
        except BaseException:
            self.close()
            raise
        self.place = self.crew.place
        where = "" if plan.ray is None else f" on {plan.ray}"
        log.info("%d worker%s%s: %s", count, "s" if count > 1 else "", where, self.place.machine["device"])

    def close(self) -> None:
        """End them at once."""
        self.crew.close()

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

    def predict(self, images: Sequence[Tensor], originals: Sequence[Tensor] | None = None) -> list[Tensor]:
        """See `Workers.predict`."""
        clean = None if originals is None else list(originals)
        shares: list[Tensor] = self.heard(self._ask("predict", self.job_reference, list(images), clean))
        return shares

    def key(self, recipe: Recipe, indices: Sequence[int]) -> dict[str, Any]:
        """See `Workers.key`."""
        key: dict[str, Any] = self._ask("key", self.job_reference, recipe, list(indices))
        return key

    def attack(self, recipe: Recipe, indices: Sequence[int], known: Mapping[int, KnownOutcomes], note: Note) -> _Shared:
        """See `Workers.attack`."""
        n_classes, n_eps = len(self.task.dataset.class_names), len(self.plan.eps)
        blocks = Blocks.of(recipe, indices, self.crew.count, n_classes, n_eps)
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
        why = ""
        for _ in range(ATTEMPTS):
            self.crew.wait_for_one()
            worker = self.crew.ready[0]
            try:
                return get(getattr(worker, method).remote(self.run, *args))
            except LOST as error:
                why = self.crew.lost(worker, error)
        raise ClipguardError(
            f"{ATTEMPTS} workers died one after the other: {why}. What is stored is kept; use fewer `workers`, or "
            "nodes with more memory."
        )


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
        crew = self.workers.crew
        free = list(crew.ready)
        while True:
            while free and (block := self.blocks.take()):
                self._give(free.pop(0), block)
            if not self._running and not self.blocks:
                return
            for reference in ray.wait([*self._running, *crew.starting], timeout=WAIT_SECONDS)[0]:
                if reference in crew.starting:
                    free += [worker] if (worker := crew.arrived(reference)) else []
                    continue
                worker = self._running[reference].worker
                yield from self._hear(reference)
                if reference not in self._running and worker in crew.ready:
                    free.append(worker)
            crew.check_patience()

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
            why = self.workers.crew.lost(running.worker, error)
            log.warning("A worker died (%s); its images go to another one.", why)
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
