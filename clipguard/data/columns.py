"""Which column of a table holds the images, and which the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clipguard.errors import DatasetError, did_you_mean

LABEL_NAMES = ("label", "labels", "cls", "fine_label", "target", "targets", "class")


def find_image_column(features: Any, wanted: str | None) -> str:
    """The column with the images: `wanted`, else the only Image feature, else the only column of bytes.

    features: `datasets.Features`. Raises DatasetError if there is none, or more than one.
    """
    import datasets

    def is_image(feature: Any) -> bool:
        return isinstance(feature, datasets.Image)

    if wanted is not None:
        _check_exists(features, wanted, "--image-column")
        if not is_image(features[wanted]) and not _holds_bytes(features[wanted]):
            raise DatasetError(
                f"column {wanted!r} holds no encoded images; name another with --image-column. {_listing(features)}"
            )
        return wanted
    return _only_one(features, [is_image, _holds_bytes], "image")


def find_label_column(features: Any, wanted: str | None) -> str:
    """The column with the labels: `wanted`, else the only ClassLabel, else the only one of a usual name.

    Among several ClassLabels a usual name decides (CIFAR-100: `fine_label`).
    Raises DatasetError if there is none, or more than one.
    """
    import datasets

    if wanted is not None:
        _check_exists(features, wanted, "--label-column")
        return wanted
    classes: list[str] = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name in classes or features if name.lower() in LABEL_NAMES]
    found: list[str] = classes if len(classes) == 1 else usual
    if len(found) != 1:
        raise _undecided(features, found or classes, "label")
    return found[0]


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, dict):
        return _holds_bytes(feature.get("bytes"))
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _only_one(features: Any, kinds: list[Callable[[Any], bool]], what: str) -> str:
    for kind in kinds:
        found: list[str] = [name for name, feature in features.items() if kind(feature)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _undecided(features, found, what)
    raise _undecided(features, [], what)


def _undecided(features: Any, found: list[str], what: str) -> DatasetError:
    several = f"{len(found)} columns could be the {what}s ({', '.join(found)})"
    problem = several if found else f"no {what} column found"
    return DatasetError(f"{problem}; name it with --{what}-column. {_listing(features)}")


def _check_exists(features: Any, wanted: str, option: str) -> None:
    if wanted not in features:
        hint = did_you_mean(wanted, features)
        raise DatasetError(f"no column {wanted!r} for {option}.{hint} {_listing(features)}")


def _listing(features: Any) -> str:
    return f"Columns: {', '.join(features) or 'none'}."
