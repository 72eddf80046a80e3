"""A part of every cell of a run, for runs that share a store and nothing else: `--shard 3/16`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import ClipguardError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """From "I/N". Raises ClipguardError for what is none."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ClipguardError(f"`shard` must be I/N, part I of N from 1/N to N/N, not {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Every N-th of these (N,) images, which are in random order: parts then cost about the same."""
        return indices[self.number - 1 :: self.of]
