"""Training images: which they are, and batches that depend on seed and step alone, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as tvf

from clipguard.core.errors import DatasetError, FinetuneError, SplitError
from clipguard.core.notices import notice
from clipguard.core.progress import Progress
from clipguard.core.provenance import fingerprint, image_hash
from clipguard.data import ImageDataset, ZeroShotDataset, load_dataset, load_images
from clipguard.data.dataset import stratified_subset
from clipguard.data.decoding import PixelCount
from clipguard.finetuning.config import FinetuneConfig

TRAINING_SPLITS = ("train", "training", "all")
CACHED_BYTES = 1 << 30  # images that fit are decoded once and kept
MOST_WORKERS = 8
FINGERPRINTED = 2000  # images whose pixels enter the fingerprint: all of a small set, a sample of a large one
SMALLEST_CROP, ASPECTS = 0.6, (3 / 4, 4 / 3)  # of the standard augmentation: share of the area, width over height
Indices = npt.NDArray[np.int64]
AnyDataset = TypeVar("AnyDataset", bound=ImageDataset)


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and which of it only chooses the best checkpoint."""

    images: ImageDataset
    labels: Indices | None  # of all images; None if there are none
    class_names: list[str]
    templates: list[str]
    train: Indices
    validation: Indices
    held_out: ZeroShotDataset | None  # the data set's own test split, where it has one

    def fingerprint(self) -> str:
        """SHA-256 of names, labels and pixels of up to `FINGERPRINTED` images, evenly spread over those used.

        Says what decoding does to these.
        """
        used = np.sort(np.concatenate([self.train, self.validation]))
        chosen = used[np.unique(np.linspace(0, len(used) - 1, FINGERPRINTED).round().astype(np.int64))]
        labels = np.full(len(self.images), -1) if self.labels is None else self.labels
        rows, pixels = [], PixelCount()
        for i in chosen.tolist():
            decoded = self.images.read(i)
            pixels.add(decoded)
            rows.append((i, int(labels[i]), image_hash(decoded.image)))
        pixels.say(self.images.name)
        return fingerprint(self.class_names, rows)


def open_data(config: FinetuneConfig, *, needs_labels: bool) -> TrainingData:
    """Open a data set's training split and set the validation images apart.

    A method that needs no labels takes any folder of images.
    Raises DatasetError for data that cannot be used, FinetuneError if too few images are left to train on.
    """
    try:
        labelled = _training_split(config, lambda split: _load(config, split))
    except DatasetError as error:
        if needs_labels:
            raise
        images = _training_split(
            config,
            lambda split: load_images(
                config.dataset, split=split, image_column=config.image_column, data_root=_data_root(config)
            ),
        )
        notice("skipped", f"{config.method} needs no labels and is trained without, for they cannot be read: {error}")
        train, validation = divide(config, np.zeros(len(images), dtype=np.int64), 1)
        return TrainingData(images, None, [], [], train, validation, None)
    train, validation = divide(config, labelled.labels, len(labelled.class_names))
    names, templates = labelled.class_names, labelled.templates
    return TrainingData(
        labelled, labelled.labels, names, templates, train, validation, _held_out(config, labelled.split)
    )


def _load(config: FinetuneConfig, split: str | None) -> ZeroShotDataset:
    return load_dataset(
        config.dataset,
        split=split,
        image_column=config.image_column,
        label_column=config.label_column,
        classes=config.classes or None,
        templates=config.templates,
        data_root=_data_root(config),
    )


def _data_root(config: FinetuneConfig) -> Path | None:
    return Path(config.data_root).expanduser() if config.data_root else None


def _training_split(config: FinetuneConfig, load: Callable[[str | None], AnyDataset]) -> AnyDataset:
    """The split that was named, else the training split, else all of a set without splits; never test data."""
    if config.split is not None or (config.dataset.startswith("hf:") and "@" in config.dataset):
        return load(config.split)
    missing: list[SplitError] = []
    for split in TRAINING_SPLITS:
        try:
            return load(split)
        except SplitError as error:
            missing.append(error)
    raise missing[0]


def _held_out(config: FinetuneConfig, trained_on: str) -> ZeroShotDataset | None:
    """The test (else validation) split, unless it is what is trained on."""
    try:
        dataset = _load(config, None)
    except SplitError:
        return None
    return dataset if dataset.split != trained_on else None


def divide(config: FinetuneConfig, labels: Indices, n_classes: int) -> tuple[Indices, Indices]:
    """Sorted indices of the training and the validation images, both stratified by label (N,)."""
    used = stratified_subset(labels, n_classes, config.n_samples, config.seed)
    n = max(1, round(config.val_fraction * len(used))) if config.val_fraction else 0
    if n >= len(used):
        raise FinetuneError(f"{config.dataset}: {len(used)} images are too few to train on; give more.")
    chosen = stratified_subset(labels[used], n_classes, n, config.seed) if n else np.empty(0, dtype=np.int64)
    return np.delete(used, chosen), used[chosen]


class ImageBatch(NamedTuple):
    """pixels (B, 3, H, W) in [0,1], or 8-bit; labels (B,) or None; and a key for each row's random numbers."""

    pixels: Tensor
    labels: Tensor | None
    keys: list[int]

    def to(self, device: torch.device) -> ImageBatch:
        """The batch on a device, with pixels in [0,1]; 8-bit pixels travel as they are, and are divided there."""
        pixels = self.pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(torch.full((), 255.0, device=device))  # by a plain number, CUDA rounds twice
        return ImageBatch(pixels, None if self.labels is None else self.labels.to(device, non_blocking=True), self.keys)


class Pixels(Dataset[tuple[Tensor, int, int]]):
    """Decoded images of the model's size, by visit (epoch, index); small sets are kept in memory, as 8-bit pixels.

    Augmentation and the key of a visit depend on (seed, epoch, index) alone.
    """

    def __init__(self, data: TrainingData, preprocess: Callable[[Image], Tensor], config: FinetuneConfig) -> None:
        self.images, self.labels = data.images, data.labels
        self.preprocess, self.augment, self.seed = preprocess, config.augment == "standard", config.seed
        self._cache: dict[int, Tensor] = {}

    def read(self, indices: Indices, progress: Progress) -> bool:
        """Decode images into memory if all of them fit there; tells whether they do."""
        size = preprocess_bytes(self.preprocess, self.images)
        if len(indices) * size > CACHED_BYTES:
            return False
        progress.start("reading images", len(indices))
        for index in indices.tolist():
            self._cache[index] = self.stored(index)
            progress.advance()
        return True

    def stored(self, index: int) -> Tensor:
        """(3, H, W) 8-bit pixels, not augmented. Exact: the preprocessing ends with 8-bit pixels divided by 255."""
        if index in self._cache:
            return self._cache[index]
        return self.preprocess(self.images.image(index)).mul(255).round_().byte()

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) in [0,1], not augmented."""
        return self.stored(index).float().div_(255)

    def __getitem__(self, visit: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = visit
        key = random_key(self.seed, epoch, index)
        pixels = crop_and_mirror(self.pixels(index), key) if self.augment else self.stored(index)
        return pixels, -1 if self.labels is None else int(self.labels[index]), key


def preprocess_bytes(preprocess: Callable[[Image], Tensor], images: ImageDataset) -> int:
    """How many bytes an image takes as 8-bit pixels of the model's size."""
    return preprocess(images.image(0)).numel()


def random_key(seed: int, when: int, what: int) -> int:
    """62 bits to seed a generator with: for an image in an epoch, or a process at a step."""
    digest = hashlib.sha256(f"{seed}/{when}/{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def crop_and_mirror(pixels: Tensor, key: int) -> Tensor:
    """A random part of the image (Szegedy et al. 2015) at its size, mirrored in half of the cases: (3, H, W)."""
    share, aspect, top, left, mirror = torch.rand(5, generator=torch.Generator().manual_seed(key)).tolist()
    height, width = pixels.shape[-2:]
    area = (SMALLEST_CROP + (1 - SMALLEST_CROP) * share) * height * width
    ratio = math.exp(math.log(ASPECTS[0]) + aspect * math.log(ASPECTS[1] / ASPECTS[0])) * width / height
    h, w = min(height, round(math.sqrt(area / ratio))), min(width, round(math.sqrt(area * ratio)))
    y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
    cropped: Tensor = tvf.resized_crop(pixels, y, x, h, w, [height, width], antialias=True)
    return cropped.flip(-1) if mirror < 0.5 else cropped


@dataclass(frozen=True)
class Visits:
    """Which images each pass takes: epoch after epoch of seeded shuffles, cut into steps, those into passes.

    A step takes the same images however they are divided among passes and processes. Starts at any step.
    """

    train: Indices
    seed: int
    batch_size: int
    accumulate: int
    start: int
    steps: int
    process: int = 0
    processes: int = 1

    @property
    def per_step(self) -> int:
        """Images of one step, over all passes and processes."""
        return self.batch_size * self.accumulate * self.processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, self.train
        for step in range(self.start, self.steps):
            for number in range(self.accumulate):
                first = step * self.per_step + (number * self.processes + self.process) * self.batch_size
                visits = []
                for position in range(first, first + self.batch_size):
                    if position // len(order) != epoch:
                        epoch = position // len(order)
                        order = np.random.default_rng([self.seed, epoch]).permutation(self.train)
                    visits.append((epoch, int(order[position % len(order)])))
                yield visits


def load_batches(pixels: Pixels, visits: Visits, workers: int) -> Iterator[ImageBatch]:
    """Batches in the order of the visits; with workers, decoded ahead."""
    pin = torch.cuda.is_available()
    return iter(
        DataLoader(
            pixels,
            batch_sampler=visits,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin,
            worker_init_fn=_leave_interrupts,
        )
    )


def _leave_interrupts(worker: int) -> None:  # noqa: ARG001
    """Ctrl-C reaches every process; what it means is the main one's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(rows: list[tuple[Tensor, int, int]]) -> ImageBatch:
    """A batch of rows; labels of -1 are none."""
    images, labels, keys = zip(*rows, strict=True)
    return ImageBatch(torch.stack(images), None if labels[0] < 0 else torch.tensor(labels), list(keys))


def choose_workers(config: FinetuneConfig, cached: bool, device: torch.device) -> int:
    """Processes that make batches: none where they are decoded already, unless a GPU would wait for the rest of it."""
    if config.workers is not None:
        return config.workers
    return 0 if cached and device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)
