"""The `name(option=value,...)` in which attacks, defences and fine-tuning methods are named."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clipguard.core.errors import ClipguardError, did_you_mean

T = TypeVar("T")
Value = bool | int | float | str
NAME = re.compile(r"[a-z][a-z0-9-]*")  # as `parse_call` reads it


def parse_call(text: str) -> tuple[str, dict[str, Value]]:
    """`"PGD-10(step-size=0.5, random_start=false)"` -> `("pgd-10", {"step_size": 0.5, "random_start": False})`.

    Raises ValueError, saying what cannot be read and how to write it.
    """
    match = re.fullmatch(r"([a-z][a-z0-9-]*)\s*(?:\((.*)\))?", text.strip().lower())
    if match is None:
        raise ValueError("not of the form NAME or NAME(option=value,...)")
    options: dict[str, Value] = {}
    for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
        key, equals, value = (p.strip() for p in part.partition("="))
        key = key.replace("-", "_")
        if not equals or key in options:
            raise ValueError(f"cannot read {part!r}; write option=value, each once")
        options[key] = _parse_value(part, value)
    return match[1], options


def spell_call(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What `parse_call` reads: `jpeg(quality=50)`, without the options that are at their defaults."""
    changed = ",".join(f"{key}={str(value).lower()}" for key, value in options.items() if value != defaults[key])
    return f"{name}({changed})" if changed else name


def _parse_value(part: str, text: str) -> Value:
    """true, false, a whole number, a number or a word."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", text):
        raise ValueError(f"cannot read {part!r}; write option=value with a number, a word, true or false")
    return text


def split_attacks(values: list[str]) -> list[str]:
    """Split at commas outside parentheses: `pgd-10,apgd-ce(iterations=50,restarts=2)` is two attacks."""
    return [part.strip() for value in values for part in re.split(r",(?![^(]*\))", value) if part.strip()]


@dataclass(frozen=True)
class NamedKinds:
    """How one of several kinds is made from its name and options, and what is said of those that are wrong.

    A kind is a dataclass whose fields are its options: true or false, one of some words, words joined by _, a number
    or a whole number; or one of these and None, where what it is by default depends on others.

    Attributes:
        noun: what they are, such as "method".
        example: how one is written.
        error: what is raised.
        option: how an option is called where its value is wrong, with "{name}", "{text}" and "{option}".
        low: the least number of any option; None: the kinds check the ranges themselves.
    """

    noun: str
    example: str
    error: type[ClipguardError]
    option: str = "{name}: {option}"
    low: float | None = 0

    def make(self, text: str, kinds: Mapping[str, type[T]]) -> T:
        """The kind that a text names, with the options that it gives.

        Args:
            text: `NAME` or `NAME(option=value,...)`.
            kinds: those that there are, by name.

        Raises:
            ClipguardError: for an unknown name or option, and for a value that is of another type than the option's,
                not among its choices or out of range.
        """
        noun = self.noun.capitalize()
        try:
            name, options = parse_call(text)
        except ValueError as error:
            raise self.error(f"{noun} {text!r}: {error}, as in {self.example}.") from None
        if name not in kinds:
            raise self.error(f"Unknown {self.noun} {name!r}.{did_you_mean(name, kinds)} Known are {', '.join(kinds)}.")
        kind = kinds[name]
        known, types = [field.name for field in fields(kind)], get_type_hints(kind)  # type: ignore[arg-type]
        for option, value in options.items():
            if option not in known:
                has = f"It has {', '.join(known) or 'none'}."
                raise self.error(f"{noun} {name!r} has no option {option!r}.{did_you_mean(option, known)} {has}")
            self._check(self.option.format(name=name, text=text, option=option), value, types[option])
        return kind(**options)

    def _check(self, what: str, value: Value, expected: Any) -> None:
        if get_origin(expected) in (Union, UnionType):  # with None, which is what nobody can write
            kinds = [kind for kind in get_args(expected) if kind is not NoneType]
            expected = kinds[0] if len(kinds) == 1 else float
        if get_origin(expected) is Literal:
            if value not in get_args(expected):
                raise self.error(f"{what} must be {' or '.join(get_args(expected))}, not {value}.")
        elif expected is bool:
            if not isinstance(value, bool):
                raise self.error(f"{what} must be true or false, not {value}.")
        elif expected is str:
            if not isinstance(value, str):
                raise self.error(f"{what} must be words joined by _, not {value}.")
        elif (
            isinstance(value, (bool, str))
            or (expected is int and not isinstance(value, int))
            or (self.low is not None and not self.low <= value < math.inf)
        ):
            number = "a whole number" if expected is int else "a number"
            least = "" if self.low is None else f" of at least {self.low:g}"
            raise self.error(f"{what} must be {number}{least}, not {value}.")
