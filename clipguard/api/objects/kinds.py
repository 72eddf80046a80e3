"""What an object is: a model, a data set, a list of them, or nothing that can be used."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from clipguard.attacks.base import Attack
from clipguard.attacks.recipes import Recipe
from clipguard.core.errors import ClipguardError
from clipguard.data import ImageDataset, ZeroShotDataset
from clipguard.models.loading import LoadedModel

Model = str | Path | LoadedModel | nn.Module
Data = Any  # a name, ZeroShotDataset, datasets.Dataset, (images, labels) or (images, labels, class_names)
AttackLike = str | Attack | Recipe
IN_MEMORY = "in-memory"  # name of a data set without one


def members(value: Any) -> list[Any]:
    """One thing is a list of one; a pair of arrays is one data set."""
    if value is None:
        return []
    is_pair = is_arrays(value) and hasattr(value[0], "ndim")
    if is_pair or isinstance(value, (str, Path, nn.Module, LoadedModel, ImageDataset)) or is_table(value):
        return [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def in_memory(data: Any, what: str) -> bool:
    """Whether `data` is a data set in memory, and no name.

    Args:
        data: what was given.
        what: the argument as the user knows it, such as "`datasets`".

    Raises:
        ClipguardError: for what is neither.
    """
    if isinstance(data, ZeroShotDataset) or is_table(data) or is_arrays(data):
        return True
    if data is None or isinstance(data, (str, Path)):
        return False
    kinds = "names, what `load_dataset` gives, a datasets.Dataset, or tuples (images, labels[, class_names])"
    raise ClipguardError(f"{what} takes {kinds}, not {shown(data)}.")


def is_arrays(value: Any) -> bool:
    """Whether it is (images, labels) or (images, labels, class_names)."""
    return isinstance(value, tuple) and len(value) in (2, 3) and not isinstance(value[0], (str, Path))


def is_table(value: Any) -> bool:
    """Whether it is a `datasets.Dataset`, told without importing that library."""
    is_of_library = type(value).__module__.partition(".")[0] == "datasets"
    return is_of_library and all(hasattr(value, name) for name in ("features", "__getitem__", "__len__"))


def shown(value: Any) -> str:
    """What was given in place of an object, for messages."""
    return repr(value) if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or `name-2` and so on where it is taken."""
    names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 2)))
    return next(one for one in names if one not in taken)
