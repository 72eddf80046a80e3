"""Encoded images, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


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
class FileImages:
    """One image file a row."""

    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedImage:
        return EncodedImage(None, self.paths[index])


def reason(error: Exception) -> str:
    """Why an image could not be decoded, on one line."""
    import PIL

    if isinstance(error, PIL.UnidentifiedImageError):  # its text is the address of a buffer
        return "not in an image format that PIL can read"
    return str(error).partition("\n")[0] or repr(error)
