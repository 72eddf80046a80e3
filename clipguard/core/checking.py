"""Are settings of the types that a dataclass says? For values from Python and from files, which nobody has parsed."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from clipguard.core.errors import ClipguardError

NAMES: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    list: "a list",
    tuple: "a list",
}


def check_type(what: str, value: Any, expected: Any, error: type[ClipguardError] = ClipguardError) -> None:
    """Raise `error` unless the value is of the type: one of `NAMES`, a Literal of texts, or a union of these and None.

    Whole numbers are numbers; true and false are not. `what` is the setting as the user knows it.
    """
    kinds = (expected,) if get_origin(expected) is Literal else get_args(expected) or (expected,)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        if not isinstance(value, str) or value not in choices:
            raise error(f"{what} {value!r} is unknown; use {' or '.join([', '.join(choices[:-1]), choices[-1]])}.")
        return
    allowed = (*kinds, *(Real if kind is float else Integral for kind in kinds if kind in (int, float)))  # NumPy's, too
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(NAMES[kind] for kind in kinds if kind is not type(None))
        raise error(f"{what} must be {names}, not {value!r}.")
