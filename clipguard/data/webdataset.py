"""WebDataset tars, CLIP_benchmark's layout among them: an index of member offsets, images read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipguard.data.folders import Located, files_by_split
from clipguard.data.images import IMAGE_SUFFIXES, EncodedImage
from clipguard.data.pasted import read_text
from clipguard.data.rows import Request, Rows, choose_split, refuse_columns, sidecar, sidecar_names
from clipguard.data.templates import PHOTO, TemplateSets, read_templates
from clipguard.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class TarImages:
    """Images inside uncompressed tars. Only offsets are in memory; each read opens its tar: workers share nothing."""

    tars: list[Path]
    tar: npt.NDArray[np.int32]  # (N,) index into tars
    offset: npt.NDArray[np.int64]  # (N,) bytes
    size: npt.NDArray[np.int64]  # (N,) bytes
    members: list[str]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> EncodedImage:
        path = self.tars[self.tar[index]]
        with path.open("rb") as file:
            file.seek(int(self.offset[index]))
            return EncodedImage(file.read(int(self.size[index])), f"{path}:{self.members[index]}")


@dataclass
class _Sample:
    """The members of one key."""

    images: list[tarfile.TarInfo] = field(default_factory=list)
    label: str | None = None


def open_tars(located: Located, request: Request) -> Rows:
    """Rows of a tar, of a folder of tars, or of `{split}/0.tar ...`, each sample an image and a `.cls` member.

    `.cls` is a class index or a class name. `classnames.txt` and `zeroshot_classification_templates.txt` are looked for
    in the root and beside the tars. Raises DatasetError on a broken or missing tar, or a sample with several images.
    """
    refuse_columns(request, "a webdataset")
    splits = files_by_split(located)
    split = choose_split(splits, request.split)
    tars = [located.root / file for file in splits[split]]
    if located.path.is_dir():
        _check_all_shards(tars)
    folders = [located.root, tars[0].parent]
    if (tars[0].parent / "nshards.txt").is_file():
        folders.append(
            tars[0].parent.parent
        )  # the user named a tar or a split of CLIP_benchmark's layout: its root is above
    images, labels = _index(tars)
    own = sidecar(folders, "zeroshot_classification_templates.txt")
    templates = TemplateSets(PHOTO.single, tuple(read_templates(own))) if own else PHOTO
    return Rows(
        str(located.path), split, images, _as_series(labels), given_names=sidecar_names(folders), templates=templates
    )


def _check_all_shards(tars: list[Path]) -> None:
    """CLIP_benchmark's nshards.txt has the number of shards: half a download must not pass for the whole set."""
    path = tars[0].parent / "nshards.txt"
    if not path.is_file():
        return
    expected = read_text(path).strip()
    present = sum(tar.parent == path.parent for tar in tars)
    if expected != str(present):
        raise DatasetError(f"{path} says {expected} shards, but there are {present}; download the missing ones")


def _index(tars: list[Path]) -> tuple[TarImages, list[str | None]]:
    places: list[tuple[int, int, int]] = []
    members: list[str] = []
    labels: list[str | None] = []
    for number, path in enumerate(tars):
        for key, sample in _samples(path).items():
            if len(sample.images) > 1:
                names = ", ".join(image.name for image in sample.images)
                raise DatasetError(f"{path}: sample {key!r} has several images ({names}); keep one a sample")
            for image in sample.images:
                places.append((number, image.offset_data, image.size))
                members.append(image.name)
                labels.append(sample.label)
    table = np.array(places, dtype=np.int64).reshape(-1, 3)
    return TarImages(tars, table[:, 0].astype(np.int32), table[:, 1], table[:, 2], members), labels


def _samples(path: Path) -> dict[str, _Sample]:
    """Key -> image members and label; the key is the name up to the first dot of its last part, as in webdataset."""
    samples: dict[str, _Sample] = {}
    for member, content in _members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        sample = samples.setdefault(f"{folder}/{stem}", _Sample())
        if content is not None:
            sample.label = content.decode("utf-8", errors="replace").strip() or None
        elif f".{extension.lower()}" in IMAGE_SUFFIXES:
            sample.images.append(member)
    return samples


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Every file member, with its content if it is a `.cls`. Raises DatasetError if the tar is corrupt or cut short."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    file = tar.extractfile(member) if member.name.lower().endswith(".cls") else None
                    yield member, file.read() if file else None
            end = tar.offset
        with path.open("rb") as raw:
            raw.seek(end)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end of the archive
                raise tarfile.ReadError(f"broken header at byte {end}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(
            f"cannot read {path}: {error}; it is corrupt, cut short or compressed: download it again, or decompress it"
        ) from error


def _as_series(labels: list[str | None]) -> pd.Series:
    """Integers if every label that is there is one, else class names."""
    import pandas as pd

    series = pd.Series(labels, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce")
    if len(series) and numbers.notna().equals(series.notna()):
        return numbers
    return series
