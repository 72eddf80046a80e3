"""Encoded images, read one at a time, and their one way to RGB pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import PIL.Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})


class EncodedImage(NamedTuple):
    """An image as stored: file content, or the path that has it. With `data`, `path` only says where it came from."""

    data: bytes | None
    path: str | None

    @property
    def is_empty(self) -> bool:
        """Nothing stored: a null cell, or no bytes at all."""
        return not self.data and (self.data is not None or self.path is None)


class EncodedImages(Protocol):
    """N encoded images with random access; memory must not grow with N images read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedImage: ...


@dataclass
class TableImages:
    """The image column of a `datasets.Dataset`, undecoded: cells are bytes, or structs of bytes and path."""

    table: Any  # datasets.Dataset, memory-mapped
    column: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> EncodedImage:
        cell = self.table[index][self.column]
        if isinstance(cell, dict):
            return EncodedImage(cell["bytes"], cell.get("path"))
        return EncodedImage(cell, None)


@dataclass
class FileImages:
    """One image file a row."""

    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedImage:
        return EncodedImage(None, self.paths[index])


def decode_rgb(encoded: EncodedImage) -> PIL.Image.Image:
    """Decode to an upright RGB image: EXIF rotation applied, transparency laid over white, 16-bit greys scaled to 8.

    Raises whatever PIL raises on a broken file; the caller knows the row and turns it into a DatasetError.
    """
    import PIL.Image
    import PIL.ImageOps

    if encoded.is_empty:
        raise ValueError("no image stored")
    source: Any = encoded.path if encoded.data is None else io.BytesIO(encoded.data)
    with PIL.Image.open(source) as image:
        image.load()
        return to_rgb(PIL.ImageOps.exif_transpose(image))


def reason(error: Exception) -> str:
    """Why an image could not be decoded, on one line."""
    import PIL

    if isinstance(error, PIL.UnidentifiedImageError):  # its text is the address of a buffer
        return "not in an image format that PIL can read"
    return str(error).partition("\n")[0] or repr(error)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any PIL mode to RGB. Raises ValueError on float pixels, whose range nothing tells."""
    import numpy as np
    import PIL.Image

    if image.mode == "F":
        raise ValueError("float pixels have no known range; store 8-bit or 16-bit images")
    if image.mode.startswith(
        "I"
    ):  # 16-bit grey ("I" in older PIL); convert() would clip it to white instead of scaling
        grey = np.asarray(image).astype(np.int64) >> 8
        return PIL.Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.getbands()[-1] == "A" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, "white")
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
