"""Batches of training images, and the processes that make them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clipguard.core.environment.decoders import prepare_worker, signals_held
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.images import Item, TrainingImages
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.models.preprocessing import from_8bit

MOST_DECODERS = 16  # that are started without being asked for


class ImageBatch(NamedTuple):
    """Images to train on.

    Attributes:
        pixels: (B, 3, H, W) in [0,1], or 8-bit.
        labels: (B,) int64, or None for data without labels.
        keys: of each row's random numbers.
        captions: one a row, or None where the method needs none.
        adversarial: (B, 3, H, W) in [0,1], where the training attack has been made already.
    """

    pixels: Tensor
    labels: Tensor | None
    keys: list[int]
    captions: list[str] | None = None
    adversarial: Tensor | None = None

    def split(self, rows: int) -> list[ImageBatch]:
        """Its images in order, at most so many at a time."""
        parts = [slice(start, start + rows) for start in range(0, len(self.pixels), rows)]
        return [ImageBatch(*(None if rows is None else rows[part] for rows in self)) for part in parts]  # type: ignore[arg-type]

    def to(self, device: torch.device) -> ImageBatch:
        """The batch on a device, with pixels in [0,1]; 8-bit pixels travel as they are, and are divided there."""
        pixels = self.pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = from_8bit(pixels)
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return self._replace(pixels=pixels, labels=labels)


def load_batches(images: TrainingImages, sampler: ResumableBatchSampler, decoders: int) -> Iterator[ImageBatch]:
    """Batches in the order of the sampler; with processes that decode, ahead of time."""
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=decoders,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=prepare_worker,
    )
    with signals_held():
        return iter(loader)


def collate(rows: list[Item]) -> ImageBatch:
    """A batch of items of `TrainingImages`."""
    pixels, labels, keys, captions = zip(*rows, strict=True)
    return ImageBatch(
        torch.stack(pixels),
        None if labels[0] < 0 else torch.tensor(labels),
        list(keys),
        None if captions[0] is None else list(captions),
    )


def choose_decoders(config: FinetuneConfig, cached: bool, device: torch.device) -> int:
    """Processes that make batches: none where they are decoded already, unless a GPU would wait for the rest of it.

    That is soon done without augmentation, and every process takes time to start.
    """
    if config.decoders is not None:
        return config.decoders
    if cached and device.type == "cpu":
        return 0
    return min(2 if cached and config.augment == "none" else MOST_DECODERS, os.cpu_count() or 1)
