"""The class names that a data set is evaluated with: which list wins, what labels mean in it, how names are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.classes.ids import are_ids
from clipguard.data.classes.labels import Labels, NameList, check_names, settle_labels
from clipguard.data.classes.names import ClassNames, ids_in_words, style_names, without_numbers

if TYPE_CHECKING:
    from clipguard.data.formats.raw_split import RawSplit
    from clipguard.data.registry import DatasetEntry


class NamedLabels(NamedTuple):
    """Labels, and what they mean."""

    labels: Labels  # (N,) in [0, C)
    names: list[str]  # C
    listed: bool  # somebody wrote the names down as such; else they are labels or folders of the data


def name_classes(
    dataset: str,
    raw: RawSplit,
    entry: DatasetEntry | None,
    typed: NameList | None,
    style: ClassNames,
    *,
    duplicates: bool,
) -> NamedLabels:
    """Labels and class names of a split.

    Args:
        dataset: its name, for notices.
        raw: its labels, and the names that came with it.
        entry: its entry in the registry, which may have names of its own.
        typed: the names that the user gives; they win, and are written as they are unless they are ids.
        style: see `style_names`.
        duplicates: allow equal names, and keep those of published lists.

    Raises:
        DatasetError: where a label has no name, or a name no class, or names mean nothing or the same.
    """
    written = typed or (entry.written_names() if entry else None)
    if written is not None:
        check_names(written.names, distinct=not duplicates)
    chosen = _choose_list(raw, written)
    labels, names = _settle(dataset, raw, chosen)
    names = _write_names(dataset, names, entry, style, chosen, typed, duplicates=duplicates)
    check_names(names, distinct=not duplicates)
    return NamedLabels(labels, names, chosen is not None)


def _choose_list(raw: RawSplit, written: NameList | None) -> NameList | None:
    """The names typed or the entry's, else a ClassLabel's own (None here), else those of the data's classnames.txt.

    Before a ClassLabel whose names are ids, that file is meant.
    """
    if written is not None or (raw.class_names is not None and not are_ids(raw.class_names)):
        return written
    return raw.listed_names


def _settle(dataset: str, raw: RawSplit, chosen: NameList | None) -> tuple[Labels, list[str]]:
    """Labels and names, where no class is left out in silence."""
    if chosen is None and raw.empty_classes:
        # It would vanish from the class names and make the task easier.
        folder, content = next(iter(raw.empty_classes.items()))
        unread = f" that can be read here ({content})" if content else ""
        raise DatasetError(
            f"class folder {folder!r} holds no images{unread}; fill it, remove it, or name all classes with "
            "`classes=FILE`"
        )
    if chosen is None and raw.classes_elsewhere:
        missing = ", ".join(raw.classes_elsewhere[:3])
        what = f"classes left out, for only other splits have them: {len(raw.classes_elsewhere):,} ({missing})"
        notice("skipped", f"{dataset}: {what}; --classes FILE names all")
    try:
        return settle_labels(raw.labels, raw.class_names, chosen, distinct=False)
    except DatasetError as error:
        raise DatasetError(f"{error}; {raw.hint}" if raw.hint else str(error)) from error


def _write_names(
    dataset: str,
    names: list[str],
    entry: DatasetEntry | None,
    style: ClassNames,
    chosen: NameList | None,
    typed: NameList | None,
    *,
    duplicates: bool,
) -> list[str]:
    """Names in the style asked for, WordNet ids in words. Those typed stay, unless they are ids."""
    written = None
    if entry is None or not entry.imagenet:
        try:
            written = ids_in_words(names, style)
        except DatasetError:
            if chosen is None:
                raise
    if written is None and typed is None and entry is None:
        written = without_numbers(names)
    if written is None and typed is None:
        written = _style(names, entry, style, raw=chosen is None, duplicates=duplicates)
    changed = [(old, new) for old, new in zip(names, written or names, strict=True) if old != new]
    if changed and (style == "source" or are_ids(names)):  # another style was asked for
        old, new = changed[0]
        what = f"{len(changed):,} of {len(names):,} class names are not as they came with the data: {old!r} is {new!r}"
        notice("translated", f"{dataset}: {what}; --classes FILE gives others")
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
