"""Training images as pixels of the model's size: decoded, kept in memory where they fit, and augmented."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.augmentation import crop_and_mirror
from clipguard.finetuning.data.random_keys import random_key
from clipguard.finetuning.data.training_data import Indices, TrainingData
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

    def cache(self, indices: Indices, progress: Progress) -> bool:
        """Decode images into memory if all of them fit into `CACHED_BYTES`; tells whether they do."""
        bytes_per_image = self.preprocess(self.source.image(0)).numel()
        if len(indices) * bytes_per_image > CACHED_BYTES:
            return False
        progress.start("reading images", len(indices))
        for index in indices.tolist():
            self._cache[index] = self.pixels_8bit(index)
            progress.advance()
        return True

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
