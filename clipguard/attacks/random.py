"""Random numbers of an image's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers that depend on (seed, image, attack, run) alone: never on the batch or the order."""

    def __init__(self, seed: int, attack: str, images: Sequence[int], runs: Sequence[int], device: torch.device):
        keys = (hashlib.sha256(f"{seed}/{i}/{attack}/{r}".encode()).digest() for i, r in zip(images, runs, strict=True))
        self._generators = [np.random.Generator(np.random.Philox(key=int.from_bytes(k[:16], "big"))) for k in keys]
        self._device = device

    def uniform(self, *shape: int) -> Tensor:
        """(rows, *shape) float32 in [0, 1)."""
        rows = [g.random(shape, dtype=np.float32) for g in self._generators]
        return torch.from_numpy(np.stack(rows)).to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape) float32, standard normal."""
        rows = [g.standard_normal(shape, dtype=np.float32) for g in self._generators]
        return torch.from_numpy(np.stack(rows)).to(self._device)
