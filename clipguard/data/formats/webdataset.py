"""WebDataset tars, CLIP_benchmark's layout among them: an index of member offsets, images read in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import CaptionError, DatasetError
from clipguard.data.captions import Captions, check_captions
from clipguard.data.formats.paths import Located, files_by_split
from clipguard.data.formats.raw_split import RawSplit, Request, choose_split, refuse_columns, sidecar, sidecar_names
from clipguard.data.formats.tar_index import index_samples
from clipguard.data.images import EncodedImage
from clipguard.data.templates import PHOTO, TemplateSets, read_templates
from clipguard.data.text_files import read_text

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


def open_tars(located: Located, request: Request) -> RawSplit:
    """A split of a tar, of a folder of tars, or of `{split}/0.tar ...`, each sample an image and a `.cls` member.

    `.cls` is a class index or a class name. A caption is in `.txt`, or in `.json` under a key. `classnames.txt` and
    `zeroshot_classification_templates.txt` are looked for in the root and beside the tars.

    Raises:
        DatasetError: on a missing tar, and as `index_samples` does.
    """
    refuse_columns(request, "a webdataset")
    splits = files_by_split(located)
    split = choose_split(splits, request.split)
    tars = [located.root / file for file in splits[split]]
    if located.path.is_dir():
        _check_all_shards(tars)
    folders = [located.root, tars[0].parent]
    if (tars[0].parent / "nshards.txt").is_file():
        # The user named a tar or a split of CLIP_benchmark's layout: its root is above.
        folders.append(tars[0].parent.parent)
    located.notice_skipped()
    samples = index_samples(tars, located.path, request)
    table = np.array([(s.image.tar, s.image.offset, s.image.size) for s in samples], dtype=np.int64).reshape(-1, 3)
    names = [sample.image.name for sample in samples]
    images = TarImages(tars, table[:, 0].astype(np.int32), table[:, 1], table[:, 2], names)
    labels = _as_series([sample.label for sample in samples])
    beside = sidecar(folders, "zeroshot_classification_templates.txt")
    templates = TemplateSets(PHOTO.single, tuple(read_templates(beside))) if beside else PHOTO
    raw = RawSplit(str(located.path), split, images, labels, listed_names=sidecar_names(folders), templates=templates)
    if request.captioned:
        raw.captions = _captions([sample.captions for sample in samples], names, located.path)
    return raw


def _captions(captions: list[tuple[str, ...]], names: list[str], where: Path) -> Captions:
    """Raises CaptionError if there are none, and DatasetError if one is missing."""
    if not any(captions):
        raise CaptionError(
            f"{where}: its images have no captions; store that of x.jpg as x.txt, or in x.json under 'caption' or the "
            "key that `caption_column` names"
        )
    return check_captions(captions, lambda row: names[row])


def _check_all_shards(tars: list[Path]) -> None:
    """CLIP_benchmark's nshards.txt has the number of shards: half a download must not pass for the whole set."""
    path = tars[0].parent / "nshards.txt"
    if not path.is_file():
        return
    expected = read_text(path).strip()
    present = sum(tar.parent == path.parent for tar in tars)
    if expected != str(present):
        raise DatasetError(f"{path} says {expected} shards, but there are {present}; download the missing ones")


def _as_series(labels: list[str | None]) -> pd.Series:
    """Integers if every label that is there is one, else class names."""
    import pandas as pd

    series = pd.Series(labels, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce")
    if len(series) and numbers.notna().equals(series.notna()):
        return numbers
    return series
