"""What is trained on: a data set's training split, and the validation images that are set apart from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import DatasetError, FinetuneError, SplitError
from clipguard.core.notices import notice
from clipguard.core.records.provenance import fingerprint, image_hash
from clipguard.data import ImageDataset, ZeroShotDataset, load_dataset, load_images
from clipguard.data.classes.lists import parse_classes
from clipguard.data.dataset import stratified_subset
from clipguard.data.decoding import PixelCount
from clipguard.data.templates import PHOTO, resolve_templates
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import Method
from clipguard.finetuning.sources import NAMED, Sources

TRAINING_SPLITS = ("train", "training", "all")  # in the order in which they are looked for
FINGERPRINTED = 2000  # images whose pixels enter the fingerprint: all of a small set, a sample of a large one
Indices = npt.NDArray[np.int64]
AnyDataset = TypeVar("AnyDataset", bound=ImageDataset)


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and which of it only chooses the best checkpoint.

    Attributes:
        images: all images of the split.
        labels: (N,) of all images; None if there are none.
        class_names, templates: empty where there are neither labels nor a need of class texts.
        train, validation: sorted indices, disjoint.
        held_out: the data set's own test split, where it has one.
        in_memory: whether all there is was given as an object.
    """

    images: ImageDataset
    labels: Indices | None
    class_names: list[str]
    templates: list[str]
    train: Indices
    validation: Indices
    held_out: ZeroShotDataset | None
    in_memory: bool = False

    def fingerprint(self) -> str:
        """SHA-256 of names, labels and pixels of up to `FINGERPRINTED` images, evenly spread over those used.

        Says what decoding does to these.
        """
        used = np.sort(np.concatenate([self.train, self.validation]))
        chosen = used[np.unique(np.linspace(0, len(used) - 1, FINGERPRINTED).round().astype(np.int64))]
        labels = np.full(len(self.images), -1) if self.labels is None else self.labels
        rows, pixels = [], PixelCount()
        for i in chosen.tolist():
            decoded = self.images.read(i)
            pixels.add(decoded.changes, decoded.brightest)
            rows.append((i, int(labels[i]), image_hash(decoded.image)))
        pixels.say(self.images.name)
        return fingerprint(self.class_names, rows)


def open_for(method: Method, config: FinetuneConfig, sources: Sources = NAMED) -> TrainingData:
    """`open_data` as a method needs it."""
    needs = method.all_needs()
    return open_data(config, needs_labels="labels" in needs, needs_classes="classes" in needs, sources=sources)


def open_data(
    config: FinetuneConfig, *, needs_labels: bool, needs_classes: bool = False, sources: Sources = NAMED
) -> TrainingData:
    """Open a data set's training split and set the validation images apart.

    Args:
        config: the run's settings.
        needs_labels: whether the method does; one that does not takes any folder of images.
        needs_classes: whether it needs class names all the same: those of the settings, where the images have none.
        sources: perhaps a data set in memory.

    Raises:
        DatasetError: for data that cannot be used.
        FinetuneError: if too few images are left to train on, or images without labels come without class names.
    """
    if sources.dataset is not None:
        given = _require_training_split(config, sources.dataset(config))
        return replace(_of_labelled(config, given, None), in_memory=True)
    try:
        labelled = _training_split(config, lambda split: _load(config, split))
    except DatasetError as error:
        if needs_labels:
            raise
        names, templates = _classes_alone(config, error) if needs_classes else ([], [])
        unlabelled = _training_split(config, lambda split: _load_unlabelled(config, split))
        notice("skipped", f"{config.method} needs no labels and is trained without, for they cannot be read: {error}")
        train, validation = divide(config, np.zeros(len(unlabelled), dtype=np.int64), 1)
        return TrainingData(unlabelled, None, names, templates, train, validation, None)
    return _of_labelled(config, labelled, _held_out(config, labelled.split))


def _classes_alone(config: FinetuneConfig, error: DatasetError) -> tuple[list[str], list[str]]:
    """Class names and prompts for images without labels. Raises FinetuneError where the settings have no names."""
    if not config.classes:
        raise FinetuneError(f"{config.method} needs no labels, but class names: give `classes` ({error})") from error
    return list(parse_classes(config.classes).names), resolve_templates(config.templates, PHOTO, config.dataset)


def _of_labelled(config: FinetuneConfig, labelled: ZeroShotDataset, held_out: ZeroShotDataset | None) -> TrainingData:
    train, validation = divide(config, labelled.labels, len(labelled.class_names))
    names, templates = labelled.class_names, labelled.templates
    return TrainingData(labelled, labelled.labels, names, templates, train, validation, held_out)


def _require_training_split(config: FinetuneConfig, dataset: ZeroShotDataset) -> ZeroShotDataset:
    """A data set in memory, if it is no test data or its split was named. Raises FinetuneError otherwise."""
    if config.split not in (None, dataset.split):
        what = f"{dataset.name} is in memory as its split {dataset.split!r}, and has no {config.split!r}"
        raise FinetuneError(f"{what}: leave `split` out.")
    if config.split is None and dataset.split.partition("[")[0] not in TRAINING_SPLITS:
        cure = f"load its training split, or say `split={dataset.split!r}` to train on this one all the same"
        raise FinetuneError(f"{dataset.name} is the split {dataset.split!r} of its data, which is for testing: {cure}.")
    return dataset


def _load(config: FinetuneConfig, split: str | None) -> ZeroShotDataset:
    return load_dataset(
        config.dataset,
        split=split,
        image_column=config.image_column,
        label_column=config.label_column,
        classes=config.classes or None,
        templates=config.templates,
        data_root=_data_root(config),
    )


def _load_unlabelled(config: FinetuneConfig, split: str | None) -> ImageDataset:
    return load_images(config.dataset, split=split, image_column=config.image_column, data_root=_data_root(config))


def _data_root(config: FinetuneConfig) -> Path | None:
    return Path(config.data_root).expanduser() if config.data_root else None


def _training_split(config: FinetuneConfig, load: Callable[[str | None], AnyDataset]) -> AnyDataset:
    """The split that was named, else the training split, else all of a set without splits; never test data."""
    if config.split is not None or (config.dataset.startswith("hf:") and "@" in config.dataset):
        return load(config.split)
    missing: list[SplitError] = []
    for split in TRAINING_SPLITS:
        try:
            return load(split)
        except SplitError as error:
            missing.append(error)
    raise missing[0]


def _held_out(config: FinetuneConfig, trained_on: str) -> ZeroShotDataset | None:
    """The test (else validation) split, unless it is what is trained on."""
    try:
        dataset = _load(config, None)
    except SplitError:
        return None
    return dataset if dataset.split != trained_on else None


def divide(config: FinetuneConfig, labels: Indices, n_classes: int) -> tuple[Indices, Indices]:
    """Sorted indices of the training and the validation images, both stratified by label (N,).

    Raises:
        FinetuneError: if no image is left to train on.
    """
    used = stratified_subset(labels, n_classes, config.n_samples, config.seed)
    n = max(1, round(config.val_fraction * len(used))) if config.val_fraction else 0
    if n >= len(used):
        raise FinetuneError(f"{config.dataset}: {len(used)} images are too few to train on; give more.")
    chosen = stratified_subset(labels[used], n_classes, n, config.seed) if n else np.empty(0, dtype=np.int64)
    return np.delete(used, chosen), used[chosen]
