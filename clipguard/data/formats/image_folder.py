"""A folder of images: which level is the split and which the class."""

from __future__ import annotations

import re
from pathlib import Path

from clipguard.core.errors import DatasetError, SplitError
from clipguard.core.notices import notice
from clipguard.data.captions import captions_beside
from clipguard.data.formats.paths import NOT_DATA, Located
from clipguard.data.formats.raw_split import ALL, RawSplit, Request, choose_split, refuse_columns, sidecar_names
from clipguard.data.formats.suffixes import count_suffixes
from clipguard.data.images import FileImages

SPLIT_FOLDER = re.compile(
    r"(?:train|training|validation|valid|val|dev|test|testing)"
    r"(?:[-_. ]?\d+|[-_. ](?:set|split|data|images?|imgs?|[a-d]))?",
    re.IGNORECASE,
)
Parts = list[list[str]]
"""Paths, each as its folders and its file."""


def open_images(located: Located, request: Request) -> RawSplit:
    """`class/.../x.jpg`, or `split/class/.../x.jpg` where the top folders are called as splits are.

    Labels are the names of the class folders. Where labels are not wanted, images may lie anywhere.

    Raises:
        DatasetError: for images outside class folders.
    """
    import pandas as pd

    refuse_columns(request, "an image folder")
    parts = [file.split("/") for file in located.files]
    splits = _splits(located, request, parts)
    split = choose_split(sorted(splits) or [ALL], request.split)
    base = located.root / split if splits else located.root
    below = [part[1:] for part in parts if part[0] == split and len(part) > 1] if splits else parts
    located.notice_skipped(f"{split}/" if splits else "")
    images = FileImages([f"{base}/{'/'.join(part)}" for part in below])
    captions = None
    if request.captioned:
        captions = captions_beside(images.paths, [base, located.root], request.caption_column)
    if not request.labelled:
        return RawSplit(str(located.path), split, images, pd.Series(), captions=captions)
    _check_no_stray(below, base, located)
    classes = sorted({part[0] for part in below})
    empty = [name for name in _folders_in(base) if name not in classes]
    _check_utf8([*classes, *empty])
    others = {part[1] for part in parts if len(part) > 2 and part[0] != split} if splits else set()
    _say_deeper(below, base)
    return RawSplit(
        str(located.path),
        split,
        images,
        pd.Series(pd.Categorical([part[0] for part in below], categories=sorted(classes + empty))),
        listed_names=sidecar_names([base, located.root]),
        empty_classes={name: _what_is_in(located, base / name) for name in empty},
        classes_elsewhere=sorted(others.difference(classes, empty)) if others.intersection(classes) else [],
        captions=captions,
        hint=_hint(below, base) if len(classes) == 1 else "",
    )


def _check_utf8(names: list[str]) -> None:
    """Raise DatasetError for names of folders that are no text, only bytes."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DatasetError(f"the name {name!r} is not UTF-8; rename it") from None


def _splits(located: Located, request: Request, parts: Parts) -> set[str]:
    """The top folders, if they are splits; else none. Raises SplitError if they could be both."""
    folders = {part[0] for part in parts if len(part) > 1}
    words = {folder for folder in folders if SPLIT_FOLDER.fullmatch(folder)}
    if words == folders:
        return folders
    deep = folders - {part[0] for part in parts if len(part) == 2}
    if request.split in folders and request.split in deep:
        return folders
    if not words & deep:
        return set()
    others = ", ".join(sorted(folders - words)[:3])
    if len(words & deep) == 1:
        raise SplitError(
            f"{located.path} holds {min(words)!r}, which is a split, beside {others}; choose a split with `split`, or "
            "move what is no class out of it"
        )
    notice("guessed", f"{located.path}: the top folders are splits, for some are called so; so {others} is one, too")
    return folders


def _check_no_stray(below: Parts, base: Path, located: Located) -> None:
    stray = next((part for part in below if len(part) == 1), None)
    if stray is not None:
        where = (base / stray[0]).relative_to(located.root)
        raise DatasetError(
            "images must all lie in class folders, as in class/x.jpg or split/class/x.jpg, but there is "
            f"{where}; move it"
        )


def _folders_in(base: Path) -> list[str]:
    names = sorted(folder.name for folder in base.iterdir() if folder.is_dir())
    return [name for name in names if not name.startswith(".") and name not in NOT_DATA]


def _what_is_in(located: Located, folder: Path) -> str:
    prefix = folder.relative_to(located.root).as_posix() + "/"
    return count_suffixes(file for file in located.skipped if file.startswith(prefix))


def _say_deeper(below: Parts, base: Path) -> None:
    deeper = [part for part in below if len(part) > 2]
    if deeper:
        notice(
            "guessed",
            f"{base}: {len(deeper):,} of {len(below):,} images lie in folders of class folders, such as "
            f"{'/'.join(deeper[0][:-1])}; the class is the first, {deeper[0][0]!r}",
        )


def _hint(below: Parts, base: Path) -> str:
    """Where there is only one folder all the way down to several: those are the classes, or the splits."""
    depth = 0
    while all(len(part) > depth + 2 for part in below) and len({part[depth] for part in below}) == 1:
        depth += 1
    return f"if the folders in it are the classes, give {base.joinpath(*below[0][:depth])}" if depth else ""
