"""What a path holds, and which split each file belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.formats.raw_split import ALL
from clipguard.data.formats.suffixes import count_suffixes, image_suffixes, may_be_data

TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "tar"}
NOT_DATA = ("__MACOSX", "__pycache__")
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
    skipped: list[str] = field(default_factory=list)
    """Those of other files, which may be data but are not read."""

    def notice_skipped(self, prefix: str = "") -> None:
        """A notice of the files that are not read and whose path starts with `prefix`."""
        skipped = [file for file in self.skipped if file.startswith(prefix)]
        if skipped:
            notice("skipped", f"{self.path}: files not read: {count_suffixes(skipped)} (such as {skipped[0]})")


def kind_of(name: str) -> str | None:
    """`parquet`, `arrow`, `tar` or `image`, by the suffix; None for anything else."""
    suffix = PurePath(name).suffix.lower()
    return TABLES.get(suffix) or ("image" if suffix in image_suffixes() else None)


def locate(path: Path) -> Located:
    """Say what an existing path holds.

    Raises:
        DatasetError: if it is nothing we read, or several things at once.
    """
    path = path.absolute()  # not resolve(): files of the hub's cache are links to names without a suffix
    if path.is_file():
        return Located(path, _kind_of_file(path), path.parent, [path.name])
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Located(path, "saved", path, [])
    by_kind = _scan(path)
    others = by_kind.pop("", [])
    # A picture beside the data (a README's teaser) is no dataset: images count from one folder down.
    if len(by_kind) > 1 and "image" in by_kind and not any("/" in file for file in by_kind["image"]):
        others = by_kind.pop("image") + others
    if len(by_kind) != 1:
        raise _undecided(path, by_kind, others)
    kind, files = next(iter(by_kind.items()))
    images = kind == "image"
    skipped = [f for f in others if may_be_data(PurePath(f).name, images) or (not images and kind_of(f))]
    return Located(path, kind, path, files, skipped)


def _kind_of_file(path: Path) -> str:
    kind = kind_of(path.name)
    if kind is None:
        raise DatasetError(
            f"{path} is no format clipguard reads; give a .parquet, .arrow or .tar file, or a folder "
            "(compressed archives must be unpacked first)"
        )
    if kind == "image":
        raise DatasetError(f"{path} is a single image; give the folder that has a folder of images for each class")
    return kind


def _undecided(path: Path, by_kind: Collection[str], others: list[str]) -> DatasetError:
    if by_kind:
        return DatasetError(
            f"{path} holds a mix of {' and '.join(sorted(by_kind))} files; give the file or subfolder you mean"
        )
    unread = [file for file in others if may_be_data(PurePath(file).name, images=True)]
    return DatasetError(
        f"{path} holds no parquet, arrow, tar or image files"
        + (f" that can be read here, but {count_suffixes(unread)}" if unread else "")
        + "; give a folder that does (unpack archives first, convert images to .png or .jpg)"
    )


def _scan(root: Path) -> dict[str, list[str]]:
    """Relative paths of the files of each kind below `root`, others under ""; nothing hidden counts."""
    kinds = TABLES | dict.fromkeys(image_suffixes(), "image")
    by_kind: dict[str, list[str]] = {}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_unreadable):
        subfolders[:] = [name for name in subfolders if not (_is_hidden(name) or _leads_back(folder, name))]
        prefix = PurePath(folder).relative_to(root).as_posix() + "/" if folder != str(root) else ""
        for name in names:
            if not name.startswith("."):
                kind = kinds.get(os.path.splitext(name)[1].lower(), "")  # noqa: PTH122 - pathlib is 5 times slower on a million files
                by_kind.setdefault(kind, []).append(prefix + name)
    for files in by_kind.values():
        files.sort(key=_natural)
    return by_kind


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in NOT_DATA


def _leads_back(folder: str, name: str) -> bool:
    """Whether it is a link to a folder above it: its files would be found again and again."""
    path = Path(folder, name)
    return path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve())


def _refuse_unreadable(error: OSError) -> None:
    raise DatasetError(f"cannot read the folder {error.filename}: {error.strerror}; make it readable, or remove it")


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def files_by_split(located: Located) -> dict[str, list[str]]:
    """Group files by the split word in their path (`data/test-00000-of-00001.parquet`, `test/0.tar`).

    A single file, or a folder where no path has such a word, is one split called `all`.

    Raises:
        DatasetError: if only some paths have one: the others would be dropped in silence.
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
