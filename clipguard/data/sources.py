"""From the name the user typed to a validated dataset: the registry of formats, and `load_dataset`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipguard.data.dataset import ImageDataset, ZeroShotDataset
from clipguard.data.embedded import embedded_folders, open_embedded
from clipguard.data.folders import KINDS, Located, locate, open_images
from clipguard.data.hub import open_hub
from clipguard.data.labels import EMPTY, GivenNames, settle_labels
from clipguard.data.rows import Request, Rows
from clipguard.data.tables import open_arrow, open_parquet, open_saved
from clipguard.data.templates import resolve_templates
from clipguard.data.textfile import read_class_names
from clipguard.data.webdataset import open_tars
from clipguard.errors import DatasetError, did_you_mean

FORMATS: dict[str, Callable[[Located, Request], Rows]] = {
    "saved": open_saved,
    "parquet": open_parquet,
    "arrow": open_arrow,
    "tar": open_tars,
    "image": open_images,
}


def load_dataset(
    name: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Path | None = None,
    templates: str = "ensemble",
) -> ZeroShotDataset:
    """Open a dataset and check all of it but the pixels, which are decoded when asked for.

    name: an embedded dataset (see `list_datasets`), a file or folder (parquet, arrow, `save_to_disk`, image folder,
        webdataset tars), or `hf:org/name[/config][@split]`.
    split: default test, else validation or val, else the only one.
    image_column, label_column: of a table; detected from its features by default.
    classes: file of class names, one a line or a JSON list. It wins over names in the data, matched by name if it has
        all of those, else by position.
    templates: `single`, `ensemble` (the dataset's own, where it has some), or a text file, one a line with `{}`.
    Raises DatasetError, one line that starts with `name` and names the cure.
    """
    request = Request(split, image_column, label_column)
    try:
        given = GivenNames(read_class_names(Path(classes).expanduser()), str(classes)) if classes else None
        rows = _open(name, request)
        labels, class_names = settle_labels(rows.labels, rows.class_names, _winner(rows, given))
        prompts = resolve_templates(templates, rows.templates)
    except DatasetError as error:
        raise type(error)(f"{name}: {error}") from error
    return ZeroShotDataset(name, rows.source, rows.split, rows.images, class_names, prompts, labels)


def load_images(name: str, *, split: str | None = None, image_column: str | None = None) -> ImageDataset:
    """Open images without regard to labels: anything `load_dataset` opens, and folders of images in any layout.

    name, split, image_column: as for `load_dataset`.
    Raises DatasetError, one line that starts with `name` and names the cure.
    """
    try:
        rows = _open(name, Request(split, image_column, labelled=False))
        if len(rows.images) == 0:
            raise DatasetError(EMPTY)
    except DatasetError as error:
        raise type(error)(f"{name}: {error}") from error
    return ImageDataset(name, rows.source, rows.split, rows.images)


def _winner(rows: Rows, given: GivenNames | None) -> GivenNames | None:
    """--classes, else a ClassLabel's own names (None here), else the classnames.txt beside the data."""
    if given is not None or rows.class_names is not None:
        return given
    return rows.given_names


def _open(name: str, request: Request) -> Rows:
    if name.startswith("hf:"):
        return open_hub(name, request)
    if name in embedded_folders():
        return open_embedded(name, request)
    if not name or not _exists(name):
        raise _unknown(name)
    located = locate(Path(name).expanduser())
    return FORMATS[located.kind](located, request)


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a path, or ~somebody who has no home
        return False


def _unknown(name: str) -> DatasetError:
    known = list(embedded_folders())
    hint = did_you_mean(name, known)
    if not hint and (Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).suffix in KINDS):
        return DatasetError("no such file or folder; check the path")
    if not hint and name.count("/") == 1:
        hint = f" For the hub's dataset, write hf:{name}."
    return DatasetError(
        f"not a known dataset or an existing path.{hint} Embedded: {', '.join(known)}; or give a path, or hf:org/name."
    )
