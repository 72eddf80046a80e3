"""What a run evaluates: a data set and the chosen images, each read once."""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example
from clipguard.benchmark.images import KEPT_BYTES, Checked, Images, Preprocess
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.shard import Shard
from clipguard.core.errors import DatasetError
from clipguard.core.progress import Progress
from clipguard.core.records.provenance import fingerprint
from clipguard.core.records.run import DatasetRecord
from clipguard.data import ZeroShotDataset
from clipguard.data.dataset import in_random_order
from clipguard.data.decoding import PixelCount

KnownOutcomes = Mapping[float, EpsOutcome]  # of an image, by eps in pixels of [0,1]; 0 is the clean image


@dataclass(frozen=True)
class Task:
    """A data set and the images of it that are evaluated.

    Attributes:
        name: as the user typed it.
        dataset: all of it.
        indices: of the images to evaluate, ascending.
        images: of the data set, decoded once where they fit into memory.
        checked: what is known of these images, by index.
    """

    name: str
    dataset: ZeroShotDataset
    indices: npt.NDArray[np.int64]
    images: Images
    checked: Mapping[int, Checked]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the class names and of these images with their labels."""
        rows = [(index, label, self.checked[index].sha256) for index, label in self.labels().items()]
        return fingerprint(self.dataset.class_names, rows)

    @cached_property
    def hashes(self) -> dict[int, str]:
        """SHA-256 of these images, by index."""
        return {index: self.checked[index].sha256 for index in self.indices.tolist()}

    def record(self) -> DatasetRecord:
        """Its entry in `run.datasets`."""
        dataset = self.dataset
        return {
            "source": dataset.source,
            "split": dataset.split,
            "n": len(self.indices),
            "of": len(dataset),
            "fingerprint": self.fingerprint,
            "class_names": dataset.class_names,
            "templates": dataset.templates,
            "pixels": self._changes().to_dict(),
            "indices": self.indices.tolist(),
        }

    def labels(self) -> dict[int, int]:
        """Class numbers by index."""
        return {index: int(self.dataset.labels[index]) for index in self.indices.tolist()}

    def _changes(self) -> PixelCount:
        """How many images decoding changed, by what it did."""
        count = PixelCount()
        for index in self.indices.tolist():
            count.add(self.checked[index].changes, self.checked[index].brightest)
        return count

    def say_changes(self) -> None:
        """One notice of a kind of change, if there is anything to say."""
        self._changes().say(self.name)

    def only(self, indices: npt.NDArray[np.int64]) -> Task:
        """The same with some of its images, by ascending index."""
        return replace(self, indices=indices)

    def labelled(self, labels: npt.NDArray[np.int64]) -> Task:
        """The same with other labels (N,) of all images of the data set."""
        return replace(self, dataset=replace(self.dataset, labels=labels))

    def first(self, preprocess: Preprocess, device: str, done: Container[int] = ()) -> Tensor:
        """The pixels (3, H, W) of the first image of `examples`, of which there must be one."""
        index = next(index for index in self.indices.tolist() if index not in done)
        return preprocess(self.images.image(index)).to(device)

    def examples(
        self,
        preprocess: Preprocess,
        device: str,
        done: Container[int] = (),
        known: Mapping[int, KnownOutcomes] | None = None,
    ) -> Generator[Example]:
        """The images as the engine takes them, one after the other.

        Args:
            preprocess: from a PIL image to pixels (3, H, W) in [0,1].
            device: where the pixels go.
            done: indices of images to leave out.
            known: by index, outcomes that need not be computed again.
        """
        indices = [index for index in self.indices.tolist() if index not in done]
        for index, image in self.images.preprocessed(indices, preprocess, device):
            yield Example(index, image, int(self.dataset.labels[index]), (known or {}).get(index, {}))


def engine_options(plan: BenchPlan, device: str, *, keep_images: bool = False) -> EngineOptions:
    """How the engine runs on this device. Precision "auto": bfloat16 on CUDA that has it, else float32."""
    import torch

    precision = plan.precision
    if precision == "auto":
        ours_on_cuda = device.startswith("cuda") and plan.engine == "clipguard"
        native = ours_on_cuda and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bfloat16" if native else "float32"
    return EngineOptions(plan.batch_size, plan.seed, plan.eps_mode, precision, plan.compile, keep_images)


def open_task(
    plan: BenchPlan, name: str, progress: Progress, objects: Objects | None = None, shard: Shard | None = None
) -> Task:
    """Open a data set, which may be among `objects`, and choose its images, or those of a shard."""
    dataset = (objects or Objects()).dataset(name, plan)
    indices = choose_images(plan, dataset)
    return read_task(plan, name, dataset, np.sort(shard.take(indices) if shard else indices), progress)


def choose_images(plan: BenchPlan, dataset: ZeroShotDataset) -> npt.NDArray[np.int64]:
    """Indices of the images to evaluate, in random order.

    Raises:
        DatasetError: if the plan's part has none.
    """
    order = in_random_order(dataset.subset(plan.n_samples, plan.seed), plan.seed)
    if plan.part is None:
        return order
    if plan.part[0] >= len(order):
        raise DatasetError(
            f"{dataset.name} has {len(order)} images to evaluate, none from {plan.part[0]} on; leave it out."
        )
    return order[slice(*plan.part)]


def read_task(
    plan: BenchPlan, name: str, dataset: ZeroShotDataset, indices: npt.NDArray[np.int64], progress: Progress
) -> Task:
    """Read each image once: a corrupt one is found here, not in hour three."""
    progress.start(f"reading {name}", len(indices))
    images, checked = Images(dataset, plan.decoders, KEPT_BYTES // len(plan.datasets)), {}
    for index, facts in images.check(indices.tolist()):
        checked[index] = facts
        progress.advance()
    task = Task(name, dataset, indices, images, checked)
    task.say_changes()
    return task
