"""Data sets from objects of Python: a `datasets.Dataset`, or arrays of images and labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import DatasetError
from clipguard.data.classes.labels import check_names
from clipguard.data.dataset import MEMORY, ZeroShotDataset
from clipguard.data.decoding import Decode
from clipguard.data.images import EncodedImage
from clipguard.data.templates import PHOTO, resolve_templates


class PixelImages:
    """Images of an array (N, H, W, 3) uint8, each encoded as PNG when it is asked for, which loses nothing."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> EncodedImage:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self._pixels[index]).save(buffer, "PNG", compress_level=1)
        return EncodedImage(buffer.getvalue(), None)


def dataset_of_arrays(
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    *,
    name: str = "in-memory",
    templates: str = "ensemble",
    decode: Decode = "upright",
) -> ZeroShotDataset:
    """A data set of images and labels in memory.

    Args:
        images: (N, H, W, 3) uint8, or (N, 3, H, W) floating-point numbers in [0,1] that are 8-bit levels (k / 255), as
            an array or a tensor.
        labels: (N,) class numbers.
        class_names: C names in the order of the numbers; default the numbers themselves, for models without text.
        name: of the data set, in results.
        templates: the prompts; see `load_dataset`.
        decode: see `load_dataset`.

    Raises:
        DatasetError: for images that are none of these, labels that are no pairs with them, or bad names.
    """
    pixels = _pixels(images)
    numbers = np.asarray(labels)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise DatasetError(f"{name}: labels are class numbers (N,), not {numbers.dtype} of shape {numbers.shape}.")
    if len(numbers) != len(pixels) or len(numbers) == 0:
        raise DatasetError(f"{name}: there are {len(pixels)} images and {len(numbers)} labels; give as many of both.")
    names = list(class_names) if class_names is not None else [str(k) for k in range(max(2, int(numbers.max()) + 1))]
    check_names(names)
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise DatasetError(f"{name}: labels must lie in 0 ... {len(names) - 1}, the classes that have a name.")
    prompts = resolve_templates(templates, PHOTO, name)
    return ZeroShotDataset(
        name, MEMORY, "all", PixelImages(pixels), names, prompts, numbers.astype(np.int64), decode=decode
    )


def _pixels(images: Any) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images  # NumPy has no bfloat16
    array = np.asarray(images)
    if array.ndim != 4:
        raise DatasetError(f"Images must be (N, H, W, 3) uint8 or (N, 3, H, W) in [0,1], not {array.shape}.")
    if array.dtype == np.uint8 and array.shape[3] == 3:
        return array
    if array.dtype.kind != "f" or array.shape[1] != 3:
        raise DatasetError(
            f"Images must be (N, H, W, 3) uint8 or (N, 3, H, W) in [0,1], not {array.shape} of {array.dtype}."
        )
    levels = array * 255
    whole = levels.round()
    if not np.isfinite(levels).all() or whole.min() < 0 or whole.max() > 255 or np.abs(levels - whole).max() > 1e-3:
        raise DatasetError("Images must be 8-bit levels k / 255 in [0,1]; clipguard.attack takes any pixels in [0,1].")
    return whole.astype(np.uint8).transpose(0, 2, 3, 1)
