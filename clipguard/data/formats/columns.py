"""Which column of a table holds the images, and which the labels."""

from __future__ import annotations

from typing import Any

from clipguard.core.errors import DatasetError, did_you_mean
from clipguard.core.notices import notice

IMAGE_NAMES = ("image", "images", "img", "picture", "photo", "pixels", "file", "filename", "path", "filepath")
LABEL_NAMES = ("label", "labels", "cls", "fine_label", "target", "targets", "class")


def find_image_column(features: Any, named: str | None) -> str:
    """The column with the images: `named`, else the only Image feature, else the only column of bytes.

    Else the only one of arrays, else the only one of strings that is called as images or their paths are.

    Args:
        features: `datasets.Features`.
        named: by the user, if at all.

    Raises:
        DatasetError: if there is none, or more than one.
    """
    import datasets

    def is_image(feature: Any) -> bool:
        return isinstance(feature, datasets.Image)

    if named is not None:
        _check_exists(features, named, "image_column")
        if not any(holds(features[named]) for holds in (is_image, _holds_bytes, holds_arrays, holds_text)):
            raise DatasetError(
                f"column {named!r} holds no images, arrays or paths; name another with `image_column`. "
                f"{_listing(features)}"
            )
        return named
    called = {name: feature for name, feature in features.items() if _is_called_image(name)}
    for candidates, holds in (
        (features, is_image),
        (features, _holds_bytes),
        (features, holds_arrays),
        (called, holds_text),
    ):
        columns: list[str] = [name for name, feature in candidates.items() if holds(feature)]
        if len(columns) == 1:
            return columns[0]
        if columns:
            raise _undecided(features, columns, "image")
    raise _undecided(features, [], "image")


def find_label_column(features: Any, named: str | None) -> str:
    """The column with the labels: `named`, else the only ClassLabel, else the only one of a usual name.

    Among several ClassLabels a usual name decides (CIFAR-100: `fine_label`).

    Raises:
        DatasetError: if there is none, or more than one.
    """
    import datasets

    if named is not None:
        _check_exists(features, named, "label_column")
        return named
    classes: list[str] = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name in classes or features if name.lower() in LABEL_NAMES]
    columns: list[str] = classes if len(classes) == 1 else usual
    if len(columns) != 1:
        raise _undecided(features, columns or classes, "label")
    if len(classes) > 1:
        others = ", ".join(name for name in classes if name != columns[0])
        notice("guessed", f"labels are those of column {columns[0]!r}, not of {others}; --label-column names another")
    return columns[0]


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return _holds_bytes(feature.get("bytes"))
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _is_called_image(name: str) -> bool:
    """`file_name`, `image_path`, `img`, ..."""
    words = [word for word in name.lower().split("_") if word != "name"]
    return bool(words) and all(word in IMAGE_NAMES for word in words)


def holds_arrays(feature: Any) -> bool:
    """Whether its cells are arrays or nested lists of numbers, of two dimensions or more."""
    import datasets

    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return True
    inner, depth = feature, 0
    while isinstance(inner, (datasets.List, datasets.LargeList)):
        inner, depth = inner.feature, depth + 1
    return depth > 1 and getattr(inner, "dtype", "").startswith(("int", "uint", "float"))


def holds_text(feature: Any) -> bool:
    """Whether its cells are strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _undecided(features: Any, columns: list[str], what: str) -> DatasetError:
    several = f"{len(columns)} columns could be the {what}s ({', '.join(columns)})"
    problem = several if columns else f"no {what} column found"
    return DatasetError(f"{problem}; name it with `{what}_column`. {_listing(features)}")


def _check_exists(features: Any, named: str, setting: str) -> None:
    if named not in features:
        hint = did_you_mean(named, features)
        raise DatasetError(f"no column {named!r} for `{setting}`.{hint} {_listing(features)}")


def _listing(features: Any) -> str:
    return f"Columns: {', '.join(features) or 'none'}."
