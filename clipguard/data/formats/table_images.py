"""The image column of a table, in each of the forms it comes in: encoded, paths of files, or arrays of pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.formats.columns import holds_arrays, holds_text
from clipguard.data.images import EncodedImage, EncodedImages

CHANNELS = (1, 3, 4)


def table_images(table: Any, column: str, folder: Path | None) -> EncodedImages:
    """Images of a `datasets.Dataset`, read one at a time.

    Args:
        table: a `datasets.Dataset`.
        column: of Image features, bytes, structs of bytes and path, strings (paths of files), or arrays (H, W) or
            (H, W, channels) of integers in [0, 255]; (channels, H, W) is turned.
        folder: where paths may start, beside the working folder.

    Raises:
        DatasetError: for arrays of another shape or type, and for paths where there is no file, by the first row.
    """
    import datasets

    selected = table.select_columns([column])
    feature = table.features[column]
    if holds_arrays(feature):
        return _array_images(selected, column)
    if isinstance(feature, datasets.Image):
        selected = selected.cast_column(column, datasets.Image(decode=False))
    images = StoredImages(selected, column, folder)
    if holds_text(feature) and len(images):
        images.check_file(0)
    return images


@dataclass
class StoredImages:
    """Cells are encoded images: bytes, structs of bytes and path, or paths."""

    table: Any  # datasets.Dataset, memory-mapped
    column: str
    folder: Path | None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> EncodedImage:
        cell = self.table[index][self.column]
        if isinstance(cell, str):
            return EncodedImage(None, _resolve(cell, self.folder) if cell else None)
        if not isinstance(cell, dict):
            return EncodedImage(cell, None)
        path = cell.get("path")
        return EncodedImage(cell["bytes"], _resolve(path, self.folder) if path and cell["bytes"] is None else path)

    def check_file(self, index: int) -> None:
        """Raise DatasetError if the image of a path is not there."""
        path = self[index].path
        if path is None or _is_file(Path(path)):
            return
        what = "an address; download the files" if "://" in path else "no file here; put the files there"
        place = f" (looked for in {self.folder} and in the working folder)" if self.folder else ""
        shown = path if len(path) < 100 else f"{path[:50]}..."
        raise DatasetError(
            f"column {self.column!r} names image files, but {shown!r} in row {index} is {what}{place}, or name another "
            "column with `image_column`"
        )


@dataclass
class ArrayImages:
    """Cells are arrays of pixels."""

    table: Any  # datasets.Dataset in numpy's format, memory-mapped
    column: str
    channels_first: bool

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> EncodedImage:
        import PIL.Image

        cell = self.table[index][self.column]
        if cell is None:
            return EncodedImage(None, None)
        pixels = np.asarray(cell)
        if self.channels_first and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        _check_pixels(pixels)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        encoded = io.BytesIO()
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(encoded, "PNG", compress_level=0)
        return EncodedImage(encoded.getvalue(), None)


def _array_images(table: Any, column: str) -> ArrayImages:
    table = table.with_format("numpy")
    first = np.asarray(table[0][column]) if len(table) else np.zeros((1, 1))
    last, front = first.shape[-1] in CHANNELS, first.shape[0] in CHANNELS
    channels_first = first.ndim == 3 and front and not last
    if first.ndim == 3 and front and last:
        raise DatasetError(
            f"column {column!r} holds arrays of shape {first.shape}, whose channels may be the first or the last; "
            "store encoded images, or arrays of another size"
        )
    if channels_first:
        notice("guessed", f"column {column!r}: arrays of shape {first.shape} are taken as channels, height, width")
        first = first.transpose(1, 2, 0)
    try:
        _check_pixels(first)
    except ValueError as error:
        raise DatasetError(f"column {column!r}: {error}") from error
    return ArrayImages(table, column, channels_first)


def _check_pixels(pixels: np.ndarray[Any, Any]) -> None:
    """Raise ValueError unless they are (H, W) or (H, W, channels) of whole numbers in [0, 255]."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS) or pixels.size == 0:
        raise ValueError(f"an array of shape {pixels.shape} is no image; store height x width x 3, or encoded images")
    if pixels.dtype.kind not in "ui":
        raise ValueError(f"{pixels.dtype} pixels have no known range; store whole numbers from 0 to 255")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"pixels from {pixels.min()} to {pixels.max()}; store whole numbers from 0 to 255")


def _resolve(path: str, folder: Path | None) -> str:
    """As it is if it is absolute or exists here; else, if it exists there, below `folder`."""
    beside = folder / path if folder is not None else None
    return str(beside) if beside is not None and _is_file(beside) else path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a path may be, as images in base64 are
        return False
