"""Raw labels and whatever names them -> integers in [0, C) and C class names, or an error that names the row."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipguard.core.errors import DatasetError
from clipguard.core.notices import notice
from clipguard.data.classes.ids import NUMBERED, number_of
from clipguard.data.classes.names import ids_in_words

if TYPE_CHECKING:
    import pandas as pd

EMPTY = "the data set is empty; choose another split, or give one that has images"

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NameList:
    """Class names that somebody wrote down: in a file, in the registry, or as a setting."""

    names: list[str]
    """In label order."""
    origin: str
    """Where they are from, as notices and errors name it."""
    ids: list[str] | None = None
    """An id beside each name, as in `n01440764 tench`; labels may be these."""


def settle_labels(
    raw: pd.Series, native: list[str] | None, listed: NameList | None, *, distinct: bool = True
) -> tuple[Labels, list[str]]:
    """Labels (N,) in [0, C) and the C class names.

    Args:
        raw: N integers, or N strings (then the classes are the sorted distinct values, or the categories).
        native: names that integers already have, as in a ClassLabel feature.
        listed: names from a file; they win.
        distinct: refuse duplicate names; without, the caller mends them.

    Raises:
        DatasetError: empty, missing labels, no names, fewer than two classes, duplicate names, labels out of range.
    """
    _check_present(raw)
    codes, native = _to_codes(raw, native)
    if listed is None and native is None:
        raise DatasetError(
            "the labels are integers without class names; give `classes=FILE` with one name a line, in label order"
        )
    if native is not None:
        _check_range(codes, len(native))
    if listed is None:
        assert native is not None
        check_names(native, distinct=distinct)
        return codes, native
    check_names(listed.names, distinct=distinct)
    if native is None:
        _check_range(codes, len(listed.names))
        return codes, listed.names
    return _match(native, listed)[codes], listed.names


def _check_present(raw: pd.Series) -> None:
    if len(raw) == 0:
        raise DatasetError(EMPTY)
    missing = raw.isna().to_numpy() | (raw == -1).fillna(False).to_numpy()  # -1: what `datasets` writes for "no label"
    if missing.any():
        raise DatasetError(
            f"row {int(missing.argmax())} has no label ({int(missing.sum())} of {len(raw)} rows have none); "
            "remove such rows, or choose a labelled split with `split`"
        )


def _to_codes(raw: pd.Series, native: list[str] | None) -> tuple[Labels, list[str] | None]:
    import pandas as pd

    kind = pd.api.types.infer_dtype(raw, skipna=False)
    if kind in ("floating", "mixed-integer-float", "decimal"):  # 3.0 is what is left of 3 where some tool saw a gap
        numbers = raw.to_numpy(dtype=np.float64)
        if (np.isfinite(numbers) & (numbers == np.floor(numbers))).all():
            return numbers.astype(np.int64), native
    if kind in ("integer", "boolean"):
        return raw.to_numpy(dtype=np.int64), native
    if kind in ("string", "categorical"):
        known = raw.cat.categories if isinstance(raw.dtype, pd.CategoricalDtype) else raw.unique()
        values = sorted(str(value) for value in known)
        if all(NUMBERED.fullmatch(value) for value in values):
            # Class 10 must not come after class 1, or a names file would mislabel it.
            values.sort(key=lambda value: (number_of(value), value))
        return pd.Categorical(raw.astype(str), categories=values).codes.astype(np.int64), values
    raise DatasetError(f"labels must be integers or strings, not {kind}; name another column with `label_column`")


def check_names(names: list[str], *, distinct: bool = True) -> None:
    """Raise DatasetError unless there are two names or more, none empty and, if `distinct`, no two alike."""
    if any(not name.strip() for name in names):
        raise DatasetError("a class name is empty; give all of them with `classes=FILE`")
    seen = Counter("".join(c for c in name if unicodedata.category(c) != "Cf") for name in names)  # zero-width ones
    doubles = [name for name, count in seen.items() if count > 1]
    if doubles and distinct:
        listed = ", ".join(repr(name) for name in doubles[:5]) + (" ..." if len(doubles) > 5 else "")
        raise DatasetError(f"duplicate class names: {listed}; make them distinct with `classes=FILE`")
    if len(names) < 2:
        raise DatasetError(f"only one class ({names[0]!r}); zero-shot classification needs at least two")


def _check_range(codes: Labels, classes: int) -> None:
    bad = (codes < 0) | (codes >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise DatasetError(
            f"row {row} has label {codes[row]}, but there are {classes} class names (0 to {classes - 1}); "
            "give the full list with `classes=FILE`"
        )


def _match(native: list[str], listed: NameList) -> Labels:
    """Where each native class is in the given list, (len(native),): by name if all are there, else by position.

    Names are the same, too, if only case, `_` and `-` differ; WordNet ids are what ImageNet calls them.
    By position only if the lengths agree and no shared name changes place: anything else would mislabel in silence.
    Numbers are positions.
    """
    if native == listed.names:
        return np.arange(len(native), dtype=np.int64)
    for mine, theirs in _spellings(native, listed):
        place = {name: index for index, name in enumerate(theirs)}
        distinct = len(place) == len(theirs) and len(set(mine)) == len(mine)
        if all(name in place for name in mine) and (distinct or mine is native):
            return np.array([place[name] for name in mine], dtype=np.int64)
    if all(NUMBERED.fullmatch(name) for name in native):
        return _by_number(native, listed)
    return _by_position(native, listed)


def _spellings(native: list[str], listed: NameList) -> Iterator[tuple[list[str], list[str]]]:
    """Both lists as they are; by the given ids; but for case and separators; with native WordNet ids in words."""
    yield native, listed.names
    if listed.ids:
        yield native, list(listed.ids)
        if listed.ids[0].isdecimal() and all(NUMBERED.fullmatch(name) for name in native):
            yield [str(number_of(name)) for name in native], list(listed.ids)  # 001, class_1: the file's 1
    plain = [_plain(name) for name in listed.names]
    yield [_plain(name) for name in native], plain
    with suppress(DatasetError):  # ids nobody knows
        for words in (ids_in_words(native, "source"), ids_in_words(native, "tecoa")):
            if words is not None:
                yield [_plain(name) for name in words], plain


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _by_number(native: list[str], listed: NameList) -> Labels:
    """A number is a position in the list; if that cannot be, C numbers take its C names in their order, a guess."""
    numbers = np.array([number_of(name) for name in native], dtype=np.int64)
    order = np.argsort(numbers)
    lowest, highest = native[order[0]], native[order[-1]]
    if len(np.unique(numbers)) < len(numbers):
        raise DatasetError(f"two of the labels are the same number ({', '.join(native[:6])}); write each in one way")
    if numbers[order[0]] >= 0 and numbers[order[-1]] < len(listed.names):
        if numbers[order[0]] > 0:
            first = listed.names[numbers[order[0]]]
            notice("guessed", f"{listed.origin}: no label is 0, but they are counted from 0: {lowest} is {first!r}")
        return numbers
    count = len(listed.names)
    if len(native) != count:
        wrong = highest if numbers[order[-1]] >= count else lowest
        raise DatasetError(
            f"a label is {wrong}, but {listed.origin} has {count} class names (0 to {count - 1}); give the full list "
            "with `classes=FILE`"
        )
    notice(
        "guessed",
        f"{listed.origin}: labels run from {lowest} to {highest} and take the {len(native):,} names in order: "
        f"{lowest} is {listed.names[0]!r}, {highest} is {listed.names[-1]!r}",
    )
    return np.argsort(order)


def _by_position(native: list[str], listed: NameList) -> Labels:
    place = {name: index for index, name in enumerate(listed.names)}
    ids = set(listed.ids or ())
    absent = [name for name in native if name not in place and name not in ids]
    if len(native) != len(listed.names) or ids.intersection(native):
        raise DatasetError(
            f"{listed.origin} has {len(listed.names)} class names, but the data has {len(native)} classes and "
            f"{absent[0]!r} is not among those names; give one name a class, in label order"
        )
    for index, name in enumerate(native):
        if place.get(name, index) != index:
            raise DatasetError(
                f"{listed.origin} has {name!r} as class {place[name]}, but in the data it is class {index}; "
                "use the data's class order"
            )
    notice(
        "guessed",
        f"{listed.origin}: {len(absent):,} of {len(native):,} classes are not among its names and take those in the "
        f"same place: {absent[0]!r} is {listed.names[native.index(absent[0])]!r}",
    )
    return np.arange(len(native), dtype=np.int64)
