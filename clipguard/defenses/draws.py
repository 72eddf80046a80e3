"""Random numbers of a defence: a function of a seed and of the image's own bits.

A defence that draws anew for every image is random to whoever does not know the seed. Here the draw of an image
depends on (seed, stream, number, its pixels), never on the batch, the order or the run, so a result can be repeated
image by image. For who attacks, another point is another image, and so has another draw. Who decides has the draws of
the clean image for all that attacks make of it: otherwise the most unlucky draw of many images would decide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Stream = Literal["judge", "check", "search"]
"""Whose draws: those that decide, those that a claim of the search has to pass first, those that the search sees."""

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64
BITS = 24  # of a uniform number: what a float32 holds exactly


@dataclass(frozen=True)
class Draws:
    """Which random numbers a defence uses.

    Attributes:
        seed: of the run.
        stream: no two streams have a number in common.
        number: which of several draws for the same image.
        name: of the defence that draws, so that those of a chain do not draw alike.
        keys: (B,) int64, what the draws of each image depend on beside these; None: its own bits.
    """

    seed: int = 0
    stream: Stream = "judge"
    number: int = 0
    name: str = ""
    keys: Tensor | None = None

    def rows(self, x: Tensor) -> RowDraws:
        """Random numbers for the images x (B, C, H, W), each of its own."""
        text = f"{self.seed}/{self.stream}/{self.number}/{self.name}"
        start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)
        return RowDraws(_mixed((content(x) if self.keys is None else self.keys) ^ start))

    def of(self, x: Tensor) -> Draws:
        """The same with keys: whatever defences inside see of the images x, they draw by x itself."""
        return self if self.keys is not None else replace(self, keys=content(x))

    def of_copies(self, numbers: Sequence[int], missing: int) -> Draws:
        """The same for copies of all images, by their numbers one after the other, and for rows that are filled up."""
        if self.keys is None:
            return self
        keys = [_mixed(self.keys + _signed((number + 1) * MIX_1 % 2**64)) for number in numbers]
        return replace(self, keys=torch.cat([*keys, self.keys.new_zeros(missing)]))


class RowDraws:
    """Random numbers for a batch of images, each row's its own; every call gives new ones.

    Args:
        keys: (B,) int64, of each row.
    """

    def __init__(self, keys: Tensor) -> None:
        self._keys, self._used = keys, 0

    def part(self, number: int) -> RowDraws:
        """Numbers for one of several parts of the work on these images, which can be drawn again, in any order."""
        return RowDraws(_mixed(_mixed(self._keys) + _signed((number + 1) * GOLDEN % 2**64)))

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        numbers: Tensor = self._numbers(math.prod(shape)).float() / 2**BITS
        return numbers.view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, standard normal (Box and Muller, 1958)."""
        n = math.prod(shape)
        one, other = (self._numbers(n + n % 2).float() / 2**BITS).chunk(2, dim=1)
        radius, angle = (-2 * torch.log1p(-one)).sqrt(), 2 * math.pi * other
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n].reshape(-1, *shape)

    def _numbers(self, n: int) -> Tensor:
        """(B, n) int64 in [0, 2^24), the next of each row."""
        at = torch.arange(self._used + 1, self._used + n + 1, device=self._keys.device)
        self._used += n
        return _shifted(_mixed(self._keys[:, None] + at * _signed(GOLDEN)), 64 - BITS)


def content(x: Tensor) -> Tensor:
    """(B,) int64, a fingerprint of the bits of each image (B, ...)."""
    bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
    return (_mixed(bits + _places(bits.shape[1], str(bits.device)))).sum(dim=1)


@lru_cache(maxsize=8)
def _places(n: int, device: str) -> Tensor:
    """(n,) int64, a number for each place in an image."""
    return torch.arange(1, n + 1, device=device) * _signed(GOLDEN)


def _mixed(z: Tensor) -> Tensor:
    """Steele, Lea, Flood (2014): the finaliser of splitmix64, on int64 that wraps around."""
    z = (z ^ _shifted(z, 30)) * _signed(MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(MIX_2)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The logical right shift, which int64 does not have."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    return number - (1 << 64) if number >= 1 << 63 else number
