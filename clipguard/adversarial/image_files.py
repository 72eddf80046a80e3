"""Image files named one by one, as a data set: classes come with them, labels perhaps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from clipguard.core.errors import DatasetError, did_you_mean
from clipguard.core.notices import notice
from clipguard.data import ZeroShotDataset
from clipguard.data.classes.ids import check_listed_names
from clipguard.data.classes.labels import NameList, settle_labels
from clipguard.data.classes.lists import parse_classes
from clipguard.data.classes.names import ids_in_words
from clipguard.data.decoding import Decode, decode
from clipguard.data.images import EncodedImage, FileImages, reason
from clipguard.data.templates import PHOTO, resolve_templates


@dataclass(frozen=True)
class ImageFiles:
    """Images by path (their position is their index), and labels: none, one for all, or one each.

    classes: names between commas, or a file of them; see `parse_classes`.
    """

    paths: tuple[Path, ...]
    classes: str
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the data set is called in the results."""
        return str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} images"

    def open(self, templates: str, how: Decode = "upright", *, duplicates: bool = False) -> ZeroShotDataset:
        """The data set, every image decoded once; without labels, all are 0 until the model has named them.

        duplicates: allow equal names. Raises DatasetError for a file that is no image, unusable class names, and labels
        that are no class.
        """
        for path in self.paths:
            _check_image(path, how)
        classes = self._class_names()
        numbers = self._label_numbers(classes)
        prompts = resolve_templates(templates, PHOTO)
        try:
            labels, class_names = settle_labels(pd.Series(numbers), None, classes, distinct=not duplicates)
            check_listed_names(class_names, prompts)
        except DatasetError as error:
            raise DatasetError(f"`classes`: {error}.") from None
        return ZeroShotDataset(
            name=self.name,
            source=", ".join(str(path.absolute()) for path in self.paths),
            split="all",
            class_names=class_names,
            templates=prompts,
            labels=labels,
            images=FileImages([str(path) for path in self.paths]),
            decode=how,
        )

    def _class_names(self) -> NameList:
        """The names, those that are WordNet ids in words."""
        classes = parse_classes(self.classes)
        words = ids_in_words(classes.names, "source")
        if words is None:
            return classes
        first = f"{classes.names[0]!r} is {words[0]!r}"
        notice("translated", f"{classes.origin}: {len(words):,} WordNet ids are put in words: {first}")
        return replace(classes, names=words, ids=classes.names)

    def _label_numbers(self, classes: NameList) -> list[int]:
        n, known = len(self.paths), [*classes.names, *(classes.ids or ())]
        if len(self.labels) not in (0, 1, n):
            raise DatasetError(f"{len(self.labels)} labels for {n} images; give `label` once, or once for each image.")
        for label in self.labels:
            if label not in known:
                hint = did_you_mean(label, known) or f" They are {_listed(classes.names)}."
                raise DatasetError(f"`label` {label!r} is not one of `classes`.{hint}")
        numbers = [known.index(label) % len(classes.names) for label in self.labels] or [0]
        return numbers if len(numbers) == n else numbers * n


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _check_image(path: Path, how: Decode) -> None:
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; attack a folder of images with `datasets` {path}.")
    if not path.is_file():
        raise DatasetError(f"{path}: no such image file. Check the path; a data set is named with `datasets`.")
    try:
        decode(EncodedImage(None, str(path)), how)
    except Exception as error:  # PIL reports a broken file with a dozen types
        raise DatasetError(
            f"{path} cannot be read as an image: {reason(error)}. Give a PNG, JPEG or the like."
        ) from error
