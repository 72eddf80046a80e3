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

STAND_IN = torch.zeros(3, 1, 1)  # of images that nobody looks at
CACHED_BYTES = 1 << 30  # most memory that decoded images may take


Item = tuple[Tensor, int, int, str | None]


class TrainingImages(Dataset[Item]):
    """Decoded images of the model's size, by (epoch, index); small sets are kept in memory, as 8-bit pixels.

    An item is its pixels (3, H, W), 8-bit or augmented in [0,1]; its label, -1 without labels; the key of its random
    numbers; and one of its captions, where there are any. Augmentation, key and choice of the caption depend on
    (seed, epoch, index) alone.

    Args:
        data: what is trained on.
        preprocess: from an image to pixels of the model's size.
        config: the run's settings.
        seen: whether the method looks at images; else an item's are a stand-in of one pixel, and none is decoded.
    """

    def __init__(
        self,
        data: TrainingData,
        preprocess: Callable[[Image], Tensor],
        config: FinetuneConfig,
        *,
        seen: bool = True,
    ) -> None:
        self.source, self.labels, self.captions, self.seen = data.images, data.labels, data.captions, seen
        self.preprocess, self.augment, self.seed = preprocess, config.augment == "standard", config.seed
        self._cache: dict[int, Tensor] = {}

    def cache(self, indices: Indices, progress: Progress, team: Team = ALONE) -> bool:
        """Decode images into memory if all of them fit into `CACHED_BYTES`; tells whether they do.

        Each of several processes decodes its part, and gets the rest from the others.
        """
        if not self.seen:
            return True
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

    def plain(self, index: int, key: int) -> Item:
        """An item without augmentation or label, as validation takes it."""
        return self.pixels(index) if self.seen else STAND_IN, -1, key, self._caption(index, key)

    def _caption(self, index: int, key: int) -> str | None:
        if self.captions is None:
            return None
        texts = self.captions[index]
        return texts[key % len(texts)]

    def __getitem__(self, visit: tuple[int, int]) -> Item:
        epoch, index = visit
        key = random_key(self.seed, epoch, index)
        label = -1 if self.labels is None else int(self.labels[index])
        if not self.seen:
            return STAND_IN, label, key, self._caption(index, key)
        pixels = crop_and_mirror(self.pixels(index), key) if self.augment else self.pixels_8bit(index)
        return pixels, label, key, self._caption(index, key)
