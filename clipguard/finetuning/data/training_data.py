"""What is trained on: a data set's training split, and the validation images that are set apart from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import CaptionError, DatasetError, FinetuneError, SplitError
from clipguard.core.notices import notice
from clipguard.core.records.provenance import fingerprint, image_hash
from clipguard.data import ImageDataset, ZeroShotDataset, load_dataset, load_images
from clipguard.data.captions import Captions
from clipguard.data.classes.lists import parse_classes
from clipguard.data.dataset import stratified_subset
from clipguard.data.decoding import PixelCount
from clipguard.data.formats.raw_split import ALL
from clipguard.data.images import FileImages
from clipguard.data.templates import PHOTO, resolve_templates
from clipguard.data.text_files import read_text
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import CAPTION_NEEDS, Method
from clipguard.finetuning.sources import NAMED, Sources

TRAINING_SPLITS = ("train", "training", "all")  # in the order in which they are looked for
FINGERPRINTED = 2000  # images whose pixels enter the fingerprint: all of a small set, a sample of a large one
MIN_CAPTIONS = 2
Indices = npt.NDArray[np.int64]
CaptionUse = Literal["none", "given", "or prompts"]
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
        captions: of all images, for methods that need them.
        text_only: whether there are captions alone; then no image can be read.
        prompts_for_captions: whether the captions are prompts of the classes, for want of others.
    """

    images: ImageDataset
    labels: Indices | None
    class_names: list[str]
    templates: list[str]
    train: Indices
    validation: Indices
    held_out: ZeroShotDataset | None
    in_memory: bool = False
    captions: Captions | None = None
    text_only: bool = False
    prompts_for_captions: bool = False

    def fingerprint(self) -> str:
        """SHA-256 of names, labels and pixels of up to `FINGERPRINTED` images, evenly spread over those used.

        Captions count where there are any. Says what decoding does to these.
        """
        used = np.sort(np.concatenate([self.train, self.validation]))
        chosen = used[np.unique(np.linspace(0, len(used) - 1, FINGERPRINTED).round().astype(np.int64))]
        labels = np.full(len(self.images), -1) if self.labels is None else self.labels
        texts = [self.captions[i] for i in chosen.tolist()] if self.captions else []
        names = [*self.class_names, *(text for row in texts for text in row)]
        rows: list[tuple[int, int, str]] = []
        pixels = PixelCount()
        if self.text_only:
            return fingerprint(names, rows)
        for i in chosen.tolist():
            decoded = self.images.read(i)
            pixels.add(decoded.changes, decoded.brightest)
            rows.append((i, int(labels[i]), image_hash(decoded.image)))
        pixels.say(self.images.name)
        return fingerprint(names, rows)


def open_for(method: Method, config: FinetuneConfig, sources: Sources = NAMED) -> TrainingData:
    """`open_data` as a method needs it."""
    needs = method.all_needs()
    return open_data(
        config,
        needs_labels="labels" in needs,
        needs_classes="classes" in needs,
        captions=caption_use(method),
        sources=sources,
    )


def open_data(
    config: FinetuneConfig,
    *,
    needs_labels: bool,
    needs_classes: bool = False,
    captions: CaptionUse = "none",
    sources: Sources = NAMED,
) -> TrainingData:
    """Open a data set's training split and set the validation images apart.

    Args:
        config: the run's settings.
        needs_labels: whether the method does; one that does not takes any folder of images.
        needs_classes: whether it needs class names all the same: those of the settings, where the images have none.
        captions: whether it needs captions, and whether class prompts do where there are none.
        sources: perhaps a data set in memory.

    Raises:
        DatasetError: for data that cannot be used.
        FinetuneError: if too few images are left to train on, or images without labels come without class names.
    """
    if sources.dataset is not None:
        given = _require_training_split(config, sources.dataset(config))
        return _captioned(config, replace(_of_labelled(config, given, None), in_memory=True), captions)
    if captions == "none":
        return _open(config, needs_labels=needs_labels, needs_classes=needs_classes, captioned=False)
    if captions == "or prompts" and config.dataset.endswith(".txt"):
        return _texts_alone(config)
    try:
        return _open(config, needs_labels=needs_labels, needs_classes=needs_classes, captioned=True)
    except CaptionError as error:
        if captions == "or prompts" and config.caption_column is None:
            return _captioned(config, _open(config, needs_labels=True, captioned=False), captions)
        raise CaptionError(f"{error} Without captions, methods such as tecoa train on class names.") from error


def _open(config: FinetuneConfig, *, needs_labels: bool, needs_classes: bool = False, captioned: bool) -> TrainingData:
    try:
        labelled = _training_split(config, lambda split: _load(config, split, captioned=captioned))
    except DatasetError as error:
        if needs_labels or isinstance(error, CaptionError):
            raise
        names, templates = _classes_alone(config, error) if needs_classes else ([], [])
        unlabelled = _training_split(config, lambda split: _load_unlabelled(config, split, captioned))
        notice("skipped", f"{config.method} needs no labels and is trained without, for they cannot be read: {error}")
        return _of_unlabelled(config, unlabelled, names, templates)
    return _of_labelled(config, labelled, _held_out(config, labelled.split))


def _classes_alone(config: FinetuneConfig, error: DatasetError) -> tuple[list[str], list[str]]:
    """Class names and prompts for images without labels. Raises FinetuneError where the settings have no names."""
    if not config.classes:
        raise FinetuneError(f"{config.method} needs no labels, but class names: give `classes` ({error})") from error
    return list(parse_classes(config.classes).names), resolve_templates(config.templates, PHOTO, config.dataset)


def _captioned(config: FinetuneConfig, data: TrainingData, use: CaptionUse) -> TrainingData:
    """Labelled data with captions, if they are wanted: their own, else prompts of the classes."""
    if use == "none":
        return replace(data, captions=None)
    if data.captions is None and use == "or prompts":
        prompts = [tuple(t.replace("{}", name) for t in data.templates) for name in data.class_names]
        assert data.labels is not None
        notice(
            "guessed",
            f"{config.dataset} has no captions, so that of an image is a prompt of its class: {prompts[0][0]!r}",
        )
        return replace(data, captions=[prompts[label] for label in data.labels.tolist()], prompts_for_captions=True)
    if data.captions is None:
        raise CaptionError(f"{config.dataset} has no captions; name their column with `caption_column`.")
    return data


def _texts_alone(config: FinetuneConfig) -> TrainingData:
    """A text file with one caption a line, for methods that do not look at images."""
    path = Path(config.dataset).expanduser()
    captions = [(line.strip(),) for line in read_text(path).splitlines() if line.strip()]
    if len(captions) < MIN_CAPTIONS:
        raise DatasetError(f"{path} has too few captions ({len(captions)}); write more, one a line.")
    nothing = ImageDataset(config.dataset, str(path.absolute()), ALL, FileImages([""] * len(captions)))
    data = _of_unlabelled(config, nothing, [], [])
    return replace(data, captions=captions, text_only=True)


def _of_unlabelled(
    config: FinetuneConfig, unlabelled: ImageDataset, names: list[str], templates: list[str]
) -> TrainingData:
    train, validation = divide(config, np.zeros(len(unlabelled), dtype=np.int64), 1)
    return TrainingData(unlabelled, None, names, templates, train, validation, None, captions=unlabelled.captions)


def _of_labelled(config: FinetuneConfig, labelled: ZeroShotDataset, held_out: ZeroShotDataset | None) -> TrainingData:
    train, validation = divide(config, labelled.labels, len(labelled.class_names))
    names, templates = labelled.class_names, labelled.templates
    captions = labelled.captions
    return TrainingData(labelled, labelled.labels, names, templates, train, validation, held_out, captions=captions)


def _require_training_split(config: FinetuneConfig, dataset: ZeroShotDataset) -> ZeroShotDataset:
    """A data set in memory, if it is no test data or its split was named. Raises FinetuneError otherwise."""
    if config.split not in (None, dataset.split):
        what = f"{dataset.name} is in memory as its split {dataset.split!r}, and has no {config.split!r}"
        raise FinetuneError(f"{what}: leave `split` out.")
    if config.split is None and dataset.split.partition("[")[0] not in TRAINING_SPLITS:
        cure = f"load its training split, or say `split={dataset.split!r}` to train on this one all the same"
        raise FinetuneError(f"{dataset.name} is the split {dataset.split!r} of its data, which is for testing: {cure}.")
    return dataset


def _load(config: FinetuneConfig, split: str | None, *, captioned: bool = False) -> ZeroShotDataset:
    return load_dataset(
        config.dataset,
        split=split,
        image_column=config.image_column,
        label_column=config.label_column,
        classes=config.classes or None,
        templates=config.templates,
        data_root=_data_root(config),
        captions=captioned,
        caption_column=config.caption_column,
    )


def _load_unlabelled(config: FinetuneConfig, split: str | None, captioned: bool) -> ImageDataset:
    return load_images(
        config.dataset,
        split=split,
        image_column=config.image_column,
        data_root=_data_root(config),
        captions=captioned,
        caption_column=config.caption_column,
    )


def caption_use(method: Method) -> CaptionUse:
    """What a method wants of captions."""
    if not method.all_needs() & CAPTION_NEEDS:
        return "none"
    return "or prompts" if method.takes_prompts() else "given"


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
