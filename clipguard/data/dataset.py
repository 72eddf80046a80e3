"""The dataset every other room sees: labels and names in memory, images decoded one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import DatasetError
from clipguard.data.captions import Captions
from clipguard.data.decoding import Decode, Decoded, decode
from clipguard.data.images import EncodedImages, reason

if TYPE_CHECKING:
    import PIL.Image

MEMORY = "memory"  # `source` of arrays and tables that were given from Python


@dataclass
class ImageDataset:
    """The images of one split, labelled or not; made by `load_images`.

    Safe to use from several threads, and to pickle to worker processes: no file handle is kept open by this class.
    """

    name: str
    """As the user typed it."""
    source: str
    """What the name resolved to: an absolute path, or `org/name@revision` on the hub."""
    split: str
    """The split in use, `"all"` where the format has none."""
    images: EncodedImages = field(repr=False)
    """N encoded images, read from disk when asked for."""
    decode: Decode = field(default="upright", kw_only=True)
    """How they become pixels; see `decode`."""
    captions: Captions | None = field(default=None, repr=False, kw_only=True)
    """Of each image, one or more; None where they were not asked for."""

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> PIL.Image.Image:
        """Image `index` (in [0, N)), in RGB, at its native size, upright unless `decode` is "plain"; see `read`."""
        return self.read(index).image

    def read(self, index: int) -> Decoded:
        """Image `index` (in [0, N)), and what decoding did to it; see `decode`.

        Raises:
            IndexError: outside [0, N).
            DatasetError: naming the row and its file, if it cannot be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a dataset of {len(self)}")
        path = None
        try:
            encoded = self.images[int(index)]
            path = encoded.path
            return decode(encoded, self.decode)
        except (
            Exception
        ) as error:  # PIL reports a broken file with a dozen types, SyntaxError and struct.error among them
            where = f"row {index} ({path})" if path else f"row {index}"
            raise DatasetError(
                f"{self.name}: cannot decode the image in {where}: {reason(error)}. Repair it, or remove the row."
            ) from error


@dataclass
class ZeroShotDataset(ImageDataset):
    """Images, labels, class names and prompt templates of one split; made by `load_dataset`, which validates them."""

    class_names: list[str]
    """C distinct names; label `i` means `class_names[i]`."""
    templates: list[str]
    """Prompts, each with one `{}` for the class name."""
    labels: npt.NDArray[np.int64]
    """Shape (N,), in [0, C)."""

    def subset(self, n: int | None, seed: int) -> npt.NDArray[np.int64]:
        """Sorted indices of a seeded, class-stratified subset: (min(n, N),) int64. No model has a say in it.

        Args:
            n: size, at least 1; None, or n >= N, means all of it.
            seed: at least 0.

        Raises:
            DatasetError: if n < 1.
        """
        if n is not None and n < 1:
            raise DatasetError(
                f"{self.name}: a subset needs at least 1 image, got {n}; leave the size out for all of them"
            )
        return stratified_subset(self.labels, len(self.class_names), n, seed)


def in_random_order(indices: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """The indices (N,) shuffled: every order is equally likely, over all seeds (at least 0)."""
    return np.random.default_rng([seed, len(indices), 1]).permutation(indices)


def stratified_subset(labels: npt.NDArray[np.int64], n_classes: int, n: int | None, seed: int) -> npt.NDArray[np.int64]:
    """A seeded draw of images, of each class by its share.

    Classes get seats in proportion to their size (largest remainder). Each class is drawn from the front of its own
    seeded shuffle, so with the same seed a class's smaller draw is always part of its larger one.

    Args:
        labels: (N,) in [0, n_classes).
        n_classes: C.
        n: images to draw, at least 1; None, or n >= N, means all of them.
        seed: at least 0.

    Returns:
        Sorted positions in `labels`, (min(n, N),) int64.
    """
    if n is None or n >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    seats = _seats_per_class(np.bincount(labels, minlength=n_classes), n, seed)
    chosen = [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(seats)
        if count
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _seats_per_class(counts: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Split `n` seats over classes of sizes `counts`, shape (C,), by largest remainder (Hamilton), n < sum(counts)."""
    seats, remainder = np.divmod(counts * n, counts.sum())  # integers: no rounding can change who gets a seat
    # Equal remainders are settled by a shuffle: by class order, a small n would always leave out the same last classes.
    lot = np.random.default_rng([seed, len(counts)]).permutation(len(counts))
    winners = np.lexsort((lot, -remainder))[: n - seats.sum()]
    seats[winners] += 1
    return seats
