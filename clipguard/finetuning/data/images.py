"""Training images as pixels of the model's size: decoded, kept in memory where they fit, and augmented."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.augmentation import crop_and_mirror
from clipguard.finetuning.data.random_keys import random_key
from clipguard.finetuning.data.training_data import Indices, TrainingData
from clipguard.finetuning.processes.team import ALONE, Team
from clipguard.models.preprocessing import as_8bit, from_8bit

CACHED_BYTES = 1 << 30  # most memory that decoded images may take


class TrainingImages(Dataset[tuple[Tensor, int, int]]):
    """Decoded images of the model's size, by (epoch, index); small sets are kept in memory, as 8-bit pixels.

    An item is its pixels (3, H, W), 8-bit or augmented in [0,1]; its label, -1 without labels; and the key of its
    random numbers. Augmentation and key depend on (seed, epoch, index) alone.
    """

    def __init__(self, data: TrainingData, preprocess: Callable[[Image], Tensor], config: FinetuneConfig) -> None:
        self.source, self.labels = data.images, data.labels
        self.preprocess, self.augment, self.seed = preprocess, config.augment == "standard", config.seed
        self._cache: dict[int, Tensor] = {}

    def cache(self, indices: Indices, progress: Progress, team: Team = ALONE) -> bool:
        """Decode images into memory if all of them fit into `CACHED_BYTES`; tells whether they do.

        Each of several processes decodes its part, and gets the rest from the others.
        """
        bytes_per_image = self.preprocess(self.source.image(0)).numel()
        if len(indices) * bytes_per_image > CACHED_BYTES:
            return False
        own = indices[team.part(len(indices))]
        progress.start("reading images", len(own))
        with team.agree():
            for index in own.tolist():
                self._cache[index] = self.pixels_8bit(index)
                progress.advance()
        if team.size > 1:
            self._exchange(indices, team)
        return True

    def _exchange(self, indices: Indices, team: Team) -> None:
        """Give the other processes what this one has decoded; zeros are added to it."""
        shape = next(iter(self._cache.values())).shape if self._cache else torch.Size()
        shape = max(team.gather(shape), key=len)
        pixels = torch.zeros(len(indices), *shape, dtype=torch.uint8)
        for row, index in zip(pixels, indices.tolist(), strict=True):
            if index in self._cache:
                row.copy_(self._cache[index])
        self._cache = dict(zip(indices.tolist(), team.sum(pixels), strict=True))

    def pixels_8bit(self, index: int) -> Tensor:
        """(3, H, W) uint8, not augmented."""
        if index in self._cache:
            return self._cache[index]
        return as_8bit(self.preprocess(self.source.image(index)))

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) float32 in [0,1], not augmented."""
        return from_8bit(self.pixels_8bit(index))

    def __getitem__(self, visit: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, index = visit
        key = random_key(self.seed, epoch, index)
        pixels = crop_and_mirror(self.pixels(index), key) if self.augment else self.pixels_8bit(index)
        return pixels, -1 if self.labels is None else int(self.labels[index]), key
