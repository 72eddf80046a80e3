"""The `name(option=value,...)` in which attacks and fine-tuning methods are named."""

from __future__ import annotations

import re

Value = bool | int | float | str


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
