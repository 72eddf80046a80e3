"""What a path holds, which split each file belongs to, and the folder of images."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from clipguard.data.images import IMAGE_SUFFIXES, FileImages
from clipguard.data.rows import ALL, Request, Rows, choose_split, refuse_columns, sidecar_names
from clipguard.errors import DatasetError

KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "tar", **dict.fromkeys(IMAGE_SUFFIXES, "image")}
SPLIT_WORD = re.compile(
    r"(?:^|[-._ /])(train|training|validation|valid|val|dev|test|testing)(?=[-._ /0-9])", re.IGNORECASE
)
SHARD_NAME = re.compile(r"([^/]+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Located:
    """A path on disk and the files in it that matter."""

    path: Path
    """Absolute; what the user named."""
    kind: str
    """`saved`, `parquet`, `arrow`, `tar` or `image`."""
    root: Path
    """`path`, or its folder if it is a file."""
    files: list[str]
    """POSIX paths relative to `root`, in natural order (2.tar before 10.tar)."""


def locate(path: Path) -> Located:
    """Say what an existing path holds. Raises DatasetError if it is nothing we read, or several things at once."""
    path = path.absolute()  # not resolve(): files of the hub's cache are links to names without a suffix
    if path.is_file():
        kind = KINDS.get(path.suffix.lower())
        if kind is None:
            raise DatasetError(
                f"{path} is no format clipguard reads; give a .parquet, .arrow or .tar file, or a folder "
                "(compressed archives must be unpacked first)"
            )
        if kind == "image":
            raise DatasetError(f"{path} is a single image; give the folder that has a folder of images for each class")
        return Located(path, kind, path.parent, [path.name])
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Located(path, "saved", path, [])
    found = _scan(path)
    # A picture beside the data (a README's teaser) is no dataset: images count from one folder down.
    if len(found) > 1 and "image" in found and not any("/" in file for file in found["image"]):
        del found["image"]
    if not found:
        raise DatasetError(
            f"{path} holds no parquet, arrow, tar or image files; give a folder that does (unpack archives first)"
        )
    if len(found) > 1:
        raise DatasetError(
            f"{path} holds a mix of {' and '.join(sorted(found))} files; give the file or subfolder you mean"
        )
    kind, files = next(iter(found.items()))
    return Located(path, kind, path, files)


def _scan(root: Path) -> dict[str, list[str]]:
    """Relative paths of the files of each kind below `root`; hidden files and folders do not count."""
    found: dict[str, list[str]] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        prefix = PurePath(folder).relative_to(root).as_posix() + "/" if folder != str(root) else ""
        for name in names:
            kind = KINDS.get(os.path.splitext(name)[1].lower())  # noqa: PTH122 - pathlib is 5 times slower on a million files
            if kind is not None and not name.startswith("."):
                found.setdefault(kind, []).append(prefix + name)
    for files in found.values():
        files.sort(key=_natural)
    return found


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def files_by_split(located: Located) -> dict[str, list[str]]:
    """Group files by the split word in their path (`data/test-00000-of-00001.parquet`, `test/0.tar`).

    A single file, or a folder where no path has such a word, is one split called `all`.
    Raises DatasetError if only some paths have one: the others would be dropped in silence.
    """
    if located.path.is_file():
        return {ALL: located.files}
    splits: dict[str, list[str]] = {}
    for file in located.files:
        match = SPLIT_WORD.search(file) or SHARD_NAME.search(file)
        splits.setdefault(match[1].lower() if match else "", []).append(file)
    if len(splits) > 1 and "" in splits:
        raise DatasetError(
            f"{splits[''][0]} has no split (train, test, ...) in its name, but other files do; rename it, "
            "or give the file itself"
        )
    return splits if "" not in splits else {ALL: splits[""]}


def open_images(located: Located, request: Request) -> Rows:
    """`class/xxx.jpg`, or `split/class/xxx.jpg`; labels are the folder names. Any other layout: DatasetError.

    Where labels are not wanted, any other layout is a set without splits and labels.
    """
    import pandas as pd

    refuse_columns(request, "an image folder")
    parts = [file.split("/") for file in located.files]
    depths = {len(part) for part in parts}
    if not request.labelled and depths != {3}:
        split = choose_split([ALL], request.split)
        return Rows(str(located.path), split, FileImages([str(located.root / f) for f in located.files]), pd.Series())
    if depths not in ({2}, {3}):
        odd = min(located.files, key=lambda file: file.count("/"))
        raise DatasetError(
            f"images must all lie in class/x.jpg, or all in split/class/x.jpg, but there is {odd}; move it"
        )
    splits = {part[0] for part in parts} if depths == {3} else {ALL}
    split = choose_split(sorted(splits), request.split)
    base = located.root / split if depths == {3} else located.root
    files = [part for part in parts if depths == {2} or part[0] == split]
    labels = pd.Series([part[-2] for part in files], dtype=object)
    _check_no_empty_class(base, set(labels))
    paths = [str(base / part[-2] / part[-1]) for part in files]
    names = sidecar_names([base, located.root])
    return Rows(str(located.path), split, FileImages(paths), labels, given_names=names)


def _check_no_empty_class(base: Path, classes: set[str]) -> None:
    """A class without images would vanish from the class names and make the task easier."""
    for folder in sorted(base.iterdir()):
        if folder.is_dir() and not folder.name.startswith((".", "__")) and folder.name not in classes:
            raise DatasetError(f"class folder {folder.name!r} holds no images; fill it or remove it")
