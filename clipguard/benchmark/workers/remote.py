"""What runs in the process of a Ray actor: a `Worker` that is told by messages what to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from clipguard.attacks.engine.outcome import EpsOutcome, Example, ImageOutcome
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.checks.probing import Probed, ProbedImages
from clipguard.benchmark.images import KEPT_BYTES, Images, Pixels, Preprocess
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.run_record import Place
from clipguard.benchmark.task import KnownOutcomes, Task
from clipguard.benchmark.workers.worker import Tally, Texts, Worker
from clipguard.core.errors import DatasetError
from clipguard.core.notices import Notice, noticing
from clipguard.data.dataset import ZeroShotDataset
from clipguard.data.images import EncodedImage, EncodedImages
from clipguard.models.loading import ModelInfo
from clipguard.sanity.checks import Finding

T = TypeVar("T")
log = logging.getLogger("clipguard")


Fetch = Callable[[], T]  # gets something from Ray's store, only where it is wanted


class Run(NamedTuple):
    """The plan, its models that are no names, and the folder in which the driver works, for names of files.

    `keep_images`: see `Worker`.
    """

    plan: BenchPlan
    objects: Objects
    folder: str
    keep_images: bool


@dataclass(frozen=True)
class Elsewhere:
    """In place of the images of a data set: this process gets them otherwise."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EncodedImage:
        raise DatasetError(f"image {index} is not here")


@dataclass(frozen=True)
class Job:
    """A model on a data set.

    Attributes:
        number: of the job in its run.
        model: its name as typed.
        task: with `Elsewhere` for images.
        images: gives those of the data set as they were pickled; raises whatever it likes where that cannot be read.
    """

    number: int
    model: str
    task: Task
    images: Fetch[EncodedImages]

    def dataset(self) -> ZeroShotDataset:
        """With its images, as far as this process has them; where not, they cannot be read."""
        try:
            return replace(self.task.dataset, images=self.images())
        except Exception as error:  # files that are not on this node, in whichever format
            log.info("%s has no images on this node (%s): they are sent.", self.task.name, type(error).__name__)
            return self.task.dataset


@dataclass
class Report:
    """What a worker says while it attacks a block, whenever an image is done.

    Attributes:
        outcome: of the image; None at the end.
        notes: of what was found at single eps meanwhile: index, clean prediction, outcome.
        tally: of the block so far.
        needs_images: nothing was done, since the images are not here.
    """

    outcome: ImageOutcome | None = None
    notes: list[tuple[int, int, EpsOutcome]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    needs_images: bool = False


@dataclass
class Said(Generic[T]):
    """An answer, and what was said on the way to it: log lines by level, and notices."""

    answer: T
    lines: list[tuple[int, str]]
    notices: list[Notice]


class _Lines(logging.Handler):
    """Keeps log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


@contextmanager
def _listening() -> Iterator[tuple[list[tuple[int, str]], list[Notice]]]:
    """Log lines and notices of the block."""
    lines = _Lines()
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    log.propagate = False  # the driver says them
    try:
        with noticing() as notices:
            yield lines.lines, notices
    finally:
        log.removeHandler(lines)


class RemoteWorker:
    """The actor. Each call brings the run, for any of them may be the first."""

    def __init__(self) -> None:
        """Nothing that could fail: the error would not reach the driver as it is."""
        self._worker: Worker | None = None
        self._job = self._looked_at = -1  # numbers of jobs
        self._dataset: ZeroShotDataset | None = None

    def begin(self, run: Fetch[Run]) -> Place:
        """Where this is."""
        return self._get_worker(run).place

    def check_models(self, run: Fetch[Run], texts: Sequence[Texts]) -> Said[dict[str, ModelInfo]]:
        """See `Worker.check_models`."""
        return self._said(lambda: self._get_worker(run).check_models(texts))

    def take(self, run: Fetch[Run], job: Job) -> Said[Preprocess]:
        """See `Worker.take`; a module is looked at when there are images."""
        return self._said(lambda: self._at(run, job).preprocess)

    def describe(self, run: Fetch[Run], job: Job) -> list[str]:
        """See `Worker.describe`."""
        return self._at(run, job).describe()

    def key(self, run: Fetch[Run], job: Job, recipe: Recipe, indices: Sequence[int]) -> dict[str, Any]:
        """See `Worker.key`."""
        return self._at(run, job).key(recipe, indices)

    def probe(self, run: Fetch[Run], job: Job, recipe: Recipe, images: ProbedImages) -> Said[Probed]:
        """See `Worker.probe`."""
        return self._said(lambda: self._at(run, job).probe(recipe, images))

    def examine(
        self, run: Fetch[Run], job: Job, recipe: Recipe, images: ProbedImages, transfer_from: str | None
    ) -> Said[list[Finding]]:
        """See `Worker.examine`."""
        return self._said(lambda: list(self._at(run, job).examine(recipe, images, transfer_from)))

    def predict(
        self, run: Fetch[Run], job: Job, images: Sequence[Tensor], originals: Sequence[Tensor] | None
    ) -> Said[list[Tensor]]:
        """See `Worker.predict`."""
        return self._said(lambda: self._at(run, job).predict(images, originals))

    def attack(
        self,
        run: Fetch[Run],
        job: Job,
        recipe: Recipe,
        indices: Sequence[int],
        known: Mapping[int, KnownOutcomes],
        sent: Mapping[int, Pixels] | None,
    ) -> Iterator[Said[Report]]:
        """Attack a block of images.

        Args:
            run: of all jobs.
            job: model and data set.
            recipe: the attacks.
            indices: of the images.
            known: by index, what need not be computed again.
            sent: the images (H, W, 3) by index; None: those of this node are read.
        """
        with _listening() as (lines, notices):
            worker = self._at(run, job)
            images = self._read(job, indices, sent)
            if images is None:
                yield Said(Report(needs_images=True), [*lines], notices)
                return
            worker.task = replace(worker.task, images=images).only(np.array(indices, dtype=np.int64))
            if self._looked_at != job.number:
                worker.check_module()
                self._looked_at = job.number
            notes: list[tuple[int, int, EpsOutcome]] = []

            def note(example: Example, clean_prediction: int, outcome: EpsOutcome) -> None:
                if outcome.eps not in example.known:
                    notes.append((example.index, clean_prediction, replace(outcome, image=None)))  # travels once

            attacking = worker.attack(recipe, indices, known, note)
            for outcome in attacking:
                yield Said(Report(outcome, [*notes], attacking.tally()), [*lines], [*notices])
                notes.clear()
                lines.clear()
            yield Said(Report(None, notes, attacking.tally()), lines, notices)

    def attack_at_once(self, *args: Any) -> list[Said[Report]]:
        """The same where reports cannot come one by one."""
        return list(self.attack(*args))

    def _get_worker(self, run: Fetch[Run]) -> Worker:
        if self._worker is None:
            plan, objects, folder, keep_images = run()
            if Path(folder).is_dir():
                os.chdir(folder)
            self._worker = Worker(plan, objects, keep_images=keep_images)
        return self._worker

    def _at(self, run: Fetch[Run], job: Job) -> Worker:
        worker = self._get_worker(run)
        if self._job != job.number:
            worker.prepare(job.model, job.task)
            self._job, self._dataset = job.number, job.dataset()
        return worker

    def _read(self, job: Job, indices: Sequence[int], sent: Mapping[int, Pixels] | None) -> Images | None:
        """The images, decoded; None if they are not here, or are others."""
        dataset = self._dataset or job.task.dataset
        images = Images(dataset, 0, KEPT_BYTES)
        if sent is not None:
            images.keep(sent)
            return images
        try:
            for index, checked in images.check(indices):
                if checked.sha256 != job.task.hashes[index]:
                    return None
        except DatasetError:
            return None
        return images

    def _said(self, work: Callable[[], T]) -> Said[T]:
        with _listening() as (lines, notices):
            return Said(work(), lines, notices)
