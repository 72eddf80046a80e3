"""One split as a format holds it: encoded images and raw labels, before names and templates are settled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clipguard.core.errors import DatasetError, SplitError, did_you_mean
from clipguard.data.captions import Captions
from clipguard.data.classes.labels import NameList
from clipguard.data.classes.lists import read_class_list
from clipguard.data.images import EncodedImages
from clipguard.data.templates import PHOTO, TemplateSets

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""The split of a format that has none."""


@dataclass(frozen=True)
class Request:
    """What the user asked for, besides the name; None means detect."""

    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    labelled: bool = True
    """Whether labels are wanted; without, `RawSplit.labels` may be empty."""
    captioned: bool = False
    """Whether captions are wanted."""
    caption_column: str | None = None
    """Of a table, or the key of the JSON beside the images of a web dataset."""


@dataclass
class RawSplit:
    """N encoded images and their raw labels, of one split."""

    source: str
    split: str
    images: EncodedImages
    labels: pd.Series  # (N,) integers or strings, missing ones included; empty if not wanted
    class_names: list[str] | None = None  # of a ClassLabel: what integer labels mean
    listed_names: NameList | None = None  # of a classnames.txt that came with the data
    templates: TemplateSets = PHOTO
    empty_classes: dict[str, str] = field(default_factory=dict)  # class folders without images, and what is in them
    classes_elsewhere: list[str] = field(default_factory=list)  # that only other splits have
    captions: Captions | None = None  # None: not wanted
    hint: str = ""  # what else may be wrong where labels are


def choose_split(available: Iterable[str], named: str | None) -> str:
    """The split that was named, else test, else validation, valid or val, else the only one.

    Raises:
        SplitError: listing the splits, where the name is none of them, or none was named and it is not clear.
    """
    splits = list(available)
    listing = f"Splits: {', '.join(splits)}."
    if named is not None:
        if named not in splits:
            hint = did_you_mean(named, splits)
            raise SplitError(f"no split {named!r}; choose one with `split`.{hint} {listing}")
        return named
    for usual in ("test", "validation", "valid", "val"):
        if usual in splits:
            return usual
    if len(splits) != 1:
        raise SplitError(f"it has several splits and none is called test or validation; choose with `split`. {listing}")
    return splits[0]


def refuse_columns(request: Request, what: str) -> None:
    """Raise DatasetError if columns are named for a format that has none: an option is never ignored in silence."""
    if request.image_column is not None or request.label_column is not None:
        raise DatasetError(f"{what} has no columns; leave out `image_column` and `label_column`")


def sidecar(folders: Iterable[Path], filename: str) -> Path | None:
    """The first `filename` that exists in `folders`."""
    return next((folder / filename for folder in folders if (folder / filename).is_file()), None)


def sidecar_names(folders: Iterable[Path]) -> NameList | None:
    """Class names of the first classnames.txt in `folders`, or None."""
    path = sidecar(folders, "classnames.txt")
    return read_class_list(path) if path else None
