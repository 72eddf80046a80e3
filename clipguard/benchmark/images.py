"""The images of a run: decoded once, ahead of time by worker processes, and kept where they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from clipguard.core.environment.decoders import choose_decoders, in_order
from clipguard.core.records.provenance import image_hash
from clipguard.data.dataset import ImageDataset
from clipguard.data.decoding import Change
from clipguard.models.preprocessing import as_8bit, from_8bit

KEPT_BYTES = 2 << 30  # most memory that the decoded images of a run may take
LARGEST_KEPT = 4 << 20  # bytes of an image that is kept: of larger ones, those under way alone would take gigabytes
CHUNK = 16  # images that a process works on at a time
Preprocess = Callable[[PIL.Image.Image], Tensor]
Pixels = npt.NDArray[np.uint8]


class Checked(NamedTuple):
    """What is known of an image that was read: the SHA-256 of its pixels, and what decoding did, as in `Decoded`."""

    sha256: str
    changes: frozenset[Change]
    brightest: int | None


@dataclass
class Images:
    """The images of a data set, by index.

    Attributes:
        dataset: all of it.
        workers: processes that decode, None: as many as pay. They are there only while images are asked for.
        budget: bytes that decoded images may take; those that do not fit, and those above `LARGEST_KEPT`, are decoded
            again whenever they are asked for.
    """

    dataset: ImageDataset
    workers: int | None
    budget: int
    _kept: dict[int, Pixels] = field(default_factory=dict, init=False)  # (H, W, 3)
    _room: int = field(init=False)

    def __post_init__(self) -> None:
        self._room = self.budget

    def __getstate__(self) -> dict[str, object]:
        """For processes that are not forked: they decode again rather than have a copy of all pixels each."""
        return self.__dict__ | {"_kept": {}}

    def check(self, indices: Sequence[int]) -> Iterator[tuple[int, Checked]]:
        """Read every image once, and keep its pixels if there is room.

        Raises:
            DatasetError: for an image that cannot be decoded.
        """
        workers = choose_decoders(self.workers, len(indices))
        items = ((chunk, self._room > 0) for chunk in _chunks(indices, workers))
        same: dict[frozenset[Change], frozenset[Change]] = {}  # one object for all images that decoding changed alike
        for results in in_order(self._check_chunk, items, workers):
            for index, checked, pixels in results:
                if pixels is not None and pixels.nbytes <= self._room:
                    self._kept[index] = pixels
                    self._room -= pixels.nbytes
                yield index, checked._replace(changes=same.setdefault(checked.changes, checked.changes))

    def _check_chunk(self, item: tuple[list[int], bool]) -> list[tuple[int, Checked, Pixels | None]]:
        indices, keep = item
        results: list[tuple[int, Checked, Pixels | None]] = []
        for index in indices:
            image, changes, brightest = self.dataset.read(index)
            checked = Checked(image_hash(image), changes, brightest)
            small = image.width * image.height * 3 <= LARGEST_KEPT
            results.append((index, checked, np.asarray(image) if keep and small else None))
        return results

    def keep(self, pixels: Mapping[int, Pixels]) -> None:
        """Take in images (H, W, 3) that were decoded elsewhere."""
        self._kept |= pixels

    def image(self, index: int) -> PIL.Image.Image:
        """Image `index`, in RGB, at its native size."""
        kept = self._kept.get(index)
        return self.dataset.image(index) if kept is None else PIL.Image.fromarray(kept)

    def preprocessed(self, indices: Sequence[int], preprocess: Preprocess, device: str) -> Iterator[tuple[int, Tensor]]:
        """Images as pixels (3, H, W), float32 in [0,1], in the order of the indices.

        Args:
            indices: of the images.
            preprocess: from a PIL image to such pixels, which are 8-bit levels (k / 255).
            device: where the pixels go.
        """
        workers = choose_decoders(self.workers, len(indices))
        if not workers:
            for index in indices:
                yield index, preprocess(self.image(index)).to(device)
            return
        work = partial(_preprocess_chunk, self, preprocess)
        for chunk in in_order(work, _chunks(indices, workers), workers, pin=device.startswith("cuda")):
            yield from zip(chunk.indices, chunk.on(device), strict=True)


@dataclass(frozen=True)
class _Chunk:
    """Preprocessed images by index, in stacks (B, 3, H, W) of 8-bit pixels, for sizes may differ."""

    indices: list[int]
    stacks: list[Pixels] | list[Tensor]

    def pin_memory(self) -> _Chunk:
        """The same in memory from which a GPU copies by itself."""
        return replace(self, stacks=[torch.as_tensor(stack).pin_memory() for stack in self.stacks])

    def on(self, device: str) -> Iterator[Tensor]:
        """The images (3, H, W) in [0,1]. 8-bit pixels travel, and are divided there."""
        for stack in self.stacks:
            yield from from_8bit(torch.as_tensor(stack).to(device, non_blocking=True))


def _preprocess_chunk(images: Images, preprocess: Preprocess, indices: list[int]) -> _Chunk:
    """A plain array is sent through a pipe; tensors would take shared memory, of which containers have little."""
    pixels = [as_8bit(preprocess(images.image(index))).numpy() for index in indices]
    return _Chunk(indices, [np.stack(list(same)) for _, same in groupby(pixels, key=lambda image: image.shape)])


def _chunks(indices: Sequence[int], workers: int) -> Iterator[list[int]]:
    """Indices that are worked on at once: each alone where that happens when it is asked for."""
    size = CHUNK if workers else 1
    return (list(indices[start : start + size]) for start in range(0, len(indices), size))
