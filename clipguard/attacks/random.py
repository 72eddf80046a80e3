"""Random numbers of an image's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class RandomRows(Protocol):
    """Random numbers for a batch, each row's from a generator of its own."""

    def uniform(self, *shape: int) -> Tensor:
        """(rows, *shape) float32 in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """(rows, *shape) float32, standard normal."""


class PerImageRandom:
    """Random numbers that depend on (seed, image, attack, run) alone: never on the batch or the order.

    Args:
        seed: of the whole run.
        attack: the attack's name.
        images: index of each row's image in the data set.
        runs: which run of the attack each row is in.
        device: where the numbers are put; they are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(
        self, seed: int, attack: str, images: Sequence[int], runs: Sequence[int], device: torch.device
    ) -> None:
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
