"""Data sets in memory, opened with the settings of whoever uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipguard.api.objects.kinds import is_table, shown
from clipguard.core.errors import ClipguardError
from clipguard.data import ZeroShotDataset
from clipguard.data.classes.lists import parse_classes
from clipguard.data.in_memory import dataset_of_arrays
from clipguard.data.sources import dataset_of_table


def _are_names(names: Any) -> bool:
    """Whether they are texts in an order."""
    return isinstance(names, (list, tuple, np.ndarray)) and all(isinstance(name, str) for name in names)


def open_in_memory(data: Any, name: str, settings: Mapping[str, Any], *, needs_text: bool) -> ZeroShotDataset:
    """A data set in memory as a `ZeroShotDataset`.

    Args:
        data: a ZeroShotDataset, which stays as it is; a `datasets.Dataset`; (images, labels) or (images, labels,
            class_names).
        name: of the data set, in results.
        settings: arguments of `load_dataset`, as far as the object leaves them open.
        needs_text: whether class names are needed.

    Raises:
        ClipguardError: for class names that are missing or no list.
        DatasetError: for what makes no data set.
    """
    if isinstance(data, ZeroShotDataset):
        return data
    if is_table(data):
        return dataset_of_table(data, name, **settings)
    names, classes = data[2] if len(data) == 3 else None, settings.get("classes")
    if names is not None and not _are_names(names):
        raise ClipguardError(f"{name}: class names are a list of texts, as in ['cat', 'dog'], not {shown(names)}.")
    if names is not None and classes:
        raise ClipguardError(f"{name}: it has class names already: leave `classes` out.")
    if names is None and classes:
        names = parse_classes(str(classes)).names
    if names is None and needs_text:
        raise ClipguardError(f"{name}: these models need class names: (images, labels, class_names), or `classes`.")
    how = {key: settings[key] for key in ("templates", "decode") if key in settings}
    return dataset_of_arrays(data[0], data[1], names, name=name, **how)
