"""Raw labels and whatever names them -> integers in [0, C) and C class names, or an error that names the row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipguard.errors import DatasetError

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "the data set is empty; choose another split, or give one that has images"

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GivenNames:
    """Class names that come from a file, and the words to use for that file in an error."""

    names: list[str]
    origin: str
    ids: list[str] | None = None
    """An id beside each name, as in `n01440764 tench`; labels may be these."""


def settle_labels(
    raw: pd.Series, native: list[str] | None, given: GivenNames | None, *, distinct: bool = True
) -> tuple[Labels, list[str]]:
    """Labels (N,) in [0, C) and the C class names.

    raw: N integers, or N strings (then the classes are the sorted distinct values).
    native: names that integers already have, as in a ClassLabel feature. given: names from a file; they win.
    distinct: refuse duplicate names; without, the caller mends them.
    Raises DatasetError: empty, missing labels, no names, fewer than two classes, duplicate names, labels out of range.
    """
    _check_present(raw)
    codes, native = _to_codes(raw, native)
    if given is None and native is None:
        raise DatasetError(
            "the labels are integers without class names; give --classes FILE with one name a line, in label order"
        )
    if native is not None:
        check_names(native, distinct=distinct)
        _check_range(codes, len(native))
    if given is None:
        assert native is not None
        return codes, native
    check_names(given.names, distinct=distinct)
    if native is None:
        _check_range(codes, len(given.names))
        return codes, given.names
    return _match(native, given)[codes], given.names


def _check_present(raw: pd.Series) -> None:
    if len(raw) == 0:
        raise DatasetError(EMPTY)
    missing = raw.isna().to_numpy() | (raw == -1).fillna(False).to_numpy()  # -1: what `datasets` writes for "no label"
    if missing.any():
        raise DatasetError(
            f"row {int(missing.argmax())} has no label ({int(missing.sum())} of {len(raw)} rows have none); "
            "remove such rows, or choose a labelled split with --split"
        )


def _to_codes(raw: pd.Series, native: list[str] | None) -> tuple[Labels, list[str] | None]:
    import pandas as pd

    kind = pd.api.types.infer_dtype(raw, skipna=False)
    if kind in ("integer", "boolean"):
        return raw.to_numpy(dtype=np.int64), native
    if kind in ("string", "categorical"):
        values = sorted(raw.astype(str).unique())
        if all(value.isdecimal() for value in values):
            values.sort(
                key=int
            )  # folders 0 to 10: class 10 must not come after class 1, or a names file would mislabel it
        return pd.Categorical(raw.astype(str), categories=values).codes.astype(np.int64), values
    raise DatasetError(f"labels must be integers or strings, not {kind}; name another column with --label-column")


def check_names(names: list[str], *, distinct: bool = True) -> None:
    """Raise DatasetError unless there are two names or more, none empty and, if `distinct`, no two alike."""
    if any(not name.strip() for name in names):
        raise DatasetError("a class name is empty; give all of them with --classes FILE")
    doubles = [name for name, count in Counter(names).items() if count > 1]
    if doubles and distinct:
        listed = ", ".join(repr(name) for name in doubles[:5]) + (" ..." if len(doubles) > 5 else "")
        raise DatasetError(f"duplicate class names: {listed}; make them distinct with --classes FILE")
    if len(names) < 2:
        raise DatasetError(f"only one class ({names[0]!r}); zero-shot classification needs at least two")


def _check_range(codes: Labels, classes: int) -> None:
    bad = (codes < 0) | (codes >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise DatasetError(
            f"row {row} has label {codes[row]}, but there are {classes} class names (0 to {classes - 1}); "
            "give the full list with --classes FILE"
        )


def _match(native: list[str], given: GivenNames) -> Labels:
    """Where each native class is in the given list, (len(native),): by name if all are there, else by position.

    By position only if the lengths agree and no shared name changes place: anything else would mislabel in silence.
    """
    by_id = given.ids is not None and set(native) <= set(given.ids)
    place = {name: index for index, name in enumerate(given.ids if given.ids and by_id else given.names)}
    absent = [name for name in native if name not in place]
    if not absent:
        return np.array([place[name] for name in native], dtype=np.int64)
    if len(native) != len(given.names):
        raise DatasetError(
            f"{given.origin} has {len(given.names)} class names, but the data has {len(native)} classes and "
            f"{absent[0]!r} is not among those names; give one name a class, in label order"
        )
    for index, name in enumerate(native):
        if place.get(name, index) != index:
            raise DatasetError(
                f"{given.origin} has {name!r} as class {place[name]}, but in the data it is class {index}; "
                "use the data's class order"
            )
    return np.arange(len(native), dtype=np.int64)
