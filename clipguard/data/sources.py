"""`load_dataset`: from the name the user typed to a data set that is checked; and the registry of formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.checking import check_type
from clipguard.core.errors import DatasetError, SplitError, did_you_mean
from clipguard.core.notices import notice
from clipguard.data.classes.ids import check_data_names, check_listed_names
from clipguard.data.classes.labels import EMPTY, NameList
from clipguard.data.classes.lists import parse_classes
from clipguard.data.classes.names import ClassNames, imagenet_templates
from clipguard.data.classes.naming import name_classes
from clipguard.data.dataset import MEMORY, ImageDataset, ZeroShotDataset
from clipguard.data.decoding import Decode
from clipguard.data.formats.embedded import embedded_folders, open_embedded
from clipguard.data.formats.hub import open_hub, open_hub_tars
from clipguard.data.formats.image_folder import open_images
from clipguard.data.formats.paths import Located, kind_of, locate
from clipguard.data.formats.raw_split import ALL, RawSplit, Request, sidecar
from clipguard.data.formats.tables import open_arrow, open_parquet, open_saved, split_of_table
from clipguard.data.formats.webdataset import open_tars
from clipguard.data.registry import REMOTE, DatasetEntry, find_entry, groups, registry
from clipguard.data.templates import PHOTO, TemplateSets, read_templates, resolve_templates

FORMATS: dict[str, Callable[[Located, Request], RawSplit]] = {
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
    classes: str | Path | None = None,
    templates: str = "ensemble",
    class_names: ClassNames = "source",
    duplicate_names: bool = False,
    data_root: Path | None = None,
    decode: Decode = "upright",
    captions: bool = False,
    caption_column: str | None = None,
) -> ZeroShotDataset:
    """Open a dataset and check all of it but the pixels, which are decoded when asked for.

    Args:
        name: an embedded dataset (see `list_datasets`), a registered one (see `registry`), a .toml or .yaml file that
            describes one, a file or folder (parquet, arrow, `save_to_disk`, image folder, webdataset tars),
            `hf:org/name[/config][@split]` or `wds:org/name`.
        split: default that of the registry, else test, else validation, valid or val, else the only one.
        image_column: of a table; detected from its features by default.
        label_column: the same.
        classes: class names between commas, or a file of them (`read_class_list` says which forms). They win over
            names in the data, matched by name if all of those are there, else by position.
        templates: `single`, `ensemble` (the dataset's own, where it has some), or a text file, one a line with `{}`.
        class_names: how names are written; see `style_names`. No effect on `classes`.
        duplicate_names: allow equal names, and keep those of published lists, which are told apart by default.
        data_root: folder with copies of registered datasets, each at `<id>`. Default: CLIPGUARD_DATA.
        decode: "upright", or "plain" as PIL's convert("RGB"); see `clipguard.data.decoding.decode`.
        captions: whether to read the images' captions, too.
        caption_column: of a table, or the key of the JSON in a web dataset; detected by default.

    Raises:
        DatasetError: one line that starts with `name` and names the cure.
    """
    name = _name(name)
    with _named(name):
        _check_types(split=split, image_column=image_column, label_column=label_column, classes=classes)
        _check_types(templates=templates, class_names=class_names, data_root=data_root, decode=decode)
        _check_types(caption_column=caption_column)
        entry = find_entry(name)
        typed = parse_classes(str(classes)) if classes else None
        request = Request(split, image_column, label_column, captioned=captions, caption_column=caption_column)
        raw = _open(request, name, entry, data_root)
        return _dataset_of(name, raw, entry, typed, templates, class_names, decode, duplicates=duplicate_names)


def dataset_of_table(
    table: Any,
    name: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: str | Path | None = None,
    templates: str = "ensemble",
    class_names: ClassNames = "source",
    duplicate_names: bool = False,
    decode: Decode = "upright",
    caption_column: str | None = None,
) -> ZeroShotDataset:
    """A `datasets.Dataset` with images and labels, as `load_dataset` would open it from a file.

    Args:
        table: the one split that is meant.
        name: of the data set, in results.
        split: a name for the split, in results.
        image_column: detected from the features by default.
        label_column: the same.
        classes: as for `load_dataset`, as are the others.
        templates: prompts.
        class_names: how names are written.
        duplicate_names: allow equal names.
        decode: how images become pixels.
        caption_column: of the captions, which are read if it is given.

    Raises:
        DatasetError: one line that starts with `name` and names the cure.
    """
    with _named(name):
        typed = parse_classes(str(classes)) if classes else None
        captioned = caption_column is not None
        request = Request(split, image_column, label_column, captioned=captioned, caption_column=caption_column)
        raw = split_of_table(table, MEMORY, split or str(table.split or ALL), request)
        return _dataset_of(name, raw, None, typed, templates, class_names, decode, duplicates=duplicate_names)


def _dataset_of(
    name: str,
    raw: RawSplit,
    entry: DatasetEntry | None,
    typed: NameList | None,
    templates: str,
    style: ClassNames,
    decode: Decode,
    *,
    duplicates: bool,
) -> ZeroShotDataset:
    """What is settled of a split whatever its format: class names, labels and prompts."""
    labels, names, listed = name_classes(name, raw, entry, typed, style, duplicates=duplicates)
    prompts = resolve_templates(templates, _template_sets(raw, entry, templates), name)
    if listed:
        check_listed_names(names, prompts)
    else:
        check_data_names(names, prompts)
    return ZeroShotDataset(
        name, raw.source, raw.split, raw.images, names, prompts, labels, decode=decode, captions=raw.captions
    )


def load_images(
    name: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    data_root: Path | None = None,
    captions: bool = False,
    caption_column: str | None = None,
) -> ImageDataset:
    """Open images without regard to labels: anything `load_dataset` opens, and folders of images in any layout.

    Args:
        name: as for `load_dataset`, and so are the others.
        split: which one.
        image_column: of a table.
        data_root: folder with copies.
        captions: whether to read the images' captions, too.
        caption_column: as for `load_dataset`.

    Raises:
        DatasetError: one line that starts with `name` and names the cure.
    """
    name = _name(name)
    with _named(name):
        _check_types(split=split, image_column=image_column, data_root=data_root, caption_column=caption_column)
        request = Request(split, image_column, None, False, captions, caption_column)
        raw = _open(request, name, find_entry(name), data_root)
        if len(raw.images) == 0:
            raise DatasetError(EMPTY)
    return ImageDataset(name, raw.source, raw.split, raw.images, captions=raw.captions)


TYPES: dict[str, Any] = {  # of the arguments of `load_dataset`
    "split": str | None,
    "image_column": str | None,
    "label_column": str | None,
    "classes": str | Path | None,
    "templates": str,
    "class_names": ClassNames,
    "data_root": str | Path | None,
    "decode": Decode,
    "caption_column": str | None,
}


def _name(name: Any) -> str:
    """The name of a data set. Raises DatasetError for what is none."""
    check_type("A data set's name", name, str | Path, DatasetError)
    return str(name)


def _check_types(**arguments: Any) -> None:
    """Raises DatasetError for a value that is of another type than the argument."""
    for name, value in arguments.items():
        check_type(f"`{name}`", value, TYPES[name], DatasetError)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        raise type(error)(f"{name}: {error}") from error


def _template_sets(raw: RawSplit, entry: DatasetEntry | None, choice: str) -> TemplateSets:
    """What `single` and `ensemble` mean: the entry's, else the data's, else the set's usual ones, else anybody's."""
    sets = raw.templates
    if entry is None:
        return sets
    beside = sidecar([Path(raw.source)], "zeroshot_classification_templates.txt")
    if sets == PHOTO and beside is not None:
        sets = replace(PHOTO, ensemble=tuple(read_templates(beside)))
    elif sets == PHOTO and choice == "ensemble" and entry.templates is None:
        if entry.imagenet:
            sets = replace(PHOTO, ensemble=imagenet_templates())
        elif entry.ensemble is not None:
            sets = replace(PHOTO, ensemble=entry.ensemble)
        else:
            notice(
                "guessed",
                f"{entry.name}: no zeroshot_classification_templates.txt in {raw.source}, so the ensemble is the one "
                "for any photos",
            )
    return entry.template_sets(sets)


def _open(request: Request, name: str, entry: DatasetEntry | None, data_root: Path | None) -> RawSplit:
    if entry is None:
        return _open_source(name, request)
    source = entry.locate(data_root)
    request = replace(
        request,
        split=request.split or (entry.split if source == entry.source else None),
        image_column=request.image_column or entry.image_column,
        label_column=request.label_column or entry.label_column,
    )
    try:
        return _open_source(source, request)
    except DatasetError as error:
        if not source.startswith(REMOTE) or isinstance(error, SplitError):
            raise
        raise DatasetError(f"{error}; {entry.cure(data_root)}") from error


def _open_source(name: str, request: Request) -> RawSplit:
    if name.startswith("hf:"):
        return open_hub(name, request)
    if name.startswith("wds:"):
        return open_hub_tars(name, request)
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
    known = [*embedded_folders(), *registry(), *groups()]
    hint = did_you_mean(name, known)
    if not hint and (Path(name).is_absolute() or name.startswith((".", "~")) or kind_of(name)):
        return DatasetError("no such file or folder; check the path")
    if not hint and name.count("/") == 1:
        hint = f" For the hub's dataset, write hf:{name}."
    return DatasetError(
        f"not a known dataset or an existing path.{hint} Embedded: {', '.join(embedded_folders())}; "
        "`clipguard list datasets` shows all; or give a path, or hf:org/name."
    )
