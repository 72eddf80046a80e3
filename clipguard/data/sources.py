"""From the name the user typed to a validated dataset: the registry of formats, and `load_dataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipguard.core.checking import check_type
from clipguard.core.errors import DatasetError, SplitError, did_you_mean
from clipguard.core.notices import notice
from clipguard.data.classes.labels import EMPTY, GivenNames, Labels, are_ids, check_names, refuse_ids, settle_labels
from clipguard.data.classes.lists import parse_classes
from clipguard.data.classes.names import (
    ClassNames,
    check_words,
    ids_in_words,
    imagenet_templates,
    style_names,
    without_numbers,
)
from clipguard.data.dataset import ImageDataset, ZeroShotDataset
from clipguard.data.decoding import Decode
from clipguard.data.formats.embedded import embedded_folders, open_embedded
from clipguard.data.formats.hub import open_hub, open_hub_tars
from clipguard.data.formats.image_folder import open_images
from clipguard.data.formats.paths import Located, kind_of, locate
from clipguard.data.formats.rows import Request, Rows, sidecar
from clipguard.data.formats.tables import open_arrow, open_parquet, open_saved
from clipguard.data.formats.webdataset import open_tars
from clipguard.data.registry import REMOTE, DatasetEntry, find_entry, groups, registry
from clipguard.data.templates import PHOTO, TemplateSets, read_templates, resolve_templates

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
    classes: str | Path | None = None,
    templates: str = "ensemble",
    class_names: ClassNames = "source",
    duplicate_names: bool = False,
    data_root: Path | None = None,
    decode: Decode = "upright",
) -> ZeroShotDataset:
    """Open a dataset and check all of it but the pixels, which are decoded when asked for.

    name: an embedded dataset (see `list_datasets`), a registered one (see `registry`), a .toml or .yaml file that
        describes one, a file or folder (parquet, arrow, `save_to_disk`, image folder, webdataset tars),
        `hf:org/name[/config][@split]` or `wds:org/name`.
    split: default that of the registry, else test, else validation, valid or val, else the only one.
    image_column, label_column: of a table; detected from its features by default.
    classes: class names between commas, or a file of them (`read_class_list` says which forms). They win over names in
        the data, matched by name if all of those are there, else by position.
    templates: `single`, `ensemble` (the dataset's own, where it has some), or a text file, one a line with `{}`.
    class_names: how names are written; see `style_names`. No effect on `classes`.
    duplicate_names: allow equal names, and keep those of published lists, which are told apart by default.
    data_root: folder with copies of registered datasets, each at `<id>`. Default: CLIPGUARD_DATA.
    decode: "upright", or "plain" as PIL's convert("RGB"); see `clipguard.data.decoding.decode`.
    Raises DatasetError, one line that starts with `name` and names the cure.
    """
    name = _name(name)
    request = Request(split, image_column, label_column)
    with _named(name):
        _check_arguments(
            split=split,
            image_column=image_column,
            label_column=label_column,
            classes=classes,
            templates=templates,
            class_names=class_names,
            data_root=data_root,
            decode=decode,
        )
        entry = find_entry(name)
        given = parse_classes(str(classes)) if classes else None
        rows = _open(name, request, entry, data_root)
        written = given or (entry.given_names() if entry else None)
        if written is not None:
            check_names(written.names, distinct=not duplicate_names)
        winner = _winner(rows, written)
        labels, names = _settle(name, rows, winner)
        names = _write_names(name, names, entry, class_names, winner, given, duplicates=duplicate_names)
        check_names(names, distinct=not duplicate_names)
        prompts = resolve_templates(templates, _template_sets(rows, entry, templates), name)
        if winner is None:
            refuse_ids(names, prompts)
        else:
            check_words(names, prompts)
    return ZeroShotDataset(name, rows.source, rows.split, rows.images, names, prompts, labels, decode=decode)


def load_images(
    name: str, *, split: str | None = None, image_column: str | None = None, data_root: Path | None = None
) -> ImageDataset:
    """Open images without regard to labels: anything `load_dataset` opens, and folders of images in any layout.

    name, split, image_column, data_root: as for `load_dataset`.
    Raises DatasetError, one line that starts with `name` and names the cure.
    """
    name = _name(name)
    with _named(name):
        _check_arguments(split=split, image_column=image_column, data_root=data_root)
        rows = _open(name, Request(split, image_column, labelled=False), find_entry(name), data_root)
        if len(rows.images) == 0:
            raise DatasetError(EMPTY)
    return ImageDataset(name, rows.source, rows.split, rows.images)


ARGUMENTS: dict[str, Any] = {
    "split": str | None,
    "image_column": str | None,
    "label_column": str | None,
    "templates": str,
}
ARGUMENTS |= {"classes": str | Path | None, "data_root": str | Path | None, "class_names": ClassNames, "decode": Decode}


def _name(given: Any) -> str:
    """The name of a data set. Raises DatasetError for what is none."""
    check_type("A data set's name", given, str | Path, DatasetError)
    return str(given)


def _check_arguments(**given: Any) -> None:
    """Raises DatasetError for a value that is of another type than the argument."""
    for what, value in given.items():
        check_type(what, value, ARGUMENTS[what], DatasetError)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        raise type(error)(f"{name}: {error}") from error


def _settle(name: str, rows: Rows, winner: GivenNames | None) -> tuple[Labels, list[str]]:
    """Labels and names, where no class is left out in silence."""
    if winner is None and rows.empty_classes:
        # It would vanish from the class names and make the task easier.
        folder, content = next(iter(rows.empty_classes.items()))
        raise DatasetError(
            f"class folder {folder!r} holds no images"
            + (f" that can be read here ({content})" if content else "")
            + "; "
            "fill it, remove it, or name all classes with --classes FILE"
        )
    if winner is None and rows.classes_elsewhere:
        missing = ", ".join(rows.classes_elsewhere[:3])
        what = f"classes left out, for only other splits have them: {len(rows.classes_elsewhere):,} ({missing})"
        notice("skipped", f"{name}: {what}; --classes FILE names all")
    try:
        return settle_labels(rows.labels, rows.class_names, winner, distinct=False)
    except DatasetError as error:
        raise DatasetError(f"{error}; {rows.hint}" if rows.hint else str(error)) from error


def _winner(rows: Rows, given: GivenNames | None) -> GivenNames | None:
    """--classes or the entry's own, else a ClassLabel's own names (None here), else the classnames.txt of the data.

    Before a ClassLabel whose names are ids, that file is meant.
    """
    if given is not None or (rows.class_names is not None and not are_ids(rows.class_names)):
        return given
    return rows.given_names


def _write_names(
    name: str,
    names: list[str],
    entry: DatasetEntry | None,
    style: ClassNames,
    winner: GivenNames | None,
    given: GivenNames | None,
    *,
    duplicates: bool,
) -> list[str]:
    """Names in the style asked for, WordNet ids in words. Those of --classes stay, unless they are ids."""
    written = None
    if entry is None or not entry.imagenet:
        try:
            written = ids_in_words(names, style)
        except DatasetError:
            if winner is None:
                raise
    if written is None and given is None and entry is None:
        written = without_numbers(names)
    if written is None and given is None:
        written = _style(names, entry, style, raw=winner is None, duplicates=duplicates)
    changed = [(old, new) for old, new in zip(names, written or names, strict=True) if old != new]
    if changed and (style == "source" or are_ids(names)):  # another style was asked for
        old, new = changed[0]
        what = f"{len(changed):,} of {len(names):,} class names are not as they came with the data: {old!r} is {new!r}"
        notice("translated", f"{name}: {what}; --classes FILE gives others")
    return written or names


def _style(
    names: list[str], entry: DatasetEntry | None, style: ClassNames, *, raw: bool, duplicates: bool
) -> list[str]:
    if entry is None:
        return style_names(names, style)
    if style == "tecoa" and entry.tecoa_names is not None:
        if len(names) != len(entry.tecoa_names):
            raise DatasetError(f"{len(names)} classes, but TeCoA's papers have {len(entry.tecoa_names)}")
        names = list(entry.tecoa_names)
    return style_names(names, style, imagenet=entry.imagenet, raw=raw, duplicates=duplicates)


def _template_sets(rows: Rows, entry: DatasetEntry | None, choice: str) -> TemplateSets:
    """What `single` and `ensemble` mean: the entry's, else the data's, else the set's usual ones, else anybody's."""
    if entry is None:
        return rows.templates
    found = rows.templates
    beside = sidecar([Path(rows.source)], "zeroshot_classification_templates.txt")
    if found == PHOTO and beside is not None:
        found = replace(PHOTO, ensemble=tuple(read_templates(beside)))
    elif found == PHOTO and choice == "ensemble" and entry.templates is None:
        if entry.imagenet:
            found = replace(PHOTO, ensemble=imagenet_templates())
        elif entry.ensemble is not None:
            found = replace(PHOTO, ensemble=entry.ensemble)
        else:
            notice(
                "guessed",
                f"{entry.name}: no zeroshot_classification_templates.txt in {rows.source}, so the ensemble is the one "
                "for any photos",
            )
    return entry.template_sets(found)


def _open(name: str, request: Request, entry: DatasetEntry | None, data_root: Path | None) -> Rows:
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


def _open_source(name: str, request: Request) -> Rows:
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
